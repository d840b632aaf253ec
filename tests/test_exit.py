"""End of a program: which errors are one message, with which exit code, and whose rank stands before it."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fptt_dist.config import ConfigError
from fptt_dist.exit import one_message, rank_of_process
from fptt_dist.parallel import LostWorkerError
from fptt_dist.tasks import DataError
from fptt_dist.training.non_finite import NonFiniteError
from fptt_dist.training.process.signals import Interrupted

PLACES = ("RANK", "SLURM_PROCID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nobody started but the test."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


def test_an_error_with_a_message_of_its_own(capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests) -> None:
    for error, code in (
        (ConfigError("why"), 2),
        (DataError("why"), 2),
        (NonFiniteError("why"), 1),
        (OSError("why"), 1),
        (Interrupted("why", 130), 130),
        (Interrupted("why", 140, requeue=True), 140),
        (Interrupted("why", 143), 143),
    ):
        with subtests.test(repr(error)):
            with pytest.raises(SystemExit) as left, one_message():
                raise error
            assert left.value.code == code
            assert capsys.readouterr() == ("", "fptt-dist: why\n")


def test_a_message_of_several_lines_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the lines of two workers that end at once mix."""
    written = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    with pytest.raises(SystemExit), one_message():
        raise Interrupted("stopped\nresume with: this", 143)
    assert [text for text in written if text] == ["fptt-dist: stopped\nresume with: this\n"]


def test_a_lost_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_message():
        raise LostWorkerError(rank=1, collective="sum", seconds=1.0, silent=[0], error=RuntimeError("why"))
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("fptt-dist: rank 1 lost the other workers in the collective 'sum'")
    assert said.endswith("look at the first error of the ranks named, then start again with resume=auto\n")


def allocations() -> list[Callable[[], object]]:
    """Code that fails at once, as no machine has that much memory."""
    return [
        lambda: torch.empty(2**50),
        lambda: torch.empty(2**62, 8),
        lambda: np.random.default_rng(0).random((2**40, 64)),
        lambda: np.random.default_rng(0).random((2**62, 64)),
        lambda: np.random.default_rng(0).random(2**80),
        lambda: bytearray(2**60),
    ]


def test_memory_runs_out(capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests) -> None:
    for number, allocate in enumerate(allocations()):
        with subtests.test(number=number):
            with pytest.raises(SystemExit) as left, one_message():
                allocate()
            assert left.value.code == 1
            said = capsys.readouterr().err
            assert said.startswith("fptt-dist: out of memory (")
            assert "): type a smaller train.batch_size, " in said
            assert said.count("\n") == 1
    with pytest.raises(SystemExit), one_message():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
    assert capsys.readouterr().err.startswith(
        "fptt-dist: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): "
    )


def test_an_error_of_the_system_says_which_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_message():
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/x")
    assert left.value.code == 1
    assert capsys.readouterr().err == "fptt-dist: [Errno 28] No space left on device: '/runs/x'\n"


def test_a_fault_of_the_program_passes(capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests) -> None:
    for error in (KeyError("fault"), SystemExit(7), KeyboardInterrupt()):
        with subtests.test(repr(error)):
            with pytest.raises(type(error)) as left, one_message():
                raise error
            assert left.value is error
            assert capsys.readouterr() == ("", "")


def test_whose_message_it_is(monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    for environ, rank in (
        ({}, "0"),
        ({"RANK": "3"}, "3"),
        ({"RANK": "3", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "3"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "1"),
        ({"SLURM_PROCID": "1"}, "0"),  # a job's batch script, or its shell
        ({"SLURM_STEP_ID": "0"}, "0"),
    ):
        with subtests.test(str(environ)), monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            assert rank_of_process() == rank


def test_another_rank_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit), one_message():
        raise ConfigError("why\nand how")
    assert capsys.readouterr().err == "fptt-dist: [rank 2] why\nand how\n"


DRIVER = """
import atexit, sys
from fptt_dist.config.errors import ConfigError
from fptt_dist.exit import one_message
atexit.register(print, "as usual")
print("so far")
with one_message():
    raise ConfigError("why") if sys.argv[1:] else SystemExit(3)
"""
ALONE = {"ANOTHER": "0"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}


def test_a_process_of_several_ends_before_its_threads_can_abort(subtests: pytest.Subtests) -> None:
    """Also when all went well: a process group's threads may abort the interpreter's own end."""
    for environ, words, code, out, err in (
        (ALONE, ["error"], 2, "so far\nas usual\n", "fptt-dist: why\n"),
        (SRUN, ["error"], 2, "so far\n", "fptt-dist: [rank 1] why\n"),
        (TORCHRUN, ["error"], 2, "so far\n", "fptt-dist: why\n"),
        (ALONE, [], 3, "so far\nas usual\n", ""),
        (SRUN, [], 3, "so far\n", ""),
        (TORCHRUN, [], 3, "so far\n", ""),
    ):
        with subtests.test(f"{environ} {words}"):
            done = subprocess.run(
                [sys.executable, "-c", DRIVER, *words], capture_output=True, text=True, env={**os.environ, **environ}
            )
            assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
