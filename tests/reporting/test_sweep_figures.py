"""The pictures of a sweep: what stands in them, not how they look."""

import math
from pathlib import Path

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from fptt_dist.reporting import SweepResults, TrialRow, read_sweep
from fptt_dist.reporting.plots.palette import COLORS
from fptt_dist.reporting.runs.groups import short_names as short
from fptt_dist.reporting.sweeps.figures import curves_figure, draw_curves, draw_heatmap, draw_sweep
from fptt_dist.reporting.sweeps.heatmap import heatmap_figure
from fptt_dist.reporting.sweeps.scale import scale
from tests.reporting.sweeps import make_sweep, note, run

ALPHA, WINDOWS = "fptt.alpha", "fptt.windows"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> SweepResults:
    """3 × 2 points, some of which came to nothing, and the default."""
    sweep = make_sweep(tmp_path_factory.mktemp("sweeps") / "grid", [WINDOWS, ALPHA, "train.max_norm", "seed"])
    run(sweep, 0, {"seed": 0}, (0.9, 0.5), default=True)
    run(sweep, 1, {"seed": 1}, (0.9, 0.7), default=True)
    run(sweep, 2, {ALPHA: 0.1, WINDOWS: 3, "train.max_norm": 1.0, "seed": 0}, (0.9, 0.2))
    run(sweep, 3, {ALPHA: 0.1, WINDOWS: 3, "train.max_norm": 2.0, "seed": 0}, (0.9, 0.01))
    run(sweep, 4, {ALPHA: 0.1, WINDOWS: 4, "seed": 0}, (0.3,), finished=False, state="stopped")
    run(sweep, 5, {ALPHA: 2.0, WINDOWS: 3, "seed": 0}, (0.8,), finished=False, state="failed", message="nan")
    run(sweep, 6, {ALPHA: 2.0, WINDOWS: 4, "seed": 0}, (math.nan,))
    note(sweep, 7, {ALPHA: 0.5, WINDOWS: 4, "seed": 0})
    return read_sweep(sweep)


def texts(figure: Figure | None) -> dict[str, tuple[float, float]]:
    """The texts within the axes, and where they are."""
    assert figure is not None
    return {text.get_text(): text.get_position() for text in figure.axes[0].texts}


def ticks(figure: Figure | None, which: str) -> list[str]:
    assert figure is not None
    axis = figure.axes[0].xaxis if which == "x" else figure.axes[0].yaxis
    return [label.get_text() for label in axis.get_ticklabels()]


def legend(figure: Figure | None) -> list[str]:
    assert figure is not None
    found = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    return [text.get_text() for each in found for text in each.get_texts()]


def trial(index: int, values: dict[str, object], value: float | None, curve: list[tuple[int, float]]) -> TrialRow:
    return TrialRow(
        index=index,
        path=Path(f"{index:03d}"),
        default=index == 0,
        overrides=values,
        values=values,
        state="finished",
        value=value,
        test=value,
        batch=10,
        batches=10,
        best_batch=10,
        updates=30,
        sequences=40,
        seconds=1.0,
        bytes_sent=0,
        message="",
        curve=curve,
    )


def results_of(trials: list[TrialRow], *, metric: str = "mse", higher: bool = False) -> SweepResults:
    varying = list(trials[0].values)
    asked = {"metric": metric, "higher_is_better": higher, "varying": varying, "search": {"name": "grid"}}
    return SweepResults(Path("sweep"), asked, "adding", trials)


def test_the_cells(grid: SweepResults) -> None:
    figure = heatmap_figure(grid)
    assert figure is not None
    assert (ticks(figure, "x"), ticks(figure, "y")) == (["0.1", "0.5", "2.0"], ["3", "4"])
    # Mean over the seeds (0.6), best over the other keys (0.01).
    expected = {"0.01": (0, 0), "0.3*": (0, 1), "0.6": (1, 0), "waiting": (1, 1), "failed": (2, 0), "nan": (2, 1)}
    assert texts(figure) == expected
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (ALPHA, WINDOWS)
    assert axes.get_title() == "adding: validation mse\n* not trained to the end"
    hatched = {tuple(patch.get_xy()) for patch in axes.patches if patch.get_hatch()}  # pyright: ignore
    assert hatched == {(0.5, 0.5), (1.5, -0.5), (1.5, 0.5)}
    assert figure.axes[1].get_ylabel() == "validation mse (the better, the darker)"
    assert figure.axes[1].get_yscale() == "log"


def test_two_keys_of_which_one_is_text() -> None:
    values = [("fptt", 0.1), ("tbptt", 0.5), ("fptt", 0.5)]
    trials = [
        trial(index, {"algorithm": name, "optimizer.lr": lr, ALPHA: 1.0}, 0.9 - index / 10, [])
        for index, (name, lr) in enumerate(values)
    ]
    figure = heatmap_figure(results_of(trials, metric="accuracy", higher=True))
    assert (ticks(figure, "x"), ticks(figure, "y")) == (["fptt", "tbptt"], ["0.1", "0.5"])
    assert texts(figure) == {"0.9": (0, 0), "0.8": (1, 1), "0.7": (0, 1)}
    assert figure is not None
    assert figure.axes[0].get_title() == "adding: validation accuracy"
    assert figure.axes[1].get_yscale() == "linear"
    darkness = {tuple(patch.get_xy()): sum(patch.get_facecolor()[:3]) for patch in figure.axes[0].patches}  # pyright: ignore
    assert darkness[-0.5, -0.5] < darkness[0.5, 0.5] < darkness[-0.5, 0.5]


def test_many_values_are_dots() -> None:
    trials = [trial(index, {ALPHA: 0.001 * 1.5**index, WINDOWS: index}, 0.1 + index, []) for index in range(1, 14)]
    trials.append(trial(14, {ALPHA: 0.5, WINDOWS: None}, 0.5, []))
    trials.append(trial(15, {ALPHA: 0.5, WINDOWS: 7}, None, []))
    figure = heatmap_figure(results_of(trials))
    assert figure is not None
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    finished, without = axes.collections
    places = {tuple(float(number) for number in place) for place in finished.get_offsets()}  # pyright: ignore
    assert places == {(row.values[ALPHA], row.values[WINDOWS]) for row in trials[:13]}
    assert len(without.get_offsets()) == 1  # pyright: ignore
    assert legend(figure) == ["finished", "no value"]
    assert axes.get_title() == "adding: validation mse\n1 left out, with a key unset"


def test_no_heatmap_of_one_key(tmp_path: Path) -> None:
    for varying in ([ALPHA], [ALPHA, "seed"]):
        stale = tmp_path / "heatmap.png"
        stale.write_text("old")
        results = results_of([trial(0, dict.fromkeys(varying, 1), 0.5, [])])
        assert draw_heatmap(results, tmp_path) is None
        assert not stale.exists()


SCALES: list[tuple[list[object], bool, bool]] = [
    ([1, 2, 3], True, False),
    ([0.01, 0.1, 1.0], True, True),
    ([0.0, 50.0, 100.0], True, False),
    ([3], True, False),
    ([7, None, 14], True, False),
    (["sgd", "adam", None], False, False),
    ([True, False], False, False),
    ([None], False, False),
    ([[1, 2], 3], False, False),
]


def test_scales() -> None:
    for values, numeric, log in SCALES:
        found = scale("key", values)
        assert (found.numeric, found.log) == (numeric, log), values
        assert sorted(map(found.index, values)) == list(range(len(values)))


def test_the_curves(grid: SweepResults) -> None:
    figure = curves_figure(grid)
    assert figure is not None
    axes = figure.axes[0]
    assert legend(figure) == [
        "windows=3 alpha=0.1 max_norm=2.0",
        "windows=3 alpha=0.1 max_norm=1.0",
        "windows=3 alpha=0.5 max_norm=1.0 (default)",
        "the other 2",
    ]
    best = [line for line in axes.lines if line.get_color() == COLORS[0]]
    assert [list(map(tuple, line.get_xydata())) for line in best] == [[(40.0, 0.9), (80.0, 0.01)]]  # pyright: ignore
    assert [line.get_linestyle() for line in axes.lines if line.get_color() == COLORS[2]] == ["--", "--"]
    assert len(axes.lines) == 6
    assert axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training sequences", "validation mse")


def test_the_default_is_dashed_where_it_is_not_among_the_best() -> None:
    trials = [trial(index, {ALPHA: index}, float(9 - index), [(1, 9.0), (2, 9.0 - index)]) for index in range(6)]
    figure = curves_figure(results_of(trials, metric="accuracy"))
    assert legend(figure) == ["alpha=5", "alpha=4", "alpha=3", "alpha=0 (default)", "the other 2"]
    assert figure is not None
    (default,) = [line for line in figure.axes[0].lines if to_rgba(line.get_color()) == to_rgba("black")]
    assert default.get_linestyle() == "--"
    assert figure.axes[0].get_yscale() == "linear"


def test_short_names() -> None:
    assert short([ALPHA, WINDOWS, "seed"]) == {ALPHA: "alpha", WINDOWS: "windows", "seed": "seed"}
    both = ["fptt.schedule.name", "schedule.name", ALPHA]
    assert short(both) == {both[0]: both[0], both[1]: both[1], ALPHA: "alpha"}


def test_pictures_are_png(grid: SweepResults, tmp_path: Path) -> None:
    pictures = draw_sweep(grid, tmp_path / "figures")
    assert [picture.name for picture in pictures] == ["heatmap.png", "curves.png"]
    sizes = {}
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
            assert image.format == "PNG"
            sizes[picture.name] = image.size
    assert sizes == {"heatmap.png": (1200, 800), "curves.png": (1600, 1000)}


def test_one_trial(tmp_path: Path) -> None:
    every = [[], [ALPHA], [ALPHA, WINDOWS]]
    rows = [(0.5, every[0]), (0.0, every[1]), (0.0, every[2])]
    rows += [(value, keys) for value in (math.nan, math.inf, None) for keys in every]
    for number, (value, keys) in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = results_of([trial(0, dict.fromkeys(keys, 1), value, [] if value is None else [(4, value)])])
        good = value is not None and math.isfinite(value)
        drawn = [draw(results, folder) is not None for draw in (draw_curves, draw_heatmap)]
        assert drawn == [good, good and len(keys) == 2], (value, keys)
        assert len(list(folder.iterdir())) == sum(drawn)


def test_nothing_at_all(tmp_path: Path) -> None:
    assert draw_sweep(read_sweep(make_sweep(tmp_path, [ALPHA, WINDOWS])), tmp_path / "figures") == []


def test_a_hundred_trials(tmp_path: Path) -> None:
    trials = [
        trial(
            index,
            {ALPHA: 0.001 * 1.06**index, WINDOWS: index % 28 + 1, "algorithm": "fptt" if index % 2 else "tbptt"},
            math.nan if index % 7 == 0 else 0.1 + index % 50,
            [(4 * step, 100.0 / step + index) for step in range(1, 11)],
        )
        for index in range(100)
    ]
    results = results_of(trials)
    assert len(draw_sweep(results, tmp_path)) == 2
    assert len(legend(curves_figure(results))) == 5
    figure = heatmap_figure(results)
    assert figure is not None
    assert sum(len(each.get_offsets()) for each in figure.axes[0].collections) == 100  # pyright: ignore
