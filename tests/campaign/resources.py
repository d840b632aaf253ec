"""Faults of the machine: a worker that stands still, a full disk, a read-only folder, no output, signals."""

import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.campaign.case import Case, drawer
from tests.campaign.runs import BATCHES, Run, assert_one_message, assert_undisturbed, environment, straight, texts
from tests.program import ROOT, Program

TIMEOUT = 3.0  # parallel.timeout_seconds where a worker stands still
SPARE = 30.0  # seconds more, to hear who is lost and to end
LATEST = BATCHES - 6  # batch after which a run is still disturbed
STILL = ("data parallel", "consensus", "fsdp")
FULL = ("single", "single", "single", "consensus", "fsdp")
SIGNALED = ("single", "single", "consensus", "fsdp")
SIGNALS = ("SIGHUP", "SIGTERM", "SIGINT", "SIGUSR2")
OUTPUTS = (">&- 2>&-", "> /dev/full 2>&1", "2>&1 | head -n 1", "<&- 2> /dev/full")
# Root may write everywhere; without CAP_DAC_OVERRIDE it is as anybody else.
WITHOUT_RIGHTS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "fptt_dist", *sys.argv[1:]])
"""


def cases(seed: int) -> Iterator[Case]:
    """The faults of resources of a campaign."""
    for kind in STILL:
        name = f"a worker of {kind} stands still"
        draw = drawer(seed, name)
        yield Case(name, {"kind": kind, "batch": draw.randint(2, LATEST), "rank": draw.randrange(2)}, stand_still)
    for number, kind in enumerate(FULL, 1):
        name = f"disk full {number}"
        draw = drawer(seed, name)
        values = {"kind": kind, "batch": draw.randint(0, LATEST), "bytes": draw.randint(2000, 9000)}
        yield Case(name, values, fill_disk)
    for number, kind in enumerate(SIGNALED, 1):
        name = f"a signal {number}"
        draw = drawer(seed, name)
        values = {"kind": kind, "batch": draw.randint(1, LATEST), "rank": draw.randrange(2) * (kind != "single")}
        yield Case(name, {**values, "signal": SIGNALS[0] if number == 1 else draw.choice(SIGNALS)}, send_signal)
    for started in (False, True):
        yield Case(f"a read-only folder, {'resumed' if started else 'new'}", {"started": started}, read_only)
    for number, output in enumerate(drawer(seed, "no output").sample(OUTPUTS, 2), 1):
        yield Case(f"no output {number}", {"output": output}, no_output)


def stand_still(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Stop a worker for longer than the timeout; the other one says so, and so does this one when it wakes."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"], {"parallel.timeout_seconds": TIMEOUT})
    with run.started() as programs:
        assert run.wait(programs, values["batch"], 0.0), texts(programs)
        still, other = programs[values["rank"]], programs[1 - values["rank"]]
        still.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert_one_message(other, [1])
        seconds = time.monotonic() - began
        assert seconds < TIMEOUT + SPARE, f"it took {seconds:.0f} s"
        still.process.send_signal(signal.SIGCONT)
        assert_one_message(still, [1])
    resumed = Run(place, values["kind"], life=1)
    resumed.finish()
    assert_undisturbed(run.path, undisturbed)
    return f"after {seconds:.1f} s"


def fill_disk(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Let no file grow beyond some bytes, from some batch on, as test_disk_full.py does."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"])
    with run.started() as programs:
        run.wait(programs, values["batch"], 0.0)
        for program in programs:
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (values["bytes"], resource.RLIM_INFINITY))
        codes = [program.end() for program in programs]
        if set(codes) != {0}:  # all files may have been small enough
            for program in programs:
                assert_one_message(program, [1])
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return f"exit code {codes[0]}"


def send_signal(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Send one worker a signal: all save the same batch and end with one message each."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"])
    number = signal.Signals[values["signal"]]
    with run.started() as programs:
        assert run.wait(programs, values["batch"], 0.0), texts(programs)
        programs[values["rank"]].process.send_signal(number)
        for rank, program in enumerate(programs):
            assert_one_message(program, [128 + (number if rank == values["rank"] else signal.SIGTERM)])
            assert "stopped by a signal after batch" in program.text(), program.text()
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return ""


def read_only(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Take the right to write away from the run's folder, or from the folder that it shall be created in."""
    undisturbed = straight(folder, "single")
    run = Run(place / "parent", "single", {"run.dir": str(place / "parent" / "inner" / "run")})
    run.path = place / "parent" / "inner" / "run"
    run.path.parent.mkdir()
    if values["started"]:
        with run.started() as programs:
            assert run.wait(programs, LATEST, 0.0), texts(programs)
            programs[0].process.kill()
    folders = [run.path.parent, *(path for path in run.path.rglob("*") if path.is_dir()), run.path]
    before = {each: each.stat().st_mode for each in folders if each.is_dir()}
    try:
        for each in before:
            each.chmod(0o555)
        words = ["-c", WITHOUT_RIGHTS, "train", str(run.config)]
        program = Program(place / "log", words, environment())
        try:
            assert_one_message(program, [1, 2])
        finally:
            program.kill()
    finally:
        for each, mode in before.items():
            each.chmod(mode)
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return ""


def no_output(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Train where nothing can be printed: the run is the same."""
    undisturbed = straight(folder, "single")
    run = Run(place, "single")
    command = shlex.join([sys.executable, "-m", "fptt_dist", "train", str(run.config)])
    script = f"set -o pipefail; cd {shlex.quote(str(ROOT))}; {command} {values['output']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), f"exit code {done.returncode}: {done.stderr}"
    assert_undisturbed(run.path, undisturbed)
    return ""
