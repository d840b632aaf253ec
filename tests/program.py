"""A program started by a test in a session of its own, with what it printed so far in a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Program:
    """Python with `words` behind it, in the project's folder.

    Args:
        log: the file that receives what it prints.
        words: such as -m fptt_dist train ….
        environment: all its variables.
    """

    def __init__(self, log: Path, words: list[str], environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """Everything printed so far."""
        return self._log.read_text()

    def end(self, seconds: float = 120.0) -> int:
        """Wait for the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the program did not end within {seconds:g} s; it printed:\n{self.text()}")

    def wait_until(self, ready: Callable[[], bool], seconds: float = 90.0) -> None:
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
