"""A program started by a test in a session of its own, with what it printed so far in a file."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Forks what has imported torch already; a program of its own imports it for longer than many a test takes.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """`fptt-dist words…` in a process forked from a warm one, with what the tests use of `subprocess.Popen`.

    It does not end as an interpreter does, and /proc shows another command line and environment.
    """

    def __init__(self, log: Path, words: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._process = WARM.Process(target=_fptt_dist, args=(log, words, dict(environment), folder), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fptt-dist", seconds or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # as `subprocess.Popen` does: it may have ended just now
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _fptt_dist(log: Path, words: list[str], environment: dict[str, str], folder: Path) -> None:
    import torch

    from fptt_dist.cli import main

    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["fptt-dist", *words]
    main()


class Program:
    """Python with `words` behind it.

    Args:
        log: the file that receives what it prints.
        words: such as -m fptt_dist train ….
        environment: all its variables.
        folder: where it starts; the project's.
        forked: whether it is forked from a warm process, where the words are -m fptt_dist …
    """

    def __init__(
        self,
        log: Path,
        words: list[str],
        environment: Mapping[str, str],
        *,
        folder: Path = ROOT,
        forked: bool = False,
    ) -> None:
        self._log = log
        self.process: subprocess.Popen[bytes] | Forked
        if forked:
            log.write_text("")
            self.process = Forked(log, words[2:], environment, folder)
            return
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """Everything printed so far."""
        return self._log.read_text()

    def end(self, seconds: float = 240.0) -> int:
        """Wait for the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the program did not end within {seconds:g} s; it printed:\n{self.text()}")

    def wait_until(self, ready: Callable[[], bool], seconds: float = 180.0) -> None:
        """Return when `ready`; fail when the program ends before, or nothing happens."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the program did not come to what it was to be watched at; it printed:\n{self.text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the program and its session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
