"""Exit of a program of this package: one message and an exit code; a traceback only for a bug of its own."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fptt_dist.streams import printable

NO_MEMORY = (
    "can't allocate memory",  # torch, on the CPU
    "out of memory",  # torch, on a GPU
    "Storage size calculation overflowed",
    "Maximum allowed dimension exceeded",  # NumPy
    "array is too big",
)
"""Words of errors that have no type of their own."""


@contextmanager
def one_message() -> Iterator[None]:
    """Print, within the context, an error that has a message of its own, with the rank, and end the program.

    Exit codes: 2 for a user's mistake, 1 for another failure, 129 / 130 / 140 / 143 if stopped by
    SIGHUP / SIGINT / SIGUSR2 / SIGTERM.
    """
    rank = rank_of_process()
    where = "" if rank == "0" else f"[rank {rank}] "
    try:
        yield
    except SystemExit as left:
        if _may_be_aborted():
            end_at_once(left.code if isinstance(left.code, int) else int(left.code is not None))
        raise
    except Exception as error:
        memory = out_of_memory(error)
        code = 1 if memory is not None else _code_of(error)
        if code is None:
            if "TORCHELASTIC_RUN_ID" in os.environ:
                from torch.distributed.elastic.multiprocessing.errors import get_error_handler

                get_error_handler().record_exception(error)  # torchrun prints it last, with the rank it came from
            if _may_be_aborted():
                traceback.print_exc()
                end_at_once(1)
            raise
        _leave(f"{where}{memory or error}", code)


def rank_of_process() -> str:
    """Return this process's rank as its launcher set it, to print once what all workers would print."""
    in_step = "SLURM_STEP_ID" in os.environ
    return os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if in_step else None) or "0"


def out_of_memory(error: Exception) -> str | None:
    """Return the message of an error that says that memory ran out, or that no memory is so large; None for others."""
    if _code_of(error) is not None:  # it says by itself what to do
        return None
    said = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and not any(words in said for words in NO_MEMORY):
        return None
    return (
        f"out of memory ({said or type(error).__name__}): type a smaller train.batch_size, train.micro_batch_size, "
        "task.length or model.hidden; fptt-dist train CONFIG --dry-run says what a run takes"
    )


def _code_of(error: Exception) -> int | None:
    """Return the exit code of an error that has a message of its own; None for a bug of the program."""
    from fptt_dist.config import ConfigError
    from fptt_dist.tasks import DataError

    if isinstance(error, ConfigError | DataError):
        return 2
    if isinstance(error, OSError):
        return 1
    from fptt_dist.parallel import LostWorkerError
    from fptt_dist.training.non_finite import NonFiniteError
    from fptt_dist.training.process.signals import Interrupted

    if isinstance(error, Interrupted):
        return error.exit_code
    return 1 if isinstance(error, LostWorkerError | NonFiniteError) else None


def end_at_once(code: int) -> NoReturn:
    """Exit without the interpreter's shutdown, which a process group's threads may abort with SIGABRT's exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave(message: str, code: int) -> NoReturn:
    # In one write: several workers end at once, and the lines of one must not land within those of another.
    print(f"fptt-dist: {printable(message)}\n", end="", file=sys.stderr)
    if _may_be_aborted():
        end_at_once(code)
    sys.exit(code)


def _may_be_aborted() -> bool:
    """Return whether this process was, or was started to be, in a process group with others."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" in os.environ:
        return True
    if "fptt_dist.parallel" not in sys.modules:
        return False
    from fptt_dist.parallel import was_initialized

    return was_initialized()
