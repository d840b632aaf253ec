"""What tests of launchers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.helpers import isolated


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, with what a run changes in its process put back."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with isolated():
        yield work


@pytest.fixture
def place(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same on a machine without SLURM."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return here
