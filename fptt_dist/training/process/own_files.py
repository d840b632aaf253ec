"""Check that nobody else could have written the files of a folder, before any of them is unpickled.

Unpickling a file runs what code it holds. Everybody but this user and root is somebody else.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

ACCESS_LIST = "system.posix_acl_access"
"""The extended attribute that holds a file's access control list."""


def create_closed(folder: Path) -> None:
    """Create a folder, with those above it, that nobody else may enter: what is written there later is safe as well.

    Raises:
        OSError: it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def doubt_inside(folder: Path) -> str | None:
    """Return the first reason why somebody else could have written in `folder`, and what to type; None for none.

    Every file and folder belongs to this user or root and is closed to other writers, which what lies in a folder that
    nobody else may enter is anyway. A link out of the folder leads to what is not looked at, and is a reason too.

    Args:
        folder: an existing folder, by a path without links.

    Raises:
        OSError: something in it cannot be looked at.
    """
    closed = not folder.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    for path in _all_in(folder):
        status = path.lstat()
        if not _is_own(status):
            return f"{path} belongs to {_user(status.st_uid)}: type"
        if stat.S_ISLNK(status.st_mode):
            if _leads_into(path, folder):  # as submitit makes some: what it leads to is looked at too
                continue
            return f"{path} is a symbolic link to a place outside {folder}: type"
        writers = "" if closed else _writers(path, status)
        if writers:
            return (
                f"{path} is writable by {writers}: look whether all in {folder} is your own, and type "
                f"chmod -R go-w {folder}, or"
            )
    return None


def doubt_above(folder: Path) -> str | None:
    """Return the first reason why anybody could put another folder in the place of `folder`; None for none.

    A folder above it that everybody may write, and that is not sticky as /tmp is. One that its group may write, as of a
    project that several people share, is no reason: what they put there would not belong to this user, which
    `doubt_inside` sees.

    Args:
        folder: by an absolute path without links.
    """
    for path in folder.parents:
        mode = path.lstat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{path} is writable by everybody (mode {stat.S_IMODE(mode):04o}): type chmod o-w {path}, or"
    return None


def _all_in(folder: Path) -> Iterator[Path]:
    """Yield the folder and what lies in it, each folder before its contents; links are not followed."""

    def fail(error: OSError) -> None:
        raise error

    yield folder
    for place, folders, files in os.walk(folder, onerror=fail):
        for name in (*folders, *files):
            yield Path(place, name)


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # links that lead to each other
        return False


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _writers(path: Path, status: os.stat_result) -> str:
    """Name who else may write, with the mode; "" for nobody."""
    mode = f"(mode {stat.S_IMODE(status.st_mode):04o})"
    if status.st_mode & stat.S_IWOTH:
        return f"everybody {mode}"
    if not status.st_mode & stat.S_IWGRP:
        return ""
    if not _is_private(status.st_gid, status.st_uid):
        return f"its group {_group(status.st_gid)} {mode}"
    # Where there is an access control list, the bits of the group are the most that it gives to anybody.
    return f"others by its access control list {mode}" if _has_access_list(path) else ""


def _has_access_list(path: Path) -> bool:
    try:
        return ACCESS_LIST in os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # by the file system, which has no lists then
            return False
        raise


def _is_private(group: int, user: int) -> bool:
    """Return whether a group is a user's own and has no other member, as where files are made with umask 002."""
    try:
        owner, found = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:
        return False
    return owner.pw_gid == group and owner.pw_name == found.gr_name and {*found.gr_mem} <= {owner.pw_name}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
