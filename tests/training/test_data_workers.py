"""Data workers: the same batches and the same run for any number of them, and what happens where one fails."""

import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from fptt_dist.config import ConfigError, dump
from fptt_dist.tasks import Adding, Batch, DataError, Task, seeded
from fptt_dist.training.data_workers import BatchOrder, DataWorkers, _unpacked, pack
from fptt_dist.training.logging.metrics_logger import MetricsLogger
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup import task_factory
from fptt_dist.training.tools.dry_run import dry_run
from tests.training.helpers import (
    assert_same_checkpoint,
    assert_same_run,
    records,
    resumed,
    steps,
    tiny,
    train_until,
    trainer_for,
)

ORDER = BatchOrder(4, 5, slice(1, 4))
DROPOUT = {"model.layers": 2, "model.dropout": 0.5, "logging.every_batches": 2}


class Noisy(Adding):
    """The adding task with noise that a user's code draws for each example, from torch's global stream."""

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        batch = super().train_batch(epoch, cursor, size, part)
        for column, example in enumerate(range(cursor, cursor + size)[part]):
            with seeded(self.seed, epoch, example):
                batch.inputs[:, column] += 0.1 * torch.randn(len(batch.inputs), 2)
        return batch


def noisy(config: Any) -> Task:
    return Noisy(length=12, examples=20, validation=16, test=16, seed=config.seed)


@pytest.mark.slow  # 25 s: five processes are started
def test_a_run_does_not_depend_on_the_number_of_data_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_factory, "build_task", noisy)
    for workers in (0, 1):
        train(tiny(tmp_path / str(workers), {**DROPOUT, "data.workers": workers}, batches=8))
    parts = tiny(tmp_path / "parts", {**DROPOUT, "data.workers": 2}, batches=8)
    train_until(parts, 3)
    train_until(resumed(parts, **{"data.workers": 0}), 6)
    train(resumed(parts, **{"data.workers": 2}))
    assert_same_run(tmp_path / "0", tmp_path / "1")
    assert_same_run(tmp_path / "0", tmp_path / "parts")
    waited = [line["data_wait"] for line in records(tmp_path / "1", "train")]
    assert all(0 < share < 1 for share in waited)
    assert waited[0] > 0.5, "the start of the process"
    assert _children() == set()


@pytest.mark.slow  # 15 s: two runs of two workers
def test_two_workers_with_data_workers(tmp_path: Path) -> None:
    for workers in (0, 1):
        (tmp_path / "config.yaml").write_text(dump(tiny(tmp_path / str(workers), {**DROPOUT, "data.workers": workers})))
        command = [sys.executable, "-m", "fptt_dist", "launch", str(tmp_path / "config.yaml"), "--nproc", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert_same_checkpoint(tmp_path / "0", tmp_path / "1")


FAILING = '''
"""A user's task, in a file that no import finds."""
import os, signal, sys, time
import numpy as np
import torch
from fptt_dist.tasks import Adding, Batch, DataError

class Failing(Adding):
    def train_batch(self, epoch, cursor, size, part):
        number = epoch * 5 + cursor // size
        if number == 1:
            raise DataError("series 7 of a.csv has no steps")
        if number == 2:
            raise ValueError("cannot broadcast\\nshapes")
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 4:
            torch.rand(1)
        if number == 5:
            sys.exit(3)
        if number == 6:
            os._exit(4)
        if number == 7:
            return Batch(torch.zeros(2000, 64, 2), torch.zeros(64, 1))
        if number == 8:
            time.sleep(600)
        batch = super().train_batch(epoch, cursor, size, part)
        batch.inputs[0, 0, 0] = torch.get_num_threads()
        self.series[1] += 1  # in this process alone
        batch.targets[0] = self.series[0].sum() + self.series[1].sum()
        return batch
'''


def failing(folder: Path) -> Task:
    file = folder / "failing.py"
    file.write_text(FAILING)
    spec = importlib.util.spec_from_file_location("own_task_failing", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["own_task_failing"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = module.Failing(length=6, examples=20, seed=1)
    task.series = [
        torch.full((3,), 2.0 if number == 0 else 0.0) for number in range(5000)
    ]  # more than files a process has
    return task


def data_workers(task: Task, numbers: range, workers: int, **settings: Any) -> DataWorkers:
    usual = {"seconds": 60.0, "start_seconds": 300.0, "flush_denormal": False, "pin": False}
    return DataWorkers(task, ORDER, numbers, workers=workers, **{**usual, **settings})


@pytest.mark.slow  # 15 s: eight processes are started
def test_a_process_that_fails(tmp_path: Path) -> None:
    task = failing(tmp_path)
    fired: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        fired.append(number)

    with data_workers(task, range(30), 8) as workers:
        expected = Adding(length=6, examples=20, seed=1).train_batch(0, 0, 4, slice(1, 4))
        batch = workers.get(0)
        assert torch.equal(batch.inputs[1:], expected.inputs[1:])
        assert torch.equal(batch.targets[1:], expected.targets[1:])
        assert batch.targets[0] == 3 * 2 + 3
        assert batch.inputs[0, 0, 0] == 1, "one thread"
        with pytest.raises(DataError) as raised:
            workers.get(1)
        assert str(raised.value) == "series 7 of a.csv has no steps"
        with pytest.raises(DataError) as raised:
            workers.get(2)
        said = r"batch 3 cannot be put together: ValueError: cannot broadcast shapes (failing.py, 14)"
        assert str(raised.value) == f"{said}: data.workers=0 shows all of it"
        with pytest.raises(
            OSError, match=r"^data.workers=8: the process that puts batch 4 together was ended by SIGKI"
        ):
            workers.get(3)
        with pytest.raises(DataError, match=r"task adding drew random numbers for batch 5 .* within fptt_dist"):
            workers.get(4)
        with pytest.raises(DataError, match=r"batch 6 cannot be put together: SystemExit: 3 \(failing.py, "):
            workers.get(5)
        with pytest.raises(OSError, match=r"batch 7 together ended with exit code 4: what it said stands above"):
            workers.get(6)
        process, receiving = workers._workers[7]
        assert receiving.poll(60)
        time.sleep(0.2)  # it writes more than the pipe takes
        process.kill()
        with pytest.raises(OSError, match=r"batch 8 together was ended by SIGKILL: if memory ran out, type a smaller"):
            workers.get(7)
        before = signal.signal(signal.SIGALRM, note)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        workers._seconds = 0.5
        with pytest.raises(OSError, match=r"batch 9 was not there after 0.5 seconds: raise parallel.timeout_seconds"):
            workers.get(8)
        signal.signal(signal.SIGALRM, before)
        assert fired == [signal.SIGALRM], "a signal's handler runs while a batch is waited for"
    assert _children() == set()


UNGUARDED = """
import sys
import numpy as np
from fptt_dist.exit import one_message
from fptt_dist.tasks import Adding
from tests.training.test_data_workers import data_workers

task = Adding(length=6, examples=20)
task.kept = np.zeros(int(sys.argv[1]))
with one_message(), data_workers(task, range(3), 1) as workers:
    workers.get(0)
"""


@pytest.mark.slow  # 8 s: four processes, one after another
@pytest.mark.parametrize("size", [1, 10**6])
def test_a_program_that_trains_wherever_it_is_imported(size: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "program.py"), str(size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("fptt-dist: ")]
    assert said.startswith("fptt-dist: data.workers=1: ")
    assert said.endswith(
        "what it said stands above. A program that trains must do so under if __name__ == '__main__', as its file is "
        "imported there"
    )


def test_a_task_that_cannot_be_sent_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 s."""

    def build(config: Any) -> Task:
        task = noisy(config)
        task.crop = lambda inputs: inputs  # pyright: ignore[reportAttributeAccessIssue]
        return task

    monkeypatch.setattr(task_factory, "build_task", build)
    config = tiny(tmp_path / "run", {"data.workers": 2})
    with pytest.raises(ConfigError, match=r"data.workers=2: the task adding cannot be sent .*lambda.* data.workers=0"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_numbers_are_packed_where_they_are_and_unpacked_with_their_type() -> None:
    """0.1 s."""
    kept = {
        "floats": torch.randn(3, 5),
        "transposed": torch.randn(3, 5, dtype=torch.float64).t(),
        "bf16": torch.randn(7).bfloat16(),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "array": np.arange(6.0).reshape(2, 3),
        "words": np.array(["a", "bc"], dtype=object),
    }
    task = Adding(length=6, examples=20)
    task.kept = kept  # pyright: ignore[reportAttributeAccessIssue]
    packed = pack(task, 1)
    assert packed.modules == {}
    assert any(np.shares_memory(np.asarray(buffer), kept["floats"].numpy()) for buffer in packed.buffers)
    found = _unpacked([memoryview(packed.pickled), *packed.buffers], {}).kept  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in kept.items():
        assert type(found[name]) is type(value)
        assert found[name].dtype == value.dtype
        assert found[name].tolist() == value.tolist()
        assert found[name].shape == value.shape


def test_a_daemon_is_told_that_it_may_not_start_data_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match=r"data.workers=2: this process was started as a daemon .* daemon=False, or"):
        pack(Adding(length=6, examples=20), 2)


@pytest.mark.parametrize("kind", ["lock", "map", "device", "cache"])
def test_what_keeps_a_task_from_being_sent(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    kept, said = {
        "lock": (threading.Lock(), "TypeError: cannot pickle '_thread.lock' object"),
        "map": (np.load(tmp_path / "a.npy", mmap_mode="r"), f"would copy all of {tmp_path / 'a.npy'}, which it maps"),
        "device": (torch.zeros(1, device="meta"), "it keeps a tensor on meta"),
        "cache": (lru_cache(str.upper), "attribute lookup str.upper on functools failed"),
    }[kind]
    task = Adding(length=6, examples=20)
    task.kept = kept  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match=f"^data.workers=3: the task adding cannot be sent .*{re.escape(said)}"):
        pack(task, 3)


def test_a_dry_run_starts_no_process(tmp_path: Path) -> None:
    plain, other = (dry_run(trainer_for(tiny(tmp_path / str(n), {"data.workers": n}))) for n in (0, 2))
    assert plain.loss == other.loss
    assert _children() == set()


def test_the_progress_line_says_a_long_wait(tmp_path: Path) -> None:
    record = {"batch": 1, "loss": 0.5, "sequences_per_second": 80.0, "window_losses": [0.5]}
    folder = RunDirectory(tiny(tmp_path / "run"))
    folder.open()
    with MetricsLogger(folder, active=True, total_batches=2, ended=False, workers=1) as logger:
        for share, words in ((0.2, ""), (0.21, "  21% waiting for data")):
            logger.training({**record, "data_wait": share})
            assert logger._text == f"loss 0.5  80 sequences/s{words}"


@contextmanager
def started(config: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "fptt_dist", "train", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _children(parent: int | None = None) -> set[int]:
    """The data workers of a process, by their parent or, once they are told apart, by their ids."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = status.read_text().rpartition(")")[2].split()[:2]
            words = status.with_name("cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(ppid) == (parent or os.getpid()) and state != "Z" and b"spawn_main" in words:
            found.add(int(status.parent.name))
    return found


def _alive(processes: set[int]) -> set[int]:
    return {process for process in processes if Path(f"/proc/{process}").exists()}


def _wait(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow  # 25 s: a run with two processes is started twice
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_data_workers_leave_signals_to_the_run_and_end_with_it(number: signal.Signals, tmp_path: Path) -> None:
    keys = {"task.examples": 400000, "evaluate.every_batches": 10**6, "checkpoint.every_batches": 10**6}
    run = tmp_path / "run"
    (tmp_path / "config.yaml").write_text(dump(tiny(run, {**keys, "data.workers": 2}, batches=100000)))
    with started(tmp_path / "config.yaml") as process:
        metrics = run / "metrics.jsonl"
        _wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 5)
        children = _children(process.pid)
        assert len(children) == 2
        for child in children:
            targets = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()]
            assert not [target for target in targets if target.startswith(("socket:", str(run)))]
            status = Path(f"/proc/{child}/status").read_text()
            (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
            assert all(int(blocked, 16) >> (each - 1) & 1 for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)  # as SLURM and terminals do: to the data workers too
        _, stderr = process.communicate(timeout=60)
        _wait(lambda: not _alive(children), seconds=10)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in stderr
        (batch,) = steps(run)
        train(tiny(tmp_path / "straight", keys, batches=batch + 2))
        train(tiny(run, {**keys, "resume": "auto"}, batches=batch + 2))
        assert_same_run(tmp_path / "straight", run)
