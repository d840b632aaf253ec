"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR2: the batch is finished, the run saved, and what resumes is printed."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from fptt_dist.config import dump
from fptt_dist.training.process.signals import (
    HANDLED,
    Interrupted,
    StopFlag,
    forward_to_requeue_handler,
    hangup_blocked,
    stop_on_signal,
)
from fptt_dist.training.run import train
from tests.training.helpers import assert_same_run, checkpoints, resumed, steps, tiny, train_until

LONG = {
    "evaluate.every_batches": 100000,
    "checkpoint.every_batches": 100000,
    "logging.every_batches": 1,
    "task.examples": 400000,
}


@contextmanager
def started(config: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "fptt_dist", "train", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_batches(run: Path, batches: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and metrics.read_text().count("\n") >= batches:
            return
        time.sleep(0.01)
    raise AssertionError("the run did not start")


def wait_for_default(process: int, number: signal.Signals) -> None:
    """Until the process has handled the first signal, and so no longer catches this one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (caught,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "SigCgt" in line]
        if not int(caught.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.001)
    raise AssertionError("the first signal was not handled")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)]
)
def test_a_signal_saves_and_the_printed_command_goes_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    run = tmp_path / "a run"  # with a space, which the printed command must quote
    config = tmp_path / "config.yaml"
    overrides = {**LONG, "model.layers": 2, "model.dropout": 0.5}
    config.write_text(dump(tiny(run, overrides, batches=100000)))
    with started(config) as process:
        wait_for_batches(run, 5)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    (batch,) = steps(run)
    assert f"fptt-dist: stopped by a signal after batch {batch} of 100000, saved in {checkpoints(run)[-1]}\n" in stderr
    assert (run / "metrics.jsonl").read_text().count("\n") == batch
    if number != signal.SIGTERM:  # it is saved and printed alike for all
        return
    (command,) = [line.removeprefix("resume with: ") for line in stderr.splitlines() if "resume with: " in line]
    words = shlex.split(command)
    assert words[0] == "fptt-dist"
    total = batch + 3
    again = subprocess.run(
        [sys.executable, "-m", "fptt_dist", *words[1:], f"train.max_batches={total}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    train(tiny(tmp_path / "straight", overrides, batches=total))
    assert_same_run(tmp_path / "straight", run)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    slow = {**LONG, "task.length": 8000, "fptt.windows": 4000}  # thousands of short operations a batch
    config.write_text(dump(tiny(tmp_path / "run", slow, batches=1000)))
    with started(config) as process:
        wait_for_batches(tmp_path / "run", 1)
        process.send_signal(signal.SIGTERM)
        wait_for_default(process.pid, signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert steps(tmp_path / "run") == []


def test_the_first_signal_only_sets_a_flag_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with stop_on_signal() as stop:
        assert stop.number is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        assert (stop.exit_code, stop.requeue) == (130, False)
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_wish_to_be_put_back_into_the_queue_may_come_later(first: signal.Signals) -> None:
    with stop_on_signal() as stop:
        os.kill(os.getpid(), first)
        assert not stop.requeue
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.requeue
        assert (stop.number, stop.exit_code) == (first, 128 + first)


def test_what_torchruns_agent_passes_on_is_the_same_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with stop_on_signal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert (stop.number, stop.requeue) == (signal.SIGTERM, True)


def test_the_job_is_handed_on_once_it_is_saved() -> None:
    handed: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        handed.append(number)
        raise SystemExit(3)  # as submitit's does

    usual = signal.signal(signal.SIGUSR2, handle)
    try:
        forward_to_requeue_handler(Interrupted("saved", 143, requeue=False), rank=0)
        assert handed == []
        with pytest.raises(SystemExit) as left:
            forward_to_requeue_handler(Interrupted("saved", 140, requeue=True), rank=0)
        assert (left.value.code, handed) == (3, [signal.SIGUSR2])
    finally:
        signal.signal(signal.SIGUSR2, usual)
    forward_to_requeue_handler(
        Interrupted("saved", 140, requeue=True), rank=0
    )  # nobody handles it: what called it continues


def test_the_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_on_signal():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_worker_that_got_no_signal_itself_ends_as_if_by_sigterm() -> None:
    assert StopFlag().exit_code == 143


@pytest.mark.slow
def test_a_forked_child_dies_of_a_signal_as_usual() -> None:
    driver = (
        "import os, signal, time\n"
        "from fptt_dist.training.process.signals import stop_on_signal\n"
        "with stop_on_signal() as stop:\n"
        "    ready, ends = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(ends, b'x')\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "    os.read(ready, 1)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    print(os.WTERMSIG(status), stop.number)\n"
    )
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(int(signal.SIGTERM)), "None"]


def test_trains_on_another_thread(tmp_path: Path) -> None:
    train(tiny(tmp_path / "main", batches=2))
    thread = threading.Thread(target=lambda: train(tiny(tmp_path / "other", batches=2)))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "main", tmp_path / "other")


def test_a_signal_in_the_last_batch_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was not interrupted"):
        train_until(tiny(tmp_path / "run", batches=3), 3)
    assert (tmp_path / "run" / "result.json").is_file()


def test_interrupted_then_told_to_end_there(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=5)
    train_until(parts, 3)
    outcome = train(resumed(parts, **{"train.max_batches": 3}))
    assert (outcome.batches, outcome.best_batch) == (3, 3)
    train(tiny(tmp_path / "straight", batches=3))
    assert outcome.value == train(tiny(tmp_path / "again", batches=3)).value


def test_a_terminal_that_is_gone_says_so_more_than_once() -> None:
    """The kernel and the shell send SIGHUP, and the end of a session SIGTERM besides: none is a second signal."""
    with stop_on_signal() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert (stop.number, stop.exit_code, stop.requeue) == (signal.SIGHUP, 129, False)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (stop.number, stop.exit_code) == (signal.SIGTERM, 143)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_started_while_sighup_is_blocked_never_gets_it() -> None:
    with hangup_blocked(), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
