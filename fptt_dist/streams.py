"""Standard output and error of a program that outlives their readers.

A pipe whose reader has ended, a full disk and a terminal that is gone make every print fail. A run that is hours old
must not end because of that: what cannot be printed is dropped, and so is everything after it.
"""

import io
import os
import re
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD = ("standard input", "standard output", "standard error")
"""Names of the file descriptors 0, 1 and 2."""
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text that somebody else may have chosen, such as a file's name, safe for a terminal.

    Control characters, which could move the cursor or change what is shown, and bytes that are no UTF-8 are escaped;
    line ends and tabs stay.
    """
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), encodable)


def protect(*, result: bool = False) -> None:
    """Open the standard file descriptors that are closed, and replace `sys.stdout` and `sys.stderr` by safe ones.

    Anything but Python's own stream, such as a test's, is left as it is. May be called again.

    Args:
        result: whether the program's result goes to standard output. Then what cannot be written there is an error;
            otherwise it is dropped, like what goes to standard error.
    """
    for number, name in enumerate(STANDARD):
        try:
            os.fstat(number)
        except OSError:
            # Or the next file opened, such as a checkpoint, would get this number, and libraries would print into it.
            # Standard output is opened for reading, so that writing a result there is an error, as on a closed one.
            _open_null(number, os.O_WRONLY if name == "standard error" else os.O_RDONLY)
    sys.stdout = _protected(sys.stdout, 1, result=result)
    sys.stderr = _protected(sys.stderr, 2, result=False)


class _Descriptor(io.FileIO):
    """A standard file descriptor to write to, which stays open.

    Args:
        number: 1 or 2.
        result: whether an error is raised, with the stream's name; otherwise it is dropped.
    """

    def __init__(self, number: int, *, result: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._result = result

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of it, or nothing more from the first error on."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # a pipe that is full, and that its other users have made non-blocking
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            # For libraries too, and for the interpreter, which at its end writes once more what is left over.
            with suppress(OSError):
                _open_null(self.fileno(), os.O_WRONLY)
            if self._result:
                raise OSError(error.errno, error.strerror, STANDARD[self.fileno()]) from error
        return size


def _protected(stream: TextIO | None, number: int, *, result: bool) -> TextIO | None:
    """The same stream, on a descriptor that is safe to write to."""
    if stream is None:  # the descriptor was closed when Python started
        return io.TextIOWrapper(io.BufferedWriter(_Descriptor(number, result=result)), errors="backslashreplace")
    if type(stream) is not io.TextIOWrapper or not _is_on(stream, number):
        return stream
    with suppress(OSError):
        stream.flush()
    descriptor = _Descriptor(number, result=result)
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
    return io.TextIOWrapper(
        descriptor if unbuffered else io.BufferedWriter(descriptor),
        encoding=stream.encoding,
        errors=stream.errors if result else "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _is_on(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):  # in memory, or closed
        return False


def _open_null(number: int, flags: int) -> None:
    """Point a file descriptor, open or closed, at /dev/null."""
    null = os.open(os.devnull, flags)
    if null == number:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, number)
        os.close(null)
