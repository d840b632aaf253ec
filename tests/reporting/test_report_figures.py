"""The report's line pictures: what is drawn is what the records say."""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from fptt_dist.reporting import History
from fptt_dist.reporting.plots.figures import Plot, pictures
from fptt_dist.reporting.plots.palette import COLORS
from fptt_dist.reporting.plots.series import BLOCKS, curve, field
from fptt_dist.reporting.plots.style import number, styled
from fptt_dist.reporting.runs.groups import Group, group_runs
from tests.reporting.figures import drawn, made

NONE = made(records=0, evaluations=0)


def line(picture: Plot, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [each for each in picture.figure.axes[0].lines if each.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def bands(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """The lowest and highest points of each filled band, from left to right."""
    found = []
    for collection in axes.collections:
        points: dict[float, list[float]] = {}
        for x, y in np.asarray(collection.get_paths()[0].vertices):
            points.setdefault(float(x), []).append(float(y))
        found.append(([min(points[x]) for x in sorted(points)], [max(points[x]) for x in sorted(points)]))
    return found


def validations(run: History) -> list[dict[str, Any]]:
    return [each for each in run.evaluations if each["split"] == "validation"]


def test_validation_is_the_mean_and_the_range_over_seeds() -> None:
    runs = [made(seed=seed) for seed in range(3)]
    found = drawn(runs, "convergence")
    values = np.array([[each["value"] for each in validations(run)] for run in runs])
    for along in ("sequences", "updates", "seconds"):
        picture = found[f"convergence_{along}"]
        x, y = line(picture, "fptt")
        places = np.array([[each[along] for each in validations(run)] for run in runs])
        np.testing.assert_allclose(y, values.mean(0), rtol=1e-14)
        np.testing.assert_allclose(x, places.mean(0), rtol=1e-14)
        ((low, high),) = bands(picture.figure.axes[0])
        np.testing.assert_allclose(low, values.min(0), rtol=1e-14)
        np.testing.assert_allclose(high, values.max(0), rtol=1e-14)
        assert "from their smallest to their largest" in picture.caption


def test_one_seed_has_no_band() -> None:
    picture = drawn([made()], "convergence")["convergence_sequences"]
    assert not picture.figure.axes[0].collections
    assert "no band" in picture.caption
    bptt = [made(algorithm="bptt", windows=1, seed=seed) for seed in range(2)]
    mixed = drawn([made(), *bptt], "convergence")
    assert len(mixed["convergence_sequences"].figure.axes[0].collections) == 1
    assert "none where there is one run" in mixed["convergence_sequences"].caption


def test_repetitions_of_a_seed_are_said() -> None:
    for seed, said in ((0, True), (1, False)):
        picture = drawn([made("a"), made("b", seed=seed)], "convergence")["convergence_sequences"]
        assert ("same seed" in picture.caption) == said


FIELDS: dict[str, Callable[[dict[str, Any]], float]] = {
    "convergence_training": lambda record: record["window_losses"][-1],
    "fptt_center_distance": lambda record: record["center_distance"],
    "fptt_dual_norm": lambda record: record["dual_norm"],
    "fptt_regularizer_ratio": lambda record: record["regularizer_ratio"],
    "consensus_drift": lambda record: record["drift"],
    "consensus_blocked": lambda record: record["blocked_share"],
    "speed_throughput": lambda record: record["sequences_per_second"],
    "speed_data_wait": lambda record: record["data_wait"],
}


def test_a_line_is_the_records_field() -> None:
    for task, fields in (None, FIELDS), ({"name": "copying"}, {"convergence_training": lambda record: record["loss"]}):
        run = made(workers=2, task=task)
        found = drawn([run])
        lines = {name: [each.tolist() for each in line(found[name], "fptt")] for name in fields}
        places = [record["sequences"] for record in run.training]
        assert lines == {name: [places, list(map(value, run.training))] for name, value in fields.items()}


def test_bytes_are_summed_and_shown_in_their_unit() -> None:
    run = made(workers=2)
    picture = drawn([run], "consensus")["consensus_bytes"]
    _, y = line(picture, "fptt")
    np.testing.assert_allclose(y * 1024, np.cumsum([record["bytes_sent"] for record in run.training]), rtol=1e-14)
    assert y[-1] * 1024 == pytest.approx(run.bytes_sent)
    assert picture.figure.axes[0].get_ylabel() == "sent by rank 0 (KiB)"


def test_long_times_are_shown_in_their_unit() -> None:
    for scale, unit, size in ((1.0, "s", 1.0), (100.0, "min", 60.0), (2000.0, "h", 3600.0)):
        run = made()
        for each in run.evaluations:
            each["seconds"] *= scale
        picture = drawn([run], "convergence")["convergence_seconds"]
        assert picture.figure.axes[0].get_xlabel() == f"training time ({unit})"
        x, _ = line(picture, "fptt")
        np.testing.assert_allclose(x * size, [each["seconds"] for each in validations(run)], rtol=1e-14)


@settings(max_examples=30)
@given(st.integers(1, 5 * BLOCKS + 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_point_is_the_mean_of_its_block(records: int, seeds: int, random: Any) -> None:
    values = np.array([[random.uniform(-1, 1) for _ in range(records)] for _ in range(seeds)])
    runs = [
        History(
            NONE.path,
            NONE.config,
            [{"batch": 5 * b, "sequences": 7 * b, "v": float(value)} for b, value in enumerate(row)],
            [],
            None,
        )
        for row in values
    ]
    found = curve(Group("x", runs), field("v"))
    assert found is not None
    assert len(found.x) <= BLOCKS
    assert records <= found.block * len(found.x) < records + found.block  # all blocks are full but the last
    parts = np.split(np.arange(records), range(found.block, records, found.block))
    means = np.array([[row[part].mean() for part in parts] for row in values])
    np.testing.assert_allclose(found.x, [7 * part.mean() for part in parts], rtol=1e-12)
    np.testing.assert_allclose(found.mean, means.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.low, means.min(0), atol=1e-12)
    np.testing.assert_allclose(found.high, means.max(0), atol=1e-12)
    assert found.seeds == seeds


def test_a_long_run_makes_a_small_picture() -> None:
    picture = drawn([made(records=10_000)], "convergence")["convergence_training"]
    assert "mean of up to 100 consecutive records" in picture.caption
    file = io.BytesIO()
    picture.figure.savefig(file, format="svg")
    assert len(file.getvalue()) < 100_000


def test_a_running_run_counts_as_far_as_it_is() -> None:
    whole, part = made(seed=0, evaluations=5), made(seed=1, evaluations=2)
    part = History(part.path, part.config, part.training[:8], part.evaluations, None)
    picture = drawn([whole, part], "convergence")["convergence_sequences"]
    _, y = line(picture, "fptt")
    one, two = ([each["value"] for each in validations(run)] for run in (whole, part))
    expected = [(one[0] + two[0]) / 2, (one[1] + two[1]) / 2, *one[2:]]
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    assert "it has not come so far" in picture.caption


def test_what_is_not_finite_is_left_out_and_said() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        run = made()
        run.evaluations[2]["value"] = bad
        run.training[3]["window_losses"][-1] = bad
        found = drawn([run], "convergence", "windows", "fptt")
        _, y = line(found["convergence_sequences"], "fptt")
        assert y.tolist() == [each["value"] for each in validations(run) if math.isfinite(each["value"])]
        for name in ("convergence_sequences", "convergence_training", "windows_losses"):
            assert "not finite are left out: 1 of them" in found[name].caption, (bad, name)
        assert "not finite" not in found["fptt_dual_norm"].caption


def test_nothing_is_drawn_without_data() -> None:
    assert pictures([]) == []
    assert drawn([NONE]) == {}
    bare = History(NONE.path, NONE.config, [{"kind": "train", "batch": 1}], [], None)
    assert drawn([bare]) == {}


def test_each_picture_has_its_own_reason() -> None:
    convergence = {f"convergence_{name}" for name in ("sequences", "updates", "seconds", "training")}
    speed = {"speed_throughput", "speed_data_wait", "speed_memory_cpu"}
    assert drawn([made(algorithm="bptt", windows=1)]).keys() == convergence | speed
    assert drawn([made(algorithm="tbptt")]).keys() == convergence | speed | {"windows_losses"}
    assert drawn([made(algorithm="bptt", windows=1, evaluations=0)]).keys() == {"convergence_training"} | speed
    whole = drawn([made(workers=2)])
    assert whole.keys() - convergence - speed == {
        "windows_losses",
        "fptt_center_distance",
        "fptt_dual_norm",
        "fptt_regularizer_ratio",
        "consensus_drift",
        "consensus_bytes",
        "consensus_blocked",
    }
    sections = [picture.section for picture in whole.values()]
    assert list(dict.fromkeys(sections)) == ["Convergence", "Windows", "FPTT", "Consensus", "Speed"]


def test_dual_and_force_are_those_of_runs_with_a_force() -> None:
    found = drawn([made(), made(algorithm="tbptt")], "fptt")
    assert [each.get_label() for each in found["fptt_center_distance"].figure.axes[0].lines] == ["fptt", "tbptt"]
    for name in ("fptt_dual_norm", "fptt_regularizer_ratio"):
        assert [each.get_label() for each in found[name].figure.axes[0].lines] == ["fptt"]


def test_two_tasks_or_metrics_never_share_axes() -> None:
    images = {"name": "pixels", "dataset": "mnist"}
    runs = [made(), made(task=images, metric="accuracy"), made(algorithm="bptt", task=images, metric="accuracy")]
    found = drawn(runs, "convergence")
    assert {name for name in found if name.startswith("convergence_sequences")} == {
        "convergence_sequences_adding_mse",
        "convergence_sequences_pixels_mnist_accuracy",
    }
    adding, pixels = (found[f"convergence_sequences_{name}"] for name in ("adding_mse", "pixels_mnist_accuracy"))
    assert "Lower is better" in adding.caption
    assert "Higher is better" in pixels.caption
    assert (adding.figure.axes[0].get_yscale(), pixels.figure.axes[0].get_yscale()) == ("log", "linear")
    assert len(pixels.figure.axes[0].lines) == 2
    assert len(adding.figure.axes[0].lines) == 2  # with the line of always predicting the mean


def many() -> Iterator[History]:
    for place in range(12):
        yield made(alpha=0.1 * (place + 1), workers=2)


def test_a_group_looks_the_same_everywhere() -> None:
    runs = [*many(), made(algorithm="bptt", windows=1), made(algorithm="tbptt")]
    looks: dict[str, set[tuple[Any, ...]]] = {}
    for picture in pictures(group_runs(runs)):
        for axes in picture.figure.axes:
            for each in axes.lines:
                style = (to_hex(each.get_color()).upper(), each.get_linestyle(), each.get_marker())
                looks.setdefault(str(each.get_label()), set()).add(style)
    del looks["always predicting the mean"]
    assert looks.keys() == {group.label for group in group_runs(runs)}
    assert all(len(styles) == 1 for styles in looks.values())
    assert len(set.union(*looks.values())) == len(looks)
    assert {style[0] for styles in looks.values() for style in styles} == set(COLORS)


def test_a_hundred_groups_still_look_different() -> None:
    looks = [each.style for each in styled([Group(str(place), [NONE]) for place in range(100)])]
    assert len({(style.color, style.line, style.marker) for style in looks}) == 100


@pytest.mark.filterwarnings("error")
def test_every_picture_is_labelled_and_nothing_is_cut_off() -> None:
    """Of one short run, and of many."""
    for picture in [*pictures(group_runs([made(records=1, evaluations=1)])), *pictures(group_runs([*many()]))]:
        figure = picture.figure
        assert picture.caption.endswith(".")
        assert picture.title
        for axes in figure.axes:
            if axes.axison and axes.has_data() and picture.section != "Windows":
                assert axes.get_xlabel()
                assert axes.get_ylabel()
        figure.draw_without_rendering()
        whole, hidden = figure.bbox, texts_of_hidden_ticks(figure)
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            box = text.get_window_extent()
            if text.get_visible() and text.get_text() and text not in hidden:
                assert box.x0 >= whole.x0 - 1, (picture.name, text.get_text())
                assert box.x1 <= whole.x1 + 1, (picture.name, text.get_text())
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.y0 >= whole.y0 - 1
            for axes in figure.axes:
                inside = axes.get_tightbbox()
                assert inside is not None
                assert box.y1 <= inside.y0 + 1  # below the axes, over nothing


def texts_of_hidden_ticks(figure: Figure) -> set[Text]:
    """Ticks outside the limits keep texts that are not drawn."""
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    return hidden


def test_a_label_with_dollars_is_no_equation() -> None:
    (group,) = group_runs([made()])
    (picture, *_) = pictures([Group("fptt text=$a_b$", group.runs)])
    picture.figure.draw_without_rendering()
    (text,) = picture.figure.legends[0].get_texts()[:1]
    assert text.get_text() == r"fptt text=\$a_b\$"


def test_numbers_are_short() -> None:
    texts = {0.0: "0", 0.05: "0.05", 200.0: "200", 2500.0: "2.5k", 20_000.0: "20k", 1e6: "1M", -3e9: "-3G"}
    assert {value: number(value) for value in texts} == texts


def test_a_first_value_far_below_the_others_does_not_press_them_together() -> None:
    run = made()
    run.training[0]["center_distance"] = 1e-9
    picture = drawn([run], "fptt")["fptt_center_distance"]
    low, high = picture.figure.axes[0].get_ylim()
    assert 0.1 < low < 1.0 < 2.0 < high * 1.1
    assert "first value" in picture.caption
    assert "first value" not in drawn([made()], "fptt")["fptt_center_distance"].caption
