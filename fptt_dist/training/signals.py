"""Ctrl-C and SIGTERM: finish the step, save, leave; a second signal leaves at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was stopped by a signal after saving.

    Attributes:
        exit_code: 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopFlag:
    """What a signal leaves behind: its number, or None."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; SIGTERM's where another worker got the signal."""
        return 128 + (self.number or signal.SIGTERM)


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within the context SIGINT and SIGTERM only set a flag; the second one kills the process as usual.

    The handler does nothing in a forked child. The handlers from before are back on leaving. On another thread than the
    main one signals are left to the program that started it.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers on the main thread alone
        yield flag
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        # The next signal acts by itself, also while a long operation keeps Python from this handler.
        for each in HANDLED:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() == owner:
            flag.number = number
        else:
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
