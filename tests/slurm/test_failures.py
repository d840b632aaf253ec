"""What goes wrong by itself: a node is lost, a process is killed, the disk is full."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.helpers import BATCHES, LONG, assert_same, batch_of, newest, sbatch, small, undisturbed
from tests.training.helpers import checkpoints

TRAIN = "slurm/train.sbatch"
OFTEN = {"checkpoint.every_batches": 10}


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
        job.train(run, 20)
    assert [job.shown("NodeList") for job in jobs] == ["node[0-1]", "node[2-3]"]
    lost = [process for node in ("node0", "node3") for process in cluster.processes(node)]
    cluster.kill_node("node0")
    cluster.kill_node("node3")
    assert [process for process in lost if Path(f"/proc/{process}").exists()] == []
    left: dict[Path, Path] = {}

    def requeued() -> bool:  # one may have started again before the other's node is missed
        for job, run in zip(jobs, runs, strict=True):
            if run not in left and job.shown("Restarts") == "1":
                left[run] = newest(run)
        return len(left) == len(runs)

    jobs[0].until(requeued, "both to be requeued")
    assert {cluster.node_state(node) for node in ("node0", "node3")} <= {"down", "down*"}
    jobs[0].until(lambda: "node[1-2]" in [job.shown("NodeList") for job in jobs], "one to start on the two nodes left")
    cluster.start_node("node0")
    cluster.start_node("node3")
    for job, run in zip(jobs, runs, strict=True):
        job.end()
        assert f"resumed from {left[run]}" in job.text()
        assert_same(run, other)
    assert cluster.command("srun", "--nodelist=node0", "hostname") == "node0\n"


def test_a_killed_process_ends_the_job_and_is_named(tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    job = sbatch(cluster, tmp_path / "log", "--nodes=2", TRAIN, small(run, {**LONG, **OFTEN}))
    job.train(run, 30)
    [pid] = training_on(cluster, "node1")
    os.kill(pid, signal.SIGKILL)
    job.until(lambda: job.state() == "FAILED", "the job to end", 30)
    assert "srun: error: node1: task 1: Killed" in job.text()
    assert newest(run)


def test_a_full_disk(
    tmp_path: Path, small_disk: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The job says which checkpoint did not fit; the one before is whole, and the run resumes from it."""
    run = small_disk / "run"
    keys = {
        "checkpoint.every_batches": 5,
        "checkpoint.keep_last": 1000,
        "logging.every_batches": 50,
        "run.dir": str(run),
    }
    words = ["--nodes=2", TRAIN, small(tmp_path / "run", keys)]
    job = sbatch(cluster, tmp_path / "log", *words)
    # The worker whose write failed ends with 1; srun kills the other, and the job's code is the larger of the two.
    job.end(state="FAILED", codes=("1:0", "137:0"))
    before = newest(run)
    assert 5 < batch_of(before) < BATCHES
    lost = f"{run / 'checkpoints'}/step-{batch_of(before) + 5:08d}"
    message = f"fptt-dist: the checkpoint {lost} could not be written, earlier ones are untouched: "
    assert message in job.text().replace("[rank 1] ", "")
    assert "No space left on device" in job.text()
    assert "No such file" not in job.text()
    assert "Traceback" not in job.text()
    for checkpoint in checkpoints(run):
        if checkpoint != before:
            shutil.rmtree(checkpoint)
    again = sbatch(cluster, tmp_path / "log", *words, "checkpoint.keep_last=2")
    again.end()
    assert f"resumed from {before}" in again.text()
    assert_same(run, undisturbed(tmp_path_factory))
