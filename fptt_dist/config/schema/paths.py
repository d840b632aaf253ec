"""The type of a key that holds a path: text, but no address of a remote store, which would become a local folder."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.values import show

REMOTE_PATH = "remote_path"
"""The type of pydantic's error for a remote path."""
# Pathlib makes s3:/bucket of s3://bucket, and memory: of memory://. A single letter is a drive of Windows.
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?=/|$)")


def remote_path(value: str | os.PathLike[str]) -> str | None:
    """The problem with a path such as s3://bucket/x, also as pathlib writes it (s3:/bucket/x), and with one that no
    system has; None for a local one.
    """
    text = os.fspath(value)
    if "\0" in text:
        return f"{show(text)} has a NUL in it, which no path may have: type a path without it"
    scheme = _REMOTE.match(text)
    if scheme is None:
        return None
    return (
        f"{show(text)} is a remote path, and only local ones are supported (a mounted file system is one): type a path "
        f"without {scheme[0]}//"
    )


def refuse_remote(name: str, value: str | os.PathLike[str]) -> None:
    """Refuse a remote path that no key of a schema holds.

    Args:
        name: the argument, option or key, for the message.
        value: the path.

    Raises:
        ConfigError: it is one.
    """
    problem = remote_path(value)
    if problem:
        raise ConfigError(f"{name}: {problem}")


def _local(value: str) -> str:
    problem = remote_path(value)
    if problem:
        raise PydanticCustomError(REMOTE_PATH, "{text}", {"text": problem})
    return value


LocalPath = Annotated[str, AfterValidator(_local)]
"""Text that is a path of a file or folder on this system."""
