"""End a worker with the process that started it: nothing else would stop it, or know that it still writes its run."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STARTED_BY = "FPTT_DIST_STARTED_BY"
"""Variable that tells a worker the id of the process that started it."""
STARTERS = {STARTED_BY, "TORCHELASTIC_RUN_ID"}
"""Variables of which a worker has at least one."""
SET_SIGNAL, GET_SIGNAL = 1, 2  # PR_SET_PDEATHSIG and PR_GET_PDEATHSIG of prctl(2)


def end_with_parent_at_once(parent: int) -> None:
    """Let the kernel end this process when its parent dies, which has the id `parent`; at once if it is dead already.

    It has no effect on other systems than Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def ended_with_parent() -> Iterator[None]:
    """Let the kernel send SIGTERM to a worker, within the context, when its parent dies; at once if it is dead already.

    It has an effect only in a worker, on Linux, and on the main thread, as with all signals.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or sys.platform != "linux" or not STARTERS & os.environ.keys():
        yield
        return
    told = os.environ.pop(STARTED_BY, "")  # not for what this process starts itself
    parent = int(told) if told.isdecimal() else os.getppid()
    kernel = ctypes.CDLL(None)
    before = ctypes.c_int()
    kernel.prctl(GET_SIGNAL, ctypes.byref(before))
    # At the end of the thread that has started this process: torchrun's and submitit's main ones. Nobody inherits it.
    kernel.prctl(SET_SIGNAL, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        yield
    finally:
        kernel.prctl(SET_SIGNAL, ctypes.c_ulong(before.value))
