"""What all tests share: a watch over what they leave behind, and the pool of worker processes."""

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests.parallel.pool import Pool

WRITTEN_BY_OTHERS = {
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "WANDB_SERVICE",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}

MARKS = {"slurm": ("slurm", "slow"), "ray_sweeps": ("ray", "slow")}  # of all tests in a folder
SLOW_SECONDS = 600  # a slow test's timeout; pyproject.toml has that of the others
SLOWEST = 10

# Chosen with --hypothesis-profile. The same examples in each run: a change is judged by what it changed.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("full", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("default")  # not Hypothesis's own for CI


# Under nohup SIGHUP would be ignored by all that the tests start, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class _FilesApart(LoadFileScheduling):
    """Each file goes to one of the test processes; those that start clusters, which look at the machine, all to one."""

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if _starts_a_cluster(nodeid) else super()._split_scope(nodeid)


def _starts_a_cluster(nodeid: str) -> bool:
    return any(nodeid.startswith(f"tests/{folder}/") for folder in MARKS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    config.option.loadscopereorder = False  # the files with the fewest tests are the slowest
    return _FilesApart(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by folder, and begin with the clusters', which wait more than they compute."""
    items.sort(key=lambda item: not _starts_a_cluster(item.nodeid))
    for item in items:
        for folder, marks in MARKS.items():
            if Path(__file__).parent / folder in item.path.parents:
                for mark in marks:
                    item.add_marker(mark)
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the time went."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if type(report) is pytest.TestReport:  # a subtest's seconds are also its test's
                seconds[report.nodeid.split("::")[0]] += report.duration
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:SLOWEST]
    if slowest:
        terminalreporter.write_line("slowest files: " + ", ".join(f"{name} {seconds[name]:.0f} s" for name in slowest))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let no test's random numbers depend on which tests ran before it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


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
