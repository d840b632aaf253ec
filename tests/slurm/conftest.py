"""SLURM for the tests of this folder: one cluster of two nodes for all of them, and others for those that break it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.parallel.pool import Pool
from tests.slurm.cluster import Cluster

NEEDED = ("slurmctld", "slurmd", "munged", "scontrol", "sbatch", "srun")


@pytest.fixture(scope="session")
def installed() -> None:
    """SLURM's daemons, and the right to start them; without these, a skip, except where all tests have to run."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0:
        missing.append("root's rights")
    if missing:
        reason = f"{', '.join(missing)} missing: run as root, with Debian's packages slurm-wlm and munge installed"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="package", autouse=True)
def no_idle_workers(pool: Pool) -> None:
    """The daemons and jobs have the cores and ports to themselves."""
    pool.close()


@contextmanager
def running(nodes: int) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder), nodes)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def small_disk(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a file system of its own, of a megabyte."""
    folder = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def two_nodes(small_disk: Path) -> Iterator[Cluster]:
    """The cluster that all tests share; it sees the disk because that was there before."""
    with running(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(two_nodes: Cluster) -> Iterator[Cluster]:
    """Two nodes, idle; a test cancels nothing itself, and leaves both nodes alive."""
    yield two_nodes
    two_nodes.cancel_all()


@pytest.fixture
def new_cluster(installed: None) -> Iterator[Callable[[int], Cluster]]:
    """Start a cluster of so many nodes, for this test alone."""
    with ExitStack() as stack:
        yield lambda nodes: stack.enter_context(running(nodes))
