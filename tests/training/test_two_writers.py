"""Two processes and one run's folder: one trains to its end as if it were alone, the other is refused."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from fptt_dist.config import Config, ConfigError, dump
from fptt_dist.training.run import train
from tests.program import Program
from tests.training.helpers import assert_same_run, records, resumed, tiny

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
OFTEN = {"evaluate.every_batches": 5, "checkpoint.every_batches": 2}
BATCHES = 200


def configured(folder: Path) -> Config:
    return resumed(tiny(folder, OFTEN, batches=BATCHES))


def start(log: Path, run: Path, *words: str) -> Program:
    config = run.with_suffix(".yaml")
    config.write_text(dump(configured(run)))
    verb, *options = words or ("train",)
    return Program(log, ["-m", "fptt_dist", verb, str(config), *options], ENVIRONMENT)


def holder(run: Path) -> int:
    return json.loads((run / ".lock").read_text())["pid"]


def stop_holder(run: Path, programs: list[Program]) -> int:
    """Let the process that holds the run's folder stand still, some batches after its start; its number."""
    metrics = run / "metrics.jsonl"
    programs[0].wait_until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > 4)
    pid = holder(run)
    os.kill(pid, signal.SIGSTOP)
    return pid


def assert_refused(program: Program, run: Path, pid: int) -> None:
    assert program.end() == 2
    assert f"fptt-dist: run.dir={run} is in use by pid {pid} on {socket.gethostname()} (user " in program.text()
    assert "wait until it has ended, or type run.dir=… for another folder" in program.text()
    assert "Traceback" not in program.text()


def assert_complete(run: Path) -> None:
    assert [record["batch"] for record in records(run, "train")] == list(range(1, BATCHES + 1))
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_of_two_that_start_at_once_one_trains(tmp_path: Path) -> None:
    run = tmp_path / "run"
    programs = [start(tmp_path / name, run) for name in ("one", "other")]
    pid = stop_holder(run, programs)
    first, second = sorted(programs, key=lambda program: program.process.pid != pid)
    assert first.process.pid == pid
    assert_refused(second, run, pid)
    os.kill(pid, signal.SIGCONT)
    assert first.end() == 0, first.text()
    assert_complete(run)
    train(configured(tmp_path / "straight"))
    assert_same_run(tmp_path / "straight", run)


def test_a_run_in_progress_is_left_alone_and_a_killed_one_followed_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(tmp_path / "first", run)
    pid = stop_holder(run, [first])
    before = (run / "metrics.jsonl").stat()
    second = start(tmp_path / "second", run)
    submitted = start(tmp_path / "submitted", run, "submit", "--local")
    for config in (configured(run), tiny(run, OFTEN, batches=BATCHES)):
        with pytest.raises(ConfigError, match=f"is in use by pid {pid} on "):
            train(config)
    assert_refused(second, run, pid)
    assert_refused(submitted, run, pid)
    assert (run / "metrics.jsonl").stat() == before
    first.kill()
    assert holder(run) == pid
    last = start(tmp_path / "last", run)
    assert last.end() == 0, last.text()
    assert "resumed from" in last.text()
    assert "sign of life" not in last.text()
    assert_complete(run)
    train(configured(tmp_path / "straight"))
    assert_same_run(tmp_path / "straight", run)


def test_all_workers_are_refused_with_one_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("launch", "--nproc", "2")
    first = start(tmp_path / "first", run, *words)
    pid = stop_holder(run, [first])
    second = start(tmp_path / "second", run, *words)
    assert_refused(second, run, pid)
    assert "did not come" not in second.text()
    os.kill(pid, signal.SIGCONT)
    assert first.end() == 0, first.text()
    assert_complete(run)
