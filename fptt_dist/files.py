"""Atomic writes of files, and messages of what to do when one fails."""

import errno
import os
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, content: str | bytes, *, parents: bool = False) -> None:
    """Write a file atomically: a reader, a crash or a power failure leaves the old content or the new.

    Args:
        path: where it is put.
        content: all of it.
        parents: whether its folder is created.

    Raises:
        OSError: it could not be written, with what to do.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())  # or the new name may reach the disk before the content does
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> OSError:
    """Return the error to raise for a file that could not be written, with what to do."""
    if error.errno in FULL:
        then = f"free space there (df -h {path.parent}), or raise your quota"
    else:
        then = "choose a folder in which you may create files"
    return OSError(f"{path} could not be written: {error.strerror or error}: {then}")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
