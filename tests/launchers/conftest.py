"""What tests of launchers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.helpers import isolated


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, on a machine without SLURM."""
    work, programs = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    programs.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", str(programs))
    with isolated():
        yield work
