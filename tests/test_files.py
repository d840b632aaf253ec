"""Atomic writes."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.files import write_atomic


def test_the_old_content_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old: ü\n")
    real, seen = os.replace, []

    def replace(*paths: Any) -> None:
        seen.append(file.read_text())
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    write_atomic(file, b"new")
    assert (seen, file.read_bytes()) == (["old: ü\n"], b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power failure leaves an empty file under the right name."""
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(os.readlink(f"/proc/self/fd/{file}")), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_atomic(tmp_path / "file", "text")
    assert calls == [str(tmp_path / "file.tmp"), "replace", str(tmp_path)]


def test_a_folder_is_made_where_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    with pytest.raises(OSError, match=r"file could not be written: No such file or directory: choose a folder in "):
        write_atomic(file, "text")
    write_atomic(file, "text", parents=True)
    assert file.read_text() == "text"


CAUSES = {
    errno.ENOSPC: r"No space left on device: free space there \(df -h FOLDER\), or raise your quota",
    errno.EDQUOT: r"Disk quota exceeded: free space there \(df -h FOLDER\), or raise your quota",
    errno.EACCES: r"Permission denied: choose a folder in which you may create files",
    errno.EROFS: r"Read-only file system: choose a folder in which you may create files",
}


@pytest.mark.parametrize("cause", CAUSES, ids=errno.errorcode.get)
def test_a_failure_says_what_to_do_and_leaves_the_old_file(
    cause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old")

    def refuse(*_: Any) -> None:
        raise OSError(cause, os.strerror(cause), "file.tmp")

    monkeypatch.setattr(os, "replace", refuse)
    said = CAUSES[cause].replace("FOLDER", re.escape(str(tmp_path)))
    with pytest.raises(OSError, match=rf"^{re.escape(str(file))} could not be written: {said}$"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"], "no half a file is left"
