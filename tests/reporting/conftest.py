"""Every test of this folder leaves the process as it found it."""

from collections.abc import Iterator

import pytest

from tests.training.helpers import isolated


@pytest.fixture(scope="module", autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield
