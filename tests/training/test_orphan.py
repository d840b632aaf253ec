"""A worker whose parent is gone gets SIGTERM; one whose parent lives, and who is no worker, is left alone."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fptt_dist.training.process.orphan import GET_SIGNAL, STARTED_BY, ended_with_parent

ROOT = Path(__file__).parents[2]


CHILD = """
import ctypes, sys
found = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(found))
sys.exit(found.value)
"""


def death_signal() -> int:
    """The signal that the kernel would send to this process when its parent dies."""
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(GET_SIGNAL, ctypes.byref(found))
    return found.value


@pytest.mark.parametrize("variable", [STARTED_BY, "TORCHELASTIC_RUN_ID"])
def test_within_the_context_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, str(os.getppid()))
    if variable != STARTED_BY:
        monkeypatch.setenv(STARTED_BY, "nobody")
    assert death_signal() == 0
    with ended_with_parent():
        assert death_signal() == signal.SIGTERM
        assert STARTED_BY not in os.environ
        child = subprocess.run([sys.executable, "-c", CHILD], check=False)  # such as a helper that compiles
        assert child.returncode == 0
    assert death_signal() == 0


def test_what_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look() -> None:
        with ended_with_parent():
            seen.append(death_signal())

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    look()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [0, 0]


# The first process starts the second one, which says when it is ready and then waits; the first one dies before that or
# after it.
FIRST = """
import os, subprocess, sys
os.environ["FPTT_DIST_STARTED_BY"] = str(os.getpid())
second = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
if sys.argv[2] == "before":
    os._exit(0)
input()
"""
SECOND = """
import os, signal, sys, time
from fptt_dist.training.process.orphan import ended_with_parent
def told(number, frame):
    print("told", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, told)
while sys.argv[-1] != "after" and os.getppid() == int(os.environ["FPTT_DIST_STARTED_BY"]):
    time.sleep(0.01)
with ended_with_parent():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_parent_dies(when: str) -> None:
    second = SECOND.replace("sys.argv[-1]", repr(when))
    command = [sys.executable, "-c", FIRST, second, when]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        if when == "after":
            assert first.stdout.readline() == "ready\n"
            first.kill()
        first.wait(60)
        assert first.stdout.readline() == "told\n"
        assert first.stdout.read() == ""
