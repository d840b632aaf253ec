"""The file that is not where it is looked for, but near: under another folder's or another spelling's name."""

import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

DEPTH, MOST = 3, 5000  # folders below each other, files or folders looked at
SPELLING = str.maketrans("", "", "-_. ")


def get_it(root: Path, target: Path, *, of: str | None = None) -> str:
    """Return "Get", as a message about a missing file continues, after the command that puts in place one that is near.

    Args:
        root: the folder below which it may be.
        target: where it is looked for, in a folder of `root`.
        of: the name of a folder above it, where several data sets have files of the same name.
    """
    wanted = _plain(target.name)
    for path in islice(_files(root), MOST):
        above = [_plain(part) for part in (root.absolute().name, *path.relative_to(root).parts[:-1])]
        if _plain(path.name) != wanted or path in (target, target.with_name(f"{target.name}.gz")):
            continue
        if of is not None and _plain(of) not in above:
            continue
        same_name = path.name.removesuffix(".gz") == target.name
        if same_name and not target.parent.exists():
            command = ["ln", "-s", str(path.parent.absolute()), str(target.parent)]
            return f"It is in {path.parent}: type {shlex.join(command)}. Or get"
        place = target.with_name(f"{target.name}.gz") if path.name.endswith(".gz") else target
        return f"{path} looks like it: type {shlex.join(['mv', str(path), str(place)])}. Or get"
    return "Get"


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in islice(os.walk(root), MOST):
        inside = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(inside.relative_to(root).parts) >= DEPTH:
            folders.clear()
        yield from (inside / name for name in sorted(files))


def _plain(name: str) -> str:
    return name.lower().removesuffix(".gz").translate(SPELLING)
