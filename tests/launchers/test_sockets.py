"""Listening sockets while workers train: nothing beyond the loopback address on one node, whoever starts them there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launchers.test_local import ENVIRONMENT, batches, free_port, small
from tests.program import Program
from tests.ray_sweeps.processes import MARK, end, listening, marked

pytestmark = pytest.mark.slow

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
LOOPBACK, OTHER_LOOPBACK = "0100007F", "0200007F"


@contextmanager
def training(run: Path, *commands: list[str], **variables: str) -> Iterator[tuple[set[int], set[int]]]:
    """Start commands that together train a long run; once they do, the commands' processes and their workers."""
    mark = uuid.uuid4().hex
    environment = {**ENVIRONMENT, MARK: mark, **variables}
    started = [
        Program(run.with_name(f"log{i}"), command, environment, forked=command[:2] == ["-m", "fptt_dist"])
        for i, command in enumerate(commands)
    ]
    try:
        started[0].wait_until(lambda: bool(batches(run)))
        agents = {program.process.pid for program in started}
        yield agents, marked(mark) - agents
    finally:
        for program in started:
            program.kill()
        end(mark)


def words(run: Path) -> list[str]:
    return small(run, train__max_batches="1000000")


def test_launch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(run, ["-m", "fptt_dist", "launch", "--nproc", "2", "--max-restarts", "1", *words(run)]) as found:
        agent, workers = found
        assert len(workers) == 2
        assert not list(listening(agent)), "torch's agent unpickles what it is sent"
        assert set(listening(workers)) == {LOOPBACK}


def test_launch_on_several_nodes_listens_where_they_meet(tmp_path: Path) -> None:
    run = tmp_path / "run"
    place = ["--nnodes", "2", "--rdzv", f"127.0.0.2:{free_port()}"]
    command = ["-m", "fptt_dist", "launch", "--nproc", "1", *place, *words(run)]
    with training(run, command, command) as (agents, workers):
        assert len(workers) == 2
        assert list(listening(agents)) == [OTHER_LOOPBACK]
        assert set(listening(workers)) <= {LOOPBACK, OTHER_LOOPBACK}


def test_torchrun(tmp_path: Path) -> None:
    """Its own port is its own business; that of the workers is ours."""
    run = tmp_path / "run"
    with training(run, [*TORCHRUN, "--standalone", "-m", "fptt_dist", "train", *words(run)]) as (_, workers):
        assert len(workers) == 2
        assert set(listening(workers)) == {LOOPBACK}


def test_torchrun_without_a_port(tmp_path: Path) -> None:
    """As SECURITY.md says how."""
    run = tmp_path / "run"
    (tmp_path / "private").mkdir(mode=0o700)
    files = ["--rdzv-backend", "c10d", "--rdzv-endpoint", str(tmp_path / "private/store")]
    files += ["--rdzv-conf", "store_type=file", "--local-addr", "localhost"]
    command = [*TORCHRUN, *files, "-m", "fptt_dist", "train", *words(run)]
    with training(run, command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as (agent, workers):
        assert len(workers) == 2
        assert not list(listening(agent))
        assert set(listening(workers)) == {LOOPBACK}


def test_the_helper_sees_what_listens_everywhere() -> None:
    import socket

    with socket.create_server(("0.0.0.0", 0)):  # nobody is told its port
        assert "00000000" in set(listening({os.getpid()}))
