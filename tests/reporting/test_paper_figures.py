"""The paper's figures: what stands in them, not how they look."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from fptt_dist.reporting import NOT_FINITE, PaperRow, draw_alpha, draw_curves
from fptt_dist.reporting.paper.figures import alpha_figure, curves_figure
from fptt_dist.reporting.plots.series import BLOCKS
from tests.reporting.paper import make_run, table_of

SGD = {"optimizer.name": "sgd", "optimizer.lr": 2.0, "optimizer.momentum": 0.9}


def curve_row(tmp_path: Path, label: str, length: int, *seeds: list[tuple[int, float]], **more: Any) -> PaperRow:
    runs = [
        make_run(
            tmp_path / f"{label}{length}-{seed}",
            0.1,
            overrides={"task.length": length, **more},
            metric="mse",
            curve=points,
            losses=[(batch, [9.0, value / 2]) for batch, value in points],
        )
        for seed, points in enumerate(seeds)
    ]
    return PaperRow(label=label, runs=runs)


def points(axes: Axes, number: int) -> list[tuple[float, ...]]:
    return [tuple(map(float, point)) for point in axes.lines[number].get_xydata()]  # pyright: ignore


def curves_of(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return figure.axes


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_a_panel_pair_a_length_and_the_mean_of_the_seeds(tmp_path: Path) -> None:
    rows = [
        curve_row(tmp_path, "BPTT", 750, [(2, 0.2), (4, 0.2)]),
        curve_row(tmp_path, "FPTT", 750, [(2, 0.2), (4, 0.1)], [(2, 0.4), (4, 0.3), (6, 0.2)]),
        curve_row(tmp_path, "FPTT", 1000, [(2, 0.3)]),
    ]
    panels = curves_of(curves_figure(table_of(*rows)))
    assert [axes.get_title() for axes in panels] == ["adding, 750 steps"] * 2 + ["adding, 1000 steps"] * 2
    assert [axes.get_ylabel() for axes in panels[:2]] == ["training loss, last window", "validation mse"]
    assert {axes.get_xlabel() for axes in panels} == {"batches of 4 sequences"}
    assert {axes.get_yscale() for axes in panels} == {"log"}
    assert points(panels[1], 0) == [(2, 0.2), (4, 0.2)]
    assert [batch for batch, _ in points(panels[1], 1)] == [2, 4, 6]
    assert [value for _, value in points(panels[1], 1)] == pytest.approx([0.3, 0.2, 0.2])
    assert [value for _, value in points(panels[0], 1)] == pytest.approx([0.15, 0.1, 0.1])
    assert [labels(axes) for axes in panels] == [[], ["BPTT", "FPTT"], [], ["FPTT"]]
    # The band of the row with two seeds alone, from the smallest to the largest.
    (band,) = panels[1].collections
    heights = {tuple(map(float, vertex)) for vertex in band.get_paths()[0].vertices}  # pyright: ignore
    assert {(2.0, 0.2), (2.0, 0.4), (4.0, 0.1), (4.0, 0.3)} <= heights
    assert len(panels[3].collections) == 0
    # Always predicting the mean.
    assert points(panels[3], 1)[0][1] == pytest.approx(1 / 6)


def test_many_records_are_means_of_blocks(tmp_path: Path) -> None:
    values = [(batch, 1.0 + batch % 2) for batch in range(1, 10 * BLOCKS + 1)]
    axes = curves_of(curves_figure(table_of(curve_row(tmp_path, "FPTT", 500, values))))[0]
    found = points(axes, 0)
    assert [batch for batch, _ in found] == list(range(10, 10 * BLOCKS + 1, 10))
    assert {value for _, value in found} == {0.75}


def test_eleven_curves_are_told_apart(tmp_path: Path) -> None:
    rows = [curve_row(tmp_path, f"K = {k}", 200, [(2, 0.1 * k)]) for k in range(1, 12)]
    axes = curves_of(curves_figure(table_of(*rows)))[1]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines[:11]}
    assert len(styles) == 11
    assert labels(axes) == [row.label for row in rows]


def test_runs_that_are_not_there_leave_no_curve(tmp_path: Path) -> None:
    begun = make_run(tmp_path / "begun", overrides={"task.length": 50})
    rows = [PaperRow(label="gone", runs=[tmp_path / "gone"]), PaperRow(label="begun", runs=[begun, tmp_path / "x"])]
    axes = curves_of(curves_figure(table_of(*rows)))[1]
    assert labels(axes) == ["begun"]
    assert draw_curves(table_of(rows[0]), tmp_path / "none.png") is None
    assert draw_alpha(table_of(rows[0]), tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def alpha_row(
    tmp_path: Path,
    alpha: float,
    *values: float | None,
    paper: str | None = None,
    optimizer: dict[str, Any] = SGD,
    update_rule: str = "gradient",
) -> PaperRow:
    """Several seeds with that alpha; None: not finite. 0 is the algorithm tbptt."""
    own = {
        **optimizer,
        "fptt.update_rule": update_rule,
        **({"fptt.alpha": alpha} if alpha > 0 else {"algorithm": "tbptt"}),
    }
    runs = []
    for seed, value in enumerate(values):
        run = make_run(tmp_path / f"{alpha}-{seed}", value, metric="perplexity", overrides=own)
        if value is None:
            (run / NOT_FINITE).write_text(json.dumps({"batch": 7, "message": ""}))
        runs.append(run)
    return PaperRow(label=f"{alpha}", runs=runs, paper=paper)


def alpha_axes(*rows: PaperRow, **more: Any) -> Axes:
    figure = alpha_figure(table_of(*rows, **more))
    assert figure is not None
    return figure.axes[0]


def legend(axes: Axes) -> list[str]:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_alpha_from_zero_on(tmp_path: Path) -> None:
    rows = [
        alpha_row(tmp_path, 0.5, 100.0, 102.0, paper="106.27"),
        alpha_row(tmp_path, 0.05, 110.0),
        alpha_row(tmp_path, 0.0, 115.0),
        alpha_row(tmp_path, 1.0, 900.0),
        alpha_row(tmp_path, 0.8, None, None),
    ]
    axes = alpha_axes(*rows)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.05", "0.5", "0.8", "1"]
    test = points(axes, 0)
    assert test[:3] == [(0, 115), (1, 110), (2, 101)]
    assert all(math.isnan(value) for _, value in test[3:]), "off the scale, or not finite"
    said = {text.get_text(): text.xy[0] for text in axes.texts}  # pyright: ignore
    assert said == {"▲\nnot\nfinite": 3, "▲\n900": 4}
    assert axes.get_ylim()[1] < 250
    (band,) = [each for each in axes.collections if isinstance(each, LineCollection)][:1]
    assert [list(map(tuple, each)) for each in band.get_segments()][2] == [(2.0, 100.0), (2.0, 102.0)]
    # (1 + m)(4 − 3β) / (1 + (2 − 3β)) at β = ½ and m = 0.9, and the learning rate 2: past the largest alpha, 1.
    limit = 1.9 * 2.5 / 1.5 / 2.0
    label = f"limit of the explicit regularizer alone, α = {limit:.3g}"
    assert legend(axes) == ["test", "validation", "the paper", label]
    (line,) = [each for each in axes.lines if each.get_linestyle() == "--"]
    assert 4 < line.get_xdata()[0] < axes.get_xlim()[1]  # pyright: ignore
    (cross,) = [each for each in axes.lines if each.get_marker() == "x"]
    assert [tuple(map(float, point)) for point in cross.get_xydata()] == [(2.0, 106.27)]  # pyright: ignore
    assert "the paper" not in legend(alpha_axes(*rows, budget="smoke"))


def test_the_limit_stands_among_the_alphas(tmp_path: Path) -> None:
    expected = {20.0: 1 + math.log(0.15833 / 0.05) / math.log(10), 400.0: 0.5, 0.1: 2.6}
    found = {}
    for lr in expected:
        optimizer = {**SGD, "optimizer.lr": lr}
        rows = [alpha_row(tmp_path / str(lr), alpha, 100.0, optimizer=optimizer) for alpha in (0.0, 0.05, 0.5)]
        (line,) = [each for each in alpha_axes(*rows).lines if each.get_linestyle() == "--"]
        found[lr] = line.get_xdata()[0]  # pyright: ignore
    assert found == pytest.approx(expected, abs=1e-3)


def test_where_no_limit_is_known(tmp_path: Path) -> None:
    adam = alpha_row(tmp_path / "adam", 0.5, 100.0, optimizer={"optimizer.name": "adam"})
    prox = alpha_row(tmp_path / "proximal", 0.5, 100.0, update_rule="proximal")
    assert legend(alpha_axes(adam)) == legend(alpha_axes(prox)) == ["test", "validation"]


def test_one_run(tmp_path: Path) -> None:
    expected = {3.0: set(), math.inf: {"▲\ninf"}, math.nan: {"▲\nnan"}, None: {"▲\nnot\nfinite"}}
    for value, texts in expected.items():
        table = table_of(alpha_row(tmp_path / str(value), 0.5, value))
        picture = draw_alpha(table, tmp_path / str(value) / "new" / "alpha.png")
        assert picture == tmp_path / str(value) / "new" / "alpha.png"
        assert {text.get_text() for text in alpha_axes(*table.rows).texts} == texts


def test_pictures_are_png(tmp_path: Path) -> None:
    curves = table_of(curve_row(tmp_path, "FPTT", 500, [(2, 0.1), (4, 0.0)]))
    alpha = table_of(alpha_row(tmp_path, 0.5, 100.0))
    sizes = []
    for picture in (draw_curves(curves, tmp_path / "curves.png"), draw_alpha(alpha, tmp_path / "alpha.png")):
        assert picture is not None
        with Image.open(picture) as image:
            image.load()
            assert image.format == "PNG"
            sizes.append(image.size)
    assert sizes == [(2200, 800), (1600, 1000)]
