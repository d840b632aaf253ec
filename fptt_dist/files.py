"""Atomic writes of files, and messages of what to do when one fails."""

import errno
import os
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, content: str | bytes, *, parents: bool = False) -> None:
    """Write a file atomically: a reader or a crash sees the old content or the new.

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
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        if error.errno in FULL:
            then = f"free space there (df -h {path.parent}), or raise your quota"
        else:
            then = "choose a folder in which you may create files"
        raise OSError(f"{path} could not be written: {error.strerror or error}: {then}") from error
