"""Every cell with every algorithm: what the lines say, what counts as help, and what is drawn."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.reporting import PaperRow, draw_grid, grid_table
from fptt_dist.reporting.html.paper import is_paper_table, read_paper_table
from fptt_dist.reporting.paper.grid import what_helps
from fptt_dist.reporting.paper.grid_figure import grid_figure
from tests.reporting.paper import make_run, table_of


def row(folder: Path, label: str, column: str, values: list[float], **more: Any) -> PaperRow:
    heading, more = more.pop("heading", ""), {**more}
    runs = [make_run(folder / f"{label}-{column}-{n}", value, **more) for n, value in enumerate(values)]
    return PaperRow(label=label, column=column, heading=heading, runs=runs)


def three(folder: Path, label: str, bptt: list[float], tbptt: list[float], fptt: list[float], **more: Any) -> Any:
    found = {"bptt": bptt, "tbptt": tbptt, "fptt": fptt}
    return {name: row(folder, label, name, values, **more) for name, values in found.items()}


def lines(text: str) -> dict[str, list[str]]:
    found = [line.strip("|").strip().split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in found}


WINS, EVEN, LOSES = [0.90, 0.91, 0.92], [0.89, 0.91, 0.93], [0.50, 0.51, 0.52]


HELPS = [
    (LOSES, LOSES, WINS, "the regularizer"),
    (WINS, LOSES, WINS, "the regularizer"),
    (LOSES, WINS, WINS, "windows"),
    (LOSES, WINS, LOSES, "windows"),
    (LOSES, EVEN, WINS, "windows"),
    (WINS, LOSES, LOSES, "BPTT"),
    ([0.98, 0.99, 1.0], LOSES, WINS, "BPTT"),
    (WINS, EVEN, LOSES, "–"),
    (WINS, WINS, EVEN, "–"),
    ([0.1], WINS, WINS, "–"),
    ([float("nan")] * 3, WINS, WINS, "–"),
]


def test_what_helps(tmp_path: Path) -> None:
    accuracy, error = {}, {}
    for number, (*values, _) in enumerate(HELPS):
        accuracy[number] = what_helps(three(tmp_path / f"accuracy{number}", "lem", *values))
        turned = ([1 - value for value in each] for each in values)
        error[number] = what_helps(three(tmp_path / f"error{number}", "lem", *turned, metric="mse"))
    assert accuracy == error == {number: said for number, (*_, said) in enumerate(HELPS)}


def test_two_standard_errors_count(tmp_path: Path) -> None:
    # Two seeds each, variance 0.0002: the error of a difference is sqrt(2 · 0.0002 / 2) = 0.01414.
    def seeds(mean: float) -> list[float]:
        return [mean - 0.01, mean + 0.01]

    for name, gap, said in (("more", 0.0284, "windows"), ("less", 0.0282, "–")):
        rows = three(tmp_path / name, "gru", seeds(0.5), seeds(0.5 + gap), seeds(0.5))
        assert what_helps(rows) == said


def test_a_difference_that_nobody_would_notice_does_not_count(tmp_path: Path) -> None:
    chance = [[0.1661, 0.1662, 0.1663], [0.1651, 0.1652, 0.1653], [0.1661, 0.1662, 0.1663]]
    assert what_helps(three(tmp_path / "error", "gru", *chance, metric="mse")) == "–"
    alike = [[0.900, 0.901, 0.902], [0.904, 0.905, 0.906], [0.900, 0.901, 0.902]]
    assert what_helps(three(tmp_path / "accuracy", "gru", *alike)) == "–"


def test_a_line_a_cell(tmp_path: Path) -> None:
    one = three(tmp_path, "lem", [0.5, 0.6], [0.9], [0.7, 0.8], heading="images")
    one["tbptt"].runs.append(tmp_path / "nothing")
    other = {"bptt": row(tmp_path, "trellis", "bptt", [0.25])}
    rows = [PaperRow(**{**vars(r), "heading": "images" if n == 0 else ""}) for n, r in enumerate([*one.values()])]
    text = grid_table(table_of(*rows, *other.values(), notes=["a note"]))
    assert lines(text) == {
        "cell": ["parameters", "bptt", "tbptt", "fptt", "what helps"],
        "---": ["---"] * 5,
        "**images**": lines(text)["**images**"],
        "lem": ["103,690", "55.00 ± 7.07 (2)", "90.00 (1)", "75.00 ± 7.07 (2)", "–"],
        "trellis": ["103,690", "25.00 (1)", "–", "–", "–"],
    }
    assert "\n- A note.\n" in text
    assert "Clearly: by more than two standard errors" in text
    file = tmp_path / "cells.md"
    file.write_text(text)
    assert is_paper_table(file)
    written = read_paper_table(file)
    assert written.columns[0] == "cell"
    assert written.rows[0] == ["images"]
    assert written.rows[1][0] == "lem"


CURVES = {
    "at once": ([(10, 0.04), (20, 0.009)], "< 0.05 from 10; < 0.01 from 20"),
    "not for good": ([(10, 0.04), (20, 0.2), (30, 0.03)], "< 0.05 from 30; < 0.01 not"),
    "lost again": ([(10, 0.04), (20, 0.2)], "< 0.05 not; < 0.01 not"),
    "never looked": ([], "< 0.05 not; < 0.01 not"),
}


def test_an_error_says_when_it_stays_small(tmp_path: Path) -> None:
    found = {}
    for name, (curve, _) in CURVES.items():
        only = row(tmp_path / name, "ltc", "fptt", [0.02], metric="mse", curve=curve)
        found[name] = lines(grid_table(table_of(only)))["ltc"][1]
    assert found == {name: f"0.0200 (1); {said}" for name, (_, said) in CURVES.items()}


def test_the_median_over_the_seeds(tmp_path: Path) -> None:
    curves = [[(10, 0.2), (20, 0.01)], [(10, 0.2), (20, 0.2), (30, 0.02)], [(10, 0.2), (20, 0.2)]]
    runs = [make_run(tmp_path / str(n), 0.02, metric="mse", curve=curve) for n, curve in enumerate(curves)]
    text = grid_table(table_of(PaperRow(label="ltc", column="fptt", runs=runs)))
    assert lines(text)["ltc"][1] == "0.0200 ± 0 (3); < 0.05 from 30; < 0.01 not"


def test_the_picture(tmp_path: Path) -> None:
    good, bad = (three(tmp_path, name, [v, v + 0.1], [v], [v]) for name, v in (("good", 0.8), ("bad", 0.3)))
    error = three(tmp_path, "ltc", [0.1], [0.01], [0.001], metric="mse")
    rows = [*bad.values(), *good.values(), *error.values()]
    rows[0] = PaperRow(**{**vars(rows[0]), "heading": "images"})
    rows[6] = PaperRow(**{**vars(rows[6]), "heading": "sums"})
    unfinished = PaperRow(label="not", column="fptt", heading="nothing", runs=[tmp_path / "not"])
    figure = grid_figure(table_of(*rows, unfinished))
    assert figure is not None
    images, sums = (axes for axes in figure.axes if axes.get_visible())
    assert (images.get_title(), sums.get_title()) == ("images", "sums")
    assert [tick.get_text() for tick in images.get_yticklabels()] == ["bad", "good"], "the best above"
    assert (images.get_xscale(), sums.get_xscale()) == ("linear", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bptt", "tbptt", "fptt"]
    bars: list[Any] = list(images.containers)
    assert [bar.get_label() for bar in bars] == ["bptt", "tbptt", "fptt"]
    assert bars[0].lines[0].get_xdata().tolist() == pytest.approx([0.35, 0.85])
    assert draw_grid(table_of(*rows), tmp_path / "cells.png") is not None
    assert draw_grid(table_of(unfinished), tmp_path / "cells.png") is None
    assert not (tmp_path / "cells.png").exists()
