"""Every test of this folder leaves the process as it found it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.helpers import MEMORY, isolated


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where that is possible: each checkpoint flushes a dozen files to the disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)
