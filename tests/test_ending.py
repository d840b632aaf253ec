"""How a program ends: which errors are one message, with which exit code, and whose rank stands before it."""

import errno
import os
import subprocess
import sys

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.ending import one_message, rank_of_process
from fptt_dist.parallel import LostWorkerError
from fptt_dist.tasks import DataError
from fptt_dist.training.signals import Interrupted
from fptt_dist.training.trainer import NonFiniteError

PLACES = ("RANK", "SLURM_PROCID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nobody started but the test."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (DataError("why"), 2),
        (NonFiniteError("why"), 1),
        (OSError("why"), 1),
        (Interrupted("why", 130), 130),
        (Interrupted("why", 140, requeue=True), 140),
        (Interrupted("why", 143), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_with_a_message_of_its_own(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_message():
        raise error
    assert left.value.code == code
    assert capsys.readouterr() == ("", "fptt-dist: why\n")


def test_a_lost_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_message():
        raise LostWorkerError(rank=1, collective="sum", seconds=1.0, silent=[0], error=RuntimeError("why"))
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("fptt-dist: rank 1 lost the other workers in the collective 'sum'")
    assert said.endswith("look at the first error of the ranks named, then start again with resume=auto\n")


def test_an_error_of_the_system_says_which_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_message():
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/x")
    assert left.value.code == 1
    assert capsys.readouterr().err == "fptt-dist: [Errno 28] No space left on device: '/runs/x'\n"


@pytest.mark.parametrize("error", [KeyError("fault"), SystemExit(7), KeyboardInterrupt()])
def test_a_fault_of_the_program_passes(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as left, one_message():
        raise error
    assert left.value is error
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, "0"),
        ({"RANK": "3"}, "3"),
        ({"RANK": "3", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "3"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "1"),
        ({"SLURM_PROCID": "1"}, "0"),  # a job's batch script, or its shell
        ({"SLURM_STEP_ID": "0"}, "0"),
    ],
)
def test_whose_message_it_is(environ: dict[str, str], rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert rank_of_process() == rank


def test_another_rank_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit), one_message():
        raise ConfigError("why\nand how")
    assert capsys.readouterr().err == "fptt-dist: [rank 2] why\nand how\n"


DRIVER = """
import atexit
from fptt_dist.config import ConfigError
from fptt_dist.ending import one_message
atexit.register(print, "as usual")
print("so far")
with one_message():
    raise ConfigError("why")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "out", "err"),
    [
        ({}, "so far\nas usual\n", "fptt-dist: why\n"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, "so far\n", "fptt-dist: [rank 1] why\n"),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}, "so far\n", "fptt-dist: why\n"),
    ],
    ids=["alone", "srun", "torchrun"],
)
def test_a_process_of_several_ends_before_its_threads_can_abort(environ: dict[str, str], out: str, err: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, out, err)


LATE = """
import atexit, sys
from fptt_dist.ending import one_message
atexit.register(print, "the interpreter's own end")
with one_message():
    print("done")
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("variable", "printed"),
    [("ANOTHER", "done\nthe interpreter's own end\n"), ("TORCHELASTIC_RUN_ID", "done\n"), ("SLURM_STEP_ID", "done\n")],
)
def test_a_process_of_several_leaves_at_once(variable: str, printed: str) -> None:
    """Also when all went well: a process group's threads may abort the interpreter's own end."""
    environment = {**os.environ, variable: "0"}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, printed, "")
