"""What goes wrong by itself: a node is lost, a process is killed, the disk is full."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.helpers import LONG, assert_same, batch_of, newest, sbatch, small, straight, undisturbed
from tests.training.helpers import checkpoints

TRAIN = "slurm/train.sbatch"
DISK_MB = 1
OFTEN = {"checkpoint.every": 10}


@pytest.fixture
def small_disk(tmp_path: Path, installed: None) -> Iterator[Path]:
    """A folder on a file system of its own, of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def training_on(cluster: Cluster, node: str) -> list[int]:
    """The processes on a node that train, by the ids that this machine gives."""
    lines = cluster.processes(node).items()
    return [pid for pid, line in lines if "fptt_dist train" in line and "srun" not in line and ".sbatch" not in line]


def test_lost_nodes(
    tmp_path: Path, new_cluster: Callable[[int], Cluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two jobs lose a node each, one of them the node of its batch script; both start again, where there are nodes."""
    other = undisturbed(tmp_path_factory)
    cluster = new_cluster(4)
    runs = [tmp_path / "one", tmp_path / "two"]
    words = ["--nodes=2", "--exclusive", TRAIN]
    jobs = [sbatch(cluster, run.with_suffix(".log"), *words, small(run, OFTEN)) for run in runs]
    for job, run in zip(jobs, runs, strict=True):
        job.train(run, 30)
    assert [job.shown("NodeList") for job in jobs] == ["node[0-1]", "node[2-3]"]
    cluster.kill_node("node0")
    cluster.kill_node("node3")
    for job in jobs:
        job.requeued()
    checkpoints_left = [newest(run) for run in runs]
    jobs[0].start_now()
    jobs[0].reach("RUNNING", "COMPLETED")
    assert jobs[0].shown("NodeList") == "node[1-2]"
    cluster.start_node("node0")
    cluster.start_node("node3")
    for job, run, checkpoint in zip(jobs, runs, checkpoints_left, strict=True):
        job.end()
        assert f"resumed from {checkpoint}" in job.text()
        assert_same(run, other)
    assert jobs[1].shown("NodeList") in ("node[0,3]", "node[1-2]")


def test_a_killed_process_ends_the_job_and_is_named(tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    job = sbatch(cluster, tmp_path / "log", "--nodes=2", TRAIN, small(run, {**LONG, **OFTEN}))
    job.train(run, 30)
    [pid] = training_on(cluster, "node1")
    os.kill(pid, signal.SIGKILL)
    job.until(lambda: job.state() == "FAILED", "the job to end", 30)
    assert "srun: error: node1: task 1: Killed" in job.text()
    assert newest(run)


def test_a_full_disk(tmp_path: Path, small_disk: Path, new_cluster: Callable[[int], Cluster]) -> None:
    """The job says which checkpoint did not fit; the one before is whole, and the run goes on from it."""
    run = small_disk / "run"
    keys = {"train.batches": 100, "checkpoint.every": 5, "checkpoint.keep_last": 1000, "telemetry.every": 50}
    config = small(tmp_path / "run", {**keys, "run.dir": str(run)})
    cluster = new_cluster(2)  # which sees the disk, because that was there before
    job = sbatch(cluster, tmp_path / "log", "--nodes=2", TRAIN, config)
    job.end(state="FAILED", code="1:0")
    before = newest(run)
    assert 5 < batch_of(before) < 100
    lost = f"{run / 'checkpoints'}/step-{batch_of(before) + 5:08d}"
    message = f"fptt-dist: the checkpoint {lost} could not be written, earlier ones are untouched: "
    assert message in job.text().replace("[rank 1] ", "")
    assert "No space left on device" in job.text()
    assert "No such file" not in job.text()
    assert "Traceback" not in job.text()
    for checkpoint in checkpoints(run):
        if checkpoint != before:
            shutil.rmtree(checkpoint)
    again = sbatch(cluster, tmp_path / "log", "--nodes=2", TRAIN, config, "checkpoint.keep_last=2")
    again.end()
    assert f"resumed from {before}" in again.text()
    assert_same(run, straight(tmp_path / "straight", {**keys, "checkpoint.keep_last": 2}), 100)
