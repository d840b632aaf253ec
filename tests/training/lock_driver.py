"""Processes that take one lock again and again, some killed while they have it; says what they saw as JSON on stdout.

Run as a program with a folder and the seconds of each mode, because only a process without other threads may fork.
"""

import errno
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fptt_dist.training.lock import directory_lock as lock
from fptt_dist.training.lock.directory_lock import DirectoryLock, HeldError

MODES = ("posix", "no posix locks", "no posix locks, no hard links")
PROCESSES = 8
KILLED = 0.15  # of those that have the lock


def refuse(*words: Any, **named: Any) -> None:
    """As `os.link` where the file system has no hard links."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def late(source: Any, target: Any, real: Any = os.link) -> None:
    """As `os.link` of a process that others overtake."""
    time.sleep(random.random() * 0.003)
    real(source, target)


def work(folder: Path, log: int, until: float) -> None:
    """Take the lock and say so, on entering and on leaving."""
    while time.monotonic() < until:
        try:
            with DirectoryLock(folder, "the folder"):
                os.write(log, f"in {os.getpid()}\n".encode())
                time.sleep(random.random() * 0.002)
                os.write(log, f"out {os.getpid()}\n".encode())
                if random.random() < KILLED:
                    os.kill(os.getpid(), signal.SIGKILL)
        except HeldError:
            pass


def seen(mode: str, folder: Path, seconds: float) -> dict[str, Any]:
    lock.ENDING = 0.0
    lock.KERNEL_LOCKS = mode == "posix"
    os.link = refuse if "no hard links" in mode else late
    folder.mkdir(parents=True)
    inside, errors = folder.parent / "inside", folder.parent / "errors"
    log = os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until = time.monotonic() + seconds

    def start() -> int:
        child = os.fork()
        if child == 0:
            random.seed(os.getpid())
            try:
                work(folder, log, until)
            except BaseException:
                with errors.open("a") as file:
                    file.write(traceback.format_exc())
            os._exit(0)
        return child

    running = {start() for _ in range(PROCESSES)}
    killed = 0
    while running:
        child, status = os.wait()
        running.discard(child)
        killed += os.WIFSIGNALED(status)
        if time.monotonic() < until:
            running.add(start())
    lines = inside.read_text().splitlines()
    wrong = sum(one.replace("in", "out") != other for one, other in zip(lines[::2], lines[1::2], strict=True))
    return {
        "taken": len(lines) // 2,
        "killed": killed,
        "wrong": wrong,
        "errors": errors.read_text() if errors.is_file() else "",
        "left": sorted(path.name for path in folder.iterdir()),
    }


if __name__ == "__main__":
    print(json.dumps({mode: seen(mode, Path(sys.argv[1]) / mode / "folder", float(sys.argv[2])) for mode in MODES}))
