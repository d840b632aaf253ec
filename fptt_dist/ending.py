"""How a program of this package ends: one message and an exit code, a traceback only for a fault of its own."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fptt_dist.config import ConfigError
from fptt_dist.tasks import DataError


@contextmanager
def one_message() -> Iterator[None]:
    """Within the context an error that has a message of its own prints it, with the rank, and ends the program.

    Exit codes: 2 a user's mistake, 1 another failure, 129 / 130 / 140 / 143 stopped by SIGHUP / SIGINT / SIGUSR2 /
    SIGTERM.
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
        code = _code_of(error)
        if code is None:
            if "TORCHELASTIC_RUN_ID" in os.environ:
                from torch.distributed.elastic.multiprocessing.errors import get_error_handler

                get_error_handler().record_exception(error)  # torchrun prints it last, with the rank it came from
            if _may_be_aborted():
                traceback.print_exc()
                end_at_once(1)
            raise
        _leave(f"{where}{error}", code)


def rank_of_process() -> str:
    """This process's rank as whoever started it says, to print once what all would print."""
    in_step = "SLURM_STEP_ID" in os.environ
    return os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if in_step else None) or "0"


def _code_of(error: Exception) -> int | None:
    """The exit code of an error that has a message of its own; None for a fault of the program's."""
    if isinstance(error, ConfigError | DataError):
        return 2
    from fptt_dist.parallel import LostWorkerError
    from fptt_dist.training.signals import Interrupted
    from fptt_dist.training.trainer import NonFiniteError

    if isinstance(error, Interrupted):
        return error.exit_code
    return 1 if isinstance(error, LostWorkerError | NonFiniteError | OSError) else None


def end_at_once(code: int) -> NoReturn:
    """Leave without the interpreter's own end: a process group's threads may abort it, and the code be SIGABRT's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave(message: str, code: int) -> NoReturn:
    print(f"fptt-dist: {message}", file=sys.stderr)
    if _may_be_aborted():
        end_at_once(code)
    sys.exit(code)


def _may_be_aborted() -> bool:
    """Whether this process was connected to others, or was started to be."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" in os.environ:
        return True
    if "fptt_dist.parallel" not in sys.modules:
        return False
    from fptt_dist.parallel import was_connected

    return was_connected()
