"""Sweeps read back from their folders: ranking, table, sweep.json, best.yaml and TensorBoard's HParams."""

import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

from fptt_dist.config import ConfigError, load
from fptt_dist.reporting import SweepResults, TrialRow, is_sweep, last_words, read_sweep, sweep_table, write_sweep
from fptt_dist.training.run import train
from tests.reporting.sweeps import make_sweep, note, run
from tests.training.helpers import records, result, tiny, train_until

EVERY = {"evaluate.every_batches": 2}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs: the default and another alpha, two seeds each, and one that was interrupted."""
    sweep = make_sweep(tmp_path_factory.mktemp("sweeps") / "alphas", ["fptt.alpha", "seed"], workers=1)
    points = [{"seed": 0}, {"seed": 1}, {"fptt.alpha": 2.0, "seed": 0}, {"fptt.alpha": 2.0, "seed": 1}]
    for index, point in enumerate(points):
        train(tiny(note(sweep, index, point, default=index < 2), {**EVERY, **point}, batches=6))
    last = {"fptt.alpha": 0.1, "seed": 0}
    train_until(tiny(note(sweep, 4, last), {**EVERY, **last}, batches=6), 3)
    return sweep


@pytest.fixture(scope="module")
def written(real: Path) -> SweepResults:
    return write_sweep(real)


def ranked(results: SweepResults) -> list[list[int]]:
    return [[trial.index for trial in point.trials] for point in results.points]


def printed(results: SweepResults, *, markup: bool = True) -> list[list[str]]:
    """The header and the rows."""
    console = Console(width=400)
    with console.capture() as capture:
        console.print(sweep_table(results), markup=markup)
    lines = [line.replace("┃", "│") for line in capture.get().splitlines()]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_trials_are_what_their_folders_say(real: Path) -> None:
    results = read_sweep(real)
    assert (results.metric, results.higher_is_better, results.varying) == ("mse", False, ["fptt.alpha", "seed"])
    assert results.task == "adding"
    first, *_, last = results.trials
    found, validations = result(real / "000"), records(real / "000", "evaluation")[:-1]
    assert first == TrialRow(
        index=0,
        path=real / "000",
        default=True,
        overrides={"seed": 0},
        values={"fptt.alpha": 0.5, "seed": 0},
        state="finished",
        value=found["validation"],
        test=found["value"],
        batch=6,
        batches=6,
        best_batch=found["best_batch"],
        updates=found["updates"],
        sequences=24,
        seconds=found["seconds"],
        bytes_sent=0,
        message="",
        curve=[(each["sequences"], each["value"]) for each in validations],
    )
    (only,) = records(real / "004", "evaluation")
    assert (last.state, last.value, last.test, last.best_batch) == ("not finished", only["value"], None, 2)
    assert (last.batch, last.batches, last.sequences, last.updates) == (3, 6, 12, 9)
    assert [trial.default for trial in results.trials] == [True, True, False, False, False]


def test_seeds_are_one_point(real: Path) -> None:
    results = read_sweep(real)
    values = [result(real / f"{index:03d}")["validation"] for index in range(4)]
    means = {(0, 1): statistics.mean(values[:2]), (2, 3): statistics.mean(values[2:])}
    assert ranked(results) == [*(list(pair) for pair in sorted(means, key=lambda pair: means[pair])), [4]]
    for point in results.points[:2]:
        pair = [values[trial.index] for trial in point.trials]
        assert point.mean == pytest.approx(statistics.mean(pair), rel=1e-12)
        assert point.deviation == pytest.approx(statistics.stdev(pair), rel=1e-9)
        assert point.values.keys() == {"fptt.alpha"}
    assert results.points[2].deviation is None
    assert results.best == results.points[0]
    assert results.front == []


def test_the_table_of_real_runs(real: Path) -> None:
    results = read_sweep(real)
    header, first, second, last = printed(results)
    assert header == ["#", "trial", "state", "validation mse", "batch", "seconds", "fptt.alpha", ""]
    best = results.points[0]
    names = ", ".join(trial.name for trial in best.trials)
    assert first[:5] == ["1", names, "finished", f"{best.mean:.5g} ± {best.deviation:.2g}", "6 of 6"]
    default = first if "000" in first[1] else second
    assert (default[1], default[-2:]) == ("000, 001", ["0.5", "default"])
    assert last == ["3", "004", "not finished", f"{results.trials[4].value:.5g}", "3 of 6", last[5], "0.1", ""]


def test_best_yaml_trains_the_same_run(real: Path, written: SweepResults, tmp_path: Path) -> None:
    results = written
    assert results.best is not None
    first = results.best.trials[0]
    text = (real / "best.yaml").read_text()
    assert text.startswith(
        f"# the best of the sweep alphas: trial {first.name}, validation mse {first.value}\n"
        f"# over 2 seeds: {results.best.mean:.6g} ± {results.best.deviation:.6g}\n"
        "# to train it: fptt-dist train best.yaml\n"
    )
    config = load(real / "best.yaml")
    assert (config.run.dir, config.resume, config.seed) == (None, "never", 0)
    assert config.fptt.alpha == first.values["fptt.alpha"]
    again = train(load(real / "best.yaml", {"run.dir": str(tmp_path / "again")}))
    assert again.validation == first.value
    assert again.value == first.test


def test_sweep_json(real: Path, written: SweepResults) -> None:
    results = written
    found = strict(real / "sweep.json")
    assert results.best is not None
    assert found["best"] == results.best.trials[0].index
    assert (found["default"], found["varying"], found["higher_is_better"]) == ([0, 1], ["fptt.alpha", "seed"], False)
    assert [row["path"] for row in found["trials"]] == [f"{index:03d}" for index in range(5)]
    assert found["trials"][0].keys() == TrialRow.__dataclass_fields__.keys() - {"curve"}
    assert [row["value"] for row in found["trials"]] == [trial.value for trial in results.trials]
    assert [(row["trials"], row["mean"], row["sd"]) for row in found["points"]] == [
        ([trial.index for trial in point.trials], point.mean, point.deviation) for point in results.points
    ]
    assert not [path for path in real.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".report")]


def test_hparams_of_every_trial(real: Path, written: SweepResults) -> None:
    write_sweep(real)  # again: in place of the first ones
    for trial in written.trials:
        events = EventAccumulator(str(real / "tensorboard" / trial.name)).Reload()
        (point,) = events.Scalars("hparam/validation_mse")
        assert point.value == pytest.approx(trial.value, rel=1e-6)
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        hparams = HParamsPluginData.FromString(content).session_start_info.hparams
        assert {key: hparams[key].number_value for key in hparams} == trial.values


def test_the_ranking(tmp_path: Path) -> None:
    for higher in (False, True):
        sweep = make_sweep(tmp_path / str(higher), ["fptt.alpha"], higher_is_better=higher)
        good, medium, bad = (0.9, 0.5, 0.1) if higher else (0.1, 0.5, 0.9)
        run(sweep, 0, {}, (bad,), default=True, higher=higher)
        run(sweep, 1, {"fptt.alpha": 0.1}, (math.nan,), higher=higher)
        run(sweep, 2, {"fptt.alpha": 0.2}, (bad, medium), higher=higher)
        run(sweep, 3, {"fptt.alpha": 0.3}, (bad, good, medium), higher=higher)
        run(sweep, 4, {"fptt.alpha": 0.4}, (math.nan, good), finished=False, state="stopped", higher=higher)
        run(sweep, 5, {"fptt.alpha": 0.6}, (medium,), finished=False, higher=higher)
        run(sweep, 6, {"fptt.alpha": 0.7}, finished=False, state="failed", message="a loss was [/nan] at batch 3")
        note(sweep, 7, {"fptt.alpha": 0.8})
        run(sweep, 8, {"fptt.alpha": 0.9}, finished=False)
        results = read_sweep(sweep)
        assert ranked(results) == [[3], [2], [0], [1], [4], [5], [6], [7], [8]]
        assert results.best == results.points[0]
        assert [point.mean for point in results.points[:3]] == [good, medium, bad]
        assert [point.state for point in results.points[4:]] == [
            "stopped",
            "not finished",
            "failed",
            "waiting",
            "waiting",
        ]
        rows = printed(results)
        assert rows == printed(results, markup=False)
        assert rows[0][-2:] == ["", "message"]
        assert [row[0] for row in rows[1:]] == [str(number) for number in range(1, 10)]
        assert rows[3][6:] == ["0.5", "default", ""]
        assert rows[4][3] == "nan"
        assert rows[5][3:5] == [f"{good:.5g}", "20 of 60"]
        assert rows[7] == ["7", "006", "failed", "", "0 of 60", "0.0", "0.7", "", "a loss was [/nan] at batch 3"]
        assert rows[8][3:7] == ["", "0", "0.0", "0.8"]


def test_a_point_is_as_far_as_its_last_seed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha", "seed"])
    run(sweep, 0, {"seed": 0}, (0.5,), default=True)
    note(sweep, 1, {"seed": 1}, default=True)
    run(sweep, 2, {"seed": 0, "fptt.alpha": 2.0}, (0.9,))
    run(sweep, 3, {"seed": 1, "fptt.alpha": 2.0}, (0.7,))
    results = read_sweep(sweep)
    assert ranked(results) == [[2, 3], [0, 1]]
    point = results.points[1]
    assert (point.state, point.mean, point.values) == ("waiting", 0.5, {"fptt.alpha": 0.5})
    assert printed(results)[2][4] == "60 of 60, 0"


def test_runs_that_are_the_same_are_two_points_where_no_seed_varies(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    for index in range(2):
        run(sweep, index, {"fptt.alpha": 0.1}, (0.5,))
    assert ranked(read_sweep(sweep)) == [[0], [1]]


def test_a_key_that_only_some_runs_have(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["optimizer.name", "optimizer.momentum", "train.max_norm"])
    run(sweep, 0, {}, (0.5,), default=True)
    run(sweep, 1, {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "train.max_norm": None}, (0.6,))
    first, second = read_sweep(sweep).trials
    assert first.values == {"optimizer.name": "adam", "train.max_norm": 1.0}
    assert second.values == {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "train.max_norm": None}
    write_sweep(sweep)
    rows = printed(read_sweep(sweep))
    assert [row[6:9] for row in rows[1:]] == [["adam", "", "1.0"], ["sgd", "0.9", "null"]]


def test_what_a_stale_sweep_leaves_is_removed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha", "fptt.windows"])
    folder = run(sweep, 0, {}, (0.5,), default=True)
    write_sweep(sweep)
    files = ["best.yaml", "figures/heatmap.png", "figures/curves.png", "tensorboard/000"]
    assert [name for name in files if not (sweep / name).exists()] == []
    for name in ("result.json", "metrics.jsonl"):
        (folder / name).unlink()
    write_sweep(sweep)
    assert [name for name in files if (sweep / name).exists()] == []
    assert strict(sweep / "sweep.json")["best"] is None


def test_what_is_not_finite_is_no_best(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        sweep = make_sweep(tmp_path / str(value), ["fptt.alpha"])
        run(sweep, 0, {}, (value,), default=True)
        run(sweep, 1, {"fptt.alpha": 0.1}, (value,), finished=False, state="stopped")
        results = write_sweep(sweep)
        assert results.best is None
        assert not (sweep / "best.yaml").exists()
        found = strict(sweep / "sweep.json")
        assert (found["best"], found["trials"][0]["value"], found["points"][0]["mean"]) == (None, None, None)


def test_best_yaml_of_several_processes(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "four", ["fptt.alpha"], workers=4)
    run(sweep, 0, {}, (0.25,))
    write_sweep(sweep)
    comments = [line for line in (sweep / "best.yaml").read_text().splitlines() if line.startswith("#")]
    assert comments == [
        "# the best of the sweep four: trial 000, validation mse 0.25",
        "# to train it: fptt-dist launch --nproc 4 best.yaml",
    ]
    assert load(sweep / "best.yaml").fptt.alpha == 0.5


def test_bytes_sent_have_a_column(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    run(sweep, 0, {}, (0.5, 0.4), sent=1_250_000)
    results = read_sweep(sweep)
    assert results.trials[0].bytes_sent == 2_500_000
    header, row = printed(results)
    assert (header[6], row[6]) == ("MB sent", "2.50")


def test_the_last_words_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    log = tmp_path / "log.out"
    log.write_text("fptt-dist: a first word\nfptt-dist: a loss was nan\nsrun: error: exit code 1\n\n")
    ends = [run(sweep, 0, {}, (0.5,)), run(sweep, 1, {}, (0.5,), finished=False), note(sweep, 2)]
    ends.append(run(sweep, 3, {}, (0.5,), finished=False, state="stopped"))
    for folder in ends:
        (folder / "job.json").write_text(json.dumps({"job": "12", "log": str(log)}))
    (note(sweep, 4) / "job.json").write_text(json.dumps({"job": "13"}))
    words = "fptt-dist: a loss was nan"
    assert [trial.message for trial in read_sweep(sweep).trials] == ["", words, words, "", ""]


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    expected = {
        "": "",
        "srun: error\n": "srun: error",
        "Killed\nsrun: error\n": "Killed",
        "fptt-dist: mine\nKilled\n": "fptt-dist: mine",
    }
    assert {text: last_words(log) for text in expected if log.write_text(text) >= 0} == expected
    assert last_words(tmp_path / "none") == last_words(tmp_path) == ""


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    assert not is_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"is not a sweep's folder: it has no sweep\.yaml"):
        read_sweep(tmp_path)
    file = tmp_path / "sweep.yaml"
    for text, message in {
        "- 1\n": "not a mapping",
        "a: {\n": "not YAML",
        "metric: mse\n": "higher_is_better is missing or wrong",
        "metric: mse\nhigher_is_better: false\nvarying: 3\n": "varying is missing or wrong",
        "metric: mse\nhigher_is_better: false\nvarying: []\nsearch: grid\n": "search is missing or wrong",
    }.items():
        file.write_text(text)
        assert is_sweep(tmp_path)
        with pytest.raises(ConfigError, match=message):
            read_sweep(tmp_path)
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    assert read_sweep(sweep).points == []


def test_a_trial_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    run(sweep, 0, values=(0.5,))
    run(sweep, 1, values=(0.4,))
    (sweep / "000" / "config.yaml").write_text("")
    for number, text in enumerate(("{", "[]", "", '{"index": 1, "overrides": 3}')):
        (sweep / f"10{number}").mkdir()
        (sweep / f"10{number}" / "trial.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        results = write_sweep(sweep)
    assert [(trial.name, trial.state) for trial in results.trials] == [("000", "waiting"), ("001", "finished")]
    left_out = [said.partition(" is left out: ")[0] for said in caplog.messages if " is left out: " in said]
    assert left_out == [str(sweep / name) for name in ("100", "101", "102", "103", "000")]


def test_values_of_any_size_fit_into_the_table(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    for index, value in enumerate((2.18899e35, 1.5e-9)):
        run(sweep, index, {"fptt.alpha": index}, values=(value,), message="\x1b]0;mine\x07")
    (sweep / "001" / "result.json").unlink()
    _, first, second = printed(read_sweep(sweep))
    assert (first[3], second[3]) == ("2.189e+35", "1.5e-09")
    assert second[-1] == r"\x1b]0;mine\x07"


def test_a_sweep_that_has_not_started(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"])
    note(sweep, 0, default=True)
    results = write_sweep(sweep)
    assert printed(results)[1] == ["1", "000", "waiting", "", "0", "0.0", "", "default"]
    assert not (sweep / "figures").exists()


numbers = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))
rows = st.lists(st.tuples(numbers, st.integers(0, 4), st.integers(0, 4), st.booleans()), max_size=12)
chosen = st.permutations(["quality", "seconds", "bytes_sent"]).flatmap(
    lambda names: st.integers(2, 3).map(lambda count: names[:count])
)


@given(rows, st.booleans(), chosen)
def test_the_front_is_what_nothing_dominates(
    rows: list[tuple[float, int, int, bool]], higher: bool, objectives: list[str]
) -> None:
    trials = [
        TrialRow(
            index=index,
            path=Path(f"{index:03d}"),
            default=False,
            overrides={"fptt.alpha": index},
            values={"fptt.alpha": index},
            state="finished" if finished else "stopped",
            value=value,
            test=None,
            batch=1,
            batches=1,
            best_batch=1,
            updates=1,
            sequences=1,
            seconds=float(seconds),
            bytes_sent=sent,
            message="",
            curve=[],
        )
        for index, (value, seconds, sent, finished) in enumerate(rows)
    ]
    asked = {"metric": "x", "higher_is_better": higher, "varying": ["fptt.alpha"], "search": {"objectives": objectives}}
    results = SweepResults(Path("sweep"), asked, "adding", trials)

    def losses(row: tuple[float, int, int, bool]) -> list[float]:
        quality = -row[0] if higher else row[0]
        return [{"quality": quality, "seconds": row[1], "bytes_sent": row[2]}[name] for name in objectives]

    # Where quality is no objective, a run without one is no result either.
    known = [index for index, row in enumerate(rows) if row[3] and not math.isnan(row[0])]
    expected = set()
    for index in known:
        mine = losses(rows[index])
        others = [losses(rows[other]) for other in known if other != index]
        dominated = False
        for other in others:
            no_worse = all(a <= b for a, b in zip(other, mine, strict=True))
            better = any(a < b for a, b in zip(other, mine, strict=True))
            dominated = dominated or (no_worse and better)
        if not dominated:
            expected.add(index)
    assert {point.trials[0].index for point in results.front} == expected
    assert SweepResults(Path("sweep"), {**asked, "search": {"objectives": ["quality"]}}, "adding", trials).front == []


def test_the_front_is_marked(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ["fptt.alpha"], search={"name": "optuna", "objectives": ["quality", "seconds"]})
    run(sweep, 0, {}, (0.5,), default=True, seconds=2.0)
    run(sweep, 1, {"fptt.alpha": 0.1}, (0.4,), seconds=9.0)
    run(sweep, 2, {"fptt.alpha": 0.2}, (0.6,), seconds=3.0)
    run(sweep, 3, {"fptt.alpha": 0.3}, (0.1,), seconds=0.1, finished=False, state="stopped")
    results = write_sweep(sweep)
    assert [row[-1] for row in printed(results)[1:]] == ["front", "default, front", "", ""]
    assert [row["front"] for row in strict(sweep / "sweep.json")["points"]] == [True, True, False, False]
