"""What all tests share: a watch over what they leave behind, and the pool of worker processes."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.pool import Pool

WRITTEN_BY_OTHERS = {
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}

MARKS = {"slurm": ("slurm", "slow"), "ray_sweeps": ("ray", "slow")}  # of all tests in a folder


# Under nohup SIGHUP would be ignored by all that the tests start, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder, marks in MARKS.items():
            if Path(__file__).parent / folder in item.path.parents:
                for mark in marks:
                    item.add_marker(mark)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves an environment variable changed or a process group connected."""
    before = dict(os.environ)
    was_connected = _connected()
    yield
    after = dict(os.environ)
    changed = sorted(
        name for name in (before.keys() | after.keys()) - WRITTEN_BY_OTHERS if before.get(name) != after.get(name)
    )
    for name in changed:  # so that the tests after this one are not failed too
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    left = _connected() and not was_connected
    if left:
        sys.modules["torch.distributed"].destroy_process_group()
    assert not changed, f"the test changed environment variables and left them so: {', '.join(changed)}"
    assert not left, "the test left a process group behind"


def _connected() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_initialized()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four worker processes, which start when a test first needs them and serve all tests of the session."""
    workers = Pool(tmp_path_factory.mktemp("pool"))
    yield workers
    workers.close()
