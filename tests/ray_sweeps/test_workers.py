"""Runs of two processes each, which Ray starts and connects."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.reporting import SweepResults, read_sweep
from tests.program import Program
from tests.ray_sweeps.helpers import BATCHES, Ray, note, states, sweep_file
from tests.ray_sweeps.processes import LOOPBACK, holding, listening, marked, words
from tests.training.helpers import assert_same_checkpoint, records, result, without_clock

ACTORS = ("ImplicitFunc", "Train")  # a run's driver; what Ray Train starts for it
LR, POOR = 0.03, 1e-5
SPACE = {
    "parallel.strategy": "consensus",
    "optimizer.lr": {"grid": [LR, POOR]},
    # What "auto" finds in Ray's workers might be torchrun's variables, which Ray sets too.
    "parallel.launcher": {"grid": ["ray"], "when": {"optimizer.lr": LR}},
}


@pytest.fixture(scope="module")
def watched(shared: Ray, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResults, set[str]]:
    """The default, a better one and a poor one; and where anything of Ray's listened while they were trained."""
    place = tmp_path_factory.mktemp("workers")
    file = sweep_file(place, SPACE, workers=2, scheduler={"name": "asha"}, max_concurrent=1)
    addresses: set[str] = set()
    with shared.program(place / "log", "sweep", str(file), f"run.dir={place / 'out'}") as (program, mark):
        while program.process.poll() is None:
            addresses |= set(listening(marked(shared.mark) | marked(mark)))
            time.sleep(0.5)
        assert program.end() == 0, program.text()
    return read_sweep(place / "out"), addresses


@pytest.fixture(scope="module")
def results(watched: tuple[SweepResults, set[str]]) -> SweepResults:
    return watched[0]


def test_nothing_listens_beyond_the_loopback_address(watched: tuple[SweepResults, set[str]]) -> None:
    assert "0100007F" in watched[1]
    assert watched[1] <= LOOPBACK


def test_two_processes_train_one_run(results: SweepResults) -> None:
    assert states(results) == ["finished", "finished", "stopped"]
    for trial in results.trials[:2]:
        assert result(trial.path)["workers"] == 2
        assert trial.batch == BATCHES
    assert all(trial.bytes_sent > 0 for trial in results.trials)
    assert all(record["bytes_sent"] > 0 for record in records(results.trials[0].path, "train")[:1])
    poor = results.trials[2]
    assert poor.overrides["optimizer.lr"] == POOR
    assert poor.message == ""
    assert note(poor.path)["state"] == "stopped"
    assert 3 <= poor.batch < BATCHES


def test_nothing_goes_on_behind_the_table(shared: Ray, results: SweepResults) -> None:
    deadline = time.monotonic() + 15
    while (left := _training(shared, results)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_the_same_run_by_launch(results: SweepResults, tmp_path: Path) -> None:
    """Whoever starts the processes: the same weights, metrics and result, bit for bit."""
    assert results.best is not None
    best = results.best.trials[0].path
    command = ["launch", str(results.path / "best.yaml"), "--nproc", "2", f"run.dir={tmp_path / 'run'}"]
    program = Program(tmp_path / "log", ["-m", "fptt_dist", *command, "parallel.launcher=auto"], os.environ)
    assert program.end() == 0, program.text()
    run = tmp_path / "run"
    assert_same_checkpoint(run, best)
    for kind in ("train", "evaluation"):
        assert _learnt(records(run, kind)) == _learnt(records(best, kind))
    assert without_clock(result(run)) == without_clock(result(best))


def _learnt(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what a clock decides, and without the traffic: a sweep's run saves at each validation."""
    others = ("blocked_seconds", "blocked_share", "collectives", "bytes_sent")
    return [{key: value for key, value in without_clock(line).items() if key not in others} for line in lines]


def _training(ray: Ray, results: SweepResults) -> list[str]:
    """Ray's processes that have anything to do with a run."""
    names = [words(process)[0].strip() for process in marked(ray.mark)]
    held = [str(process) for trial in results.trials for process in holding(trial.path / "metrics.jsonl", ray.mark)]
    return [name for name in names if name.startswith("ray::") and any(kind in name for kind in ACTORS)] + held
