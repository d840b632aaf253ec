"""The processes that a program started, found by a mark in their environment: what Ray starts leaves its session."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "FPTT_TESTS_STARTED"
LISTENING = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""As `listening` writes them."""


def marked(mark: str) -> set[int]:
    """The processes that live and have the mark."""
    wanted = f"{MARK}={mark}".encode()
    return {int(process.name) for process in Path("/proc").glob("[0-9]*") if wanted in _read(process / "environ")}


def gone(mark: str, seconds: float = 30.0, *, but: tuple[str, ...] = ()) -> bool:
    """Whether the processes with the mark, but for those of these names, end by themselves within so many seconds."""

    def left() -> bool:
        return any(not words(process)[0].startswith(but) for process in marked(mark)) if but else bool(marked(mark))

    deadline = time.monotonic() + seconds
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left()


def end(mark: str) -> None:
    """End what lives with the mark."""
    for process in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def environment(process: int) -> dict[str, str]:
    """Its variables when it began."""
    lines = _read(Path(f"/proc/{process}/environ")).decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def words(process: int) -> list[str]:
    """Its command line."""
    return _read(Path(f"/proc/{process}/cmdline")).decode(errors="replace").split("\0")


def listening(processes: set[int]) -> Iterator[str]:
    """The local addresses, in hexadecimal, of the sockets on which they wait for connections over TCP."""
    sockets = {target for process in processes for target in _open_files(process) if target.startswith("socket:")}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].partition(":")[0]


def holding(file: Path, mark: str) -> set[int]:
    """The processes with the mark that have the file open."""
    return {process for process in marked(mark) if str(file) in _open_files(process)}


def _open_files(process: int) -> list[str]:
    found = []
    with suppress(OSError):
        for link in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended
        return b""
