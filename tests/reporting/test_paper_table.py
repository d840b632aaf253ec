"""The paper's rows beside ours: what stands in the cells, and what the figures rest on."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from fptt_dist.reporting import DYNAMIC, NOT_FINITE, PaperRow, paper_table
from fptt_dist.training.run import train
from tests.reporting.paper import make_run, table_of
from tests.training.helpers import result, tiny, train_until

COLUMNS = ["row", "paper", "ours", "validation", "parameters, recurrent / all", "updates", "training time"]


def lines(text: str) -> list[list[str]]:
    """The cells of the table."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.startswith("| ") and line.endswith(" |") for line in found)
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in found]


def cells(*rows: PaperRow) -> list[list[str]]:
    head, rule, *found = lines(paper_table(table_of(*rows)))
    assert head[:3] == COLUMNS[:3]
    assert rule == ["---"] * len(head)
    assert {len(line) for line in found} == {len(head)}
    return found


def below(*rows: PaperRow, **more: Any) -> list[str]:
    return [line[2:] for line in paper_table(table_of(*rows, **more)).splitlines() if line.startswith("- ")]


def test_mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    values = [0.7103, 0.7211, 0.6999]
    runs = [make_run(tmp_path / str(seed), value) for seed, value in enumerate(values)]
    row = PaperRow(label="FPTT", runs=runs, paper="71.03", parameters="67K")
    mean, deviation = 100 * statistics.fmean(values), 100 * statistics.stdev(values)
    assert (f"{mean:.2f}", f"{deviation:.2f}") == ("71.04", "1.06")
    counts = "68,096 / 103,690; paper: 67K"
    assert cells(row) == [["FPTT", "71.03", "71.04 ± 1.06 (3)", "142.09 ± 2.12 (3)", counts, "1,200", "1 min"]]


FIGURES = [
    ("accuracy", [0.98674], "98.67 (1)"),
    ("perplexity", [106.274, 106.276], "106.28 ± 0.00 (2)"),
    ("perplexity", [12345.6], "12345.60 (1)"),
    ("perplexity", [math.inf, 3.0], "inf (2)"),
    ("perplexity", [math.nan], "nan (1)"),
    ("bits_per_character", [1.1651, 1.1849], "1.175 ± 0.014 (2)"),
    ("mse", [0.16667], "0.1667 (1)"),
    ("mse", [0.0008123], "0.00081 (1)"),
    ("a_user_s", [1.23456789], "1.2346 (1)"),
]


def test_the_figures_of_a_metric(tmp_path: Path) -> None:
    found = []
    for number, (metric, values, _) in enumerate(FIGURES):
        runs = [make_run(tmp_path / f"{number}-{seed}", value, metric=metric) for seed, value in enumerate(values)]
        found.append((metric, values, cells(PaperRow(label="row", runs=runs))[0][2]))
    assert found == FIGURES


def test_the_time_is_the_mean_of_the_runs(tmp_path: Path) -> None:
    expected = {3.21: "3.2 s", 61: "1 min", 3540: "59 min", 3599: "1 h 00 min", 9000: "2 h 30 min"}
    found = {}
    for seconds in expected:
        runs = [make_run(tmp_path / f"{seconds}-{part}", 0.5, seconds=seconds * part) for part in (0.5, 1.5)]
        found[seconds] = cells(PaperRow(label="row", runs=runs))[0][6]
    assert found == expected


def test_what_is_not_there_or_not_finished(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    begun = make_run(tmp_path / "begun", losses=[(10, [0.1]), (20, [0.1])], curve=[(15, 0.3)])
    fresh = make_run(tmp_path / "fresh")
    broken, other = make_run(tmp_path / "broken"), make_run(tmp_path / "other")
    for run, batch in ((broken, 12), (other, 31)):
        (run / NOT_FINITE).write_text(json.dumps({"batch": batch, "message": "loss"}))
    done = make_run(tmp_path / "done", 0.5)
    states = [
        ([gone], "not run"),
        ([begun], "not finished (batch 20)"),
        ([fresh, gone], "not finished (batch 0)"),
        ([broken, other, broken], "not finite (batch 12); not finite (batch 31)"),
        ([done, broken, gone], "50.00 (1); not finite (batch 12)"),
    ]
    found = cells(
        *(PaperRow(label=str(number), runs=runs, parameters="67K") for number, (runs, _) in enumerate(states))
    )
    assert [line[2] for line in found] == [expected for _, expected in states]
    assert found[0] == ["0", "–", "not run", "–", "paper: 67K", "–", "–"]
    assert found[4][3] == "100.00 (1)"


def test_dynamic_evaluation_has_its_column(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), value, metric="perplexity") for seed, value in enumerate((60.0, 62.0))]
    for run, value in zip(runs, (50.0, 52.0), strict=True):
        (run / DYNAMIC).write_text(json.dumps({"test": value, "validation": 70.0}))
    late = make_run(tmp_path / "late", 61.0, metric="perplexity")
    rows = [
        PaperRow(label="words", runs=runs, dynamic=True),
        PaperRow(label="late", runs=[late], dynamic=True),
        PaperRow(label="characters", runs=[late]),
        PaperRow(label="none", runs=[tmp_path / "none"], dynamic=True),
    ]
    head, _, *found = lines(paper_table(table_of(*rows)))
    assert head[2:4] == ["ours", "ours, dynamic evaluation"]
    assert [line[3] for line in found] == ["51.00 ± 1.41 (2)", "not run", "–", "not run"]
    assert found[0][2] == "61.00 ± 1.41 (2)"


def test_headings_stand_above_their_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.5)
    found = cells(
        PaperRow(label="a", runs=[run], heading="LSTM"),
        PaperRow(label="b", runs=[run]),
        PaperRow(label="c", runs=[run], heading="GRU"),
    )
    assert [line[0] for line in found] == ["**LSTM**", "a", "b", "**GRU**", "c"]
    assert found[0][1:] == [""] * 6


def test_what_stands_below(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(day), 0.5, day=day) for day in (3, 0)]
    row = PaperRow(label="row", runs=runs)
    assert below(row, budget="smoke", notes=["figures depend on it", "K is 3"]) == [
        "`do it`",
        "Budget smoke: tiny slices; these values show only that the rows run.",
        "fptt_dist 1.2, Python 3.11.1, torch 2.9, GPU: GTX 1080, x86_64, 4 cores.",
        "Finished 2026-03-04 to 2026-03-07.",
        "The test set is evaluated once, at the best validation checkpoint; nothing was chosen on it.",
        "Training time is a run's, without evaluation.",
        "Figures depend on it.",
        "K is 3.",
    ]
    assert "Finished 2026-03-04." in below(PaperRow(label="row", runs=[runs[1]]))
    assert not [line for line in below(PaperRow(label="row", runs=[])) if "Finished" in line]
    text = paper_table(table_of(row))
    assert text.startswith("# Table 9\n\nTest accuracy in %; ours: mean ± standard deviation over seeds")
    assert text.endswith("evaluation.\n")


def test_several_machines_are_all_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / gpu, 0.5, versions={"torch": "2.9", "gpu": gpu}) for gpu in ("B", "A", "C")]
    again = make_run(tmp_path / "again", 0.5, versions={"torch": "2.9", "gpu": "A"})
    found = [line for line in below(PaperRow(label="row", runs=[*runs, again])) if "torch" in line]
    assert found == ["torch 2.9, GPU: A.", "torch 2.9, GPU: B.", "torch 2.9, GPU: C."]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.5)
    (run / "result.json").write_text("{")
    assert cells(PaperRow(label="row", runs=[run]))[0][2] == "not finished (batch 0)"


def test_real_runs(tmp_path: Path) -> None:
    train(tiny(tmp_path / "a", batches=6))
    train(tiny(tmp_path / "b", {"seed": 1}, batches=6))
    train_until(tiny(tmp_path / "c", {"seed": 2}, batches=6), 3)
    (line,) = cells(PaperRow(label="FPTT", runs=[tmp_path / name for name in "abcd"]))
    found = [result(tmp_path / name) for name in "ab"]
    mean, deviation = (of([each["value"] for each in found]) for of in (statistics.fmean, statistics.stdev))
    shown = f"{deviation:.2g}" if deviation < 0.01 else f"{deviation:.4f}"
    assert line[2] == f"{mean:.4f} ± {shown} (2); not finished (batch 3)"
    assert line[5] == "18"
    counts = {f"{each['recurrent_parameters']} / {each['parameters']}" for each in found}
    assert {line[4].replace(",", "")} == counts
