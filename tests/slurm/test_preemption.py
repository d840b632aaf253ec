"""Jobs that must give way, at every point where SLURM says so: saved, back in the queue, and equal at the end."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from fptt_dist.training.run_dir import job_of
from tests.slurm.cluster import Cluster
from tests.slurm.helpers import (
    LONG,
    SECONDS,
    Job,
    assert_same,
    batch_of,
    newest_batch,
    run_id,
    saved,
    sbatch,
    small,
    straight,
)
from tests.training.helpers import records

TRAIN, TORCHRUN = "slurm/train.sbatch", "slurm/train_torchrun.sbatch"
EARLY = 20  # batches that each start trains at least

Stop = Callable[[Cluster, str], object]


def signaled(cluster: Cluster, job: str) -> None:
    """Do by hand what SLURM does at the time limit."""
    cluster.command("scancel", "--signal=USR2", job)


def requeued(cluster: Cluster, job: str) -> None:
    """Requeue as an operator does."""
    cluster.command("scontrol", "requeue", job)


def preempted(cluster: Cluster, job: str, grace: int = 20) -> None:
    """Both nodes are wanted by a partition of higher priority, after so many seconds of grace."""
    cluster.command("scontrol", "update", "PartitionName=low", f"GraceTime={grace}")
    try:
        high = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=true", "--output=/dev/null")
        cluster.wait_for(high, {"COMPLETED"}, SECONDS)
    finally:
        cluster.command("scontrol", "update", "PartitionName=low", "GraceTime=20")


def preempted_at_once(cluster: Cluster, job: str) -> None:
    preempted(cluster, job, 0)


def stopped(job: Job, run: Path) -> Path:
    """Return the checkpoint that a stopped start left: of its last batch."""
    checkpoint = saved(run)
    assert batch_of(checkpoint) == newest_batch(run), job.text()
    assert f"saved in {checkpoint}" in job.text()
    return checkpoint


def finite(run: Path, more: int) -> int:
    """Let a run that has no end have one after more batches than it has trained; how many that are."""
    config = run.with_suffix(".yaml")
    batches = newest_batch(run) + more
    config.write_text(config.read_text().replace(f"batches: {LONG['train.max_batches']}", f"batches: {batches}"))
    return batches


def test_the_time_limit(tmp_path: Path, cluster: Cluster) -> None:
    """SLURM looks twice a minute whose time is nearly over: at the file's own 90 s, this job's is from the start."""
    run = tmp_path / "run"
    often = {"checkpoint.every_batches": 1, "logging.tensorboard": True}
    job = sbatch(cluster, tmp_path / "log", "--nodes=2", TRAIN, small(run, {**LONG, **often}))
    job.train(run, EARLY)
    identity = run_id(run)
    cluster.command("scontrol", "update", f"JobId={job.number}", "TimeLimit=2")
    job.requeued()
    left = stopped(job, run)
    cluster.command("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    batches = finite(run, 5)  # now that it is clear how many are more than one start trains
    job.start_now()
    job.end()
    assert f"resumed from {left}" in job.text()
    assert run_id(run) == identity
    assert [record["batch"] for record in records(run, "train")] == list(range(1, batches + 1))
    assert batch_of(saved(run)) == batches
    starts = {path.name.split(".")[-2] for path in (run / "tensorboard").iterdir()}  # the process is in a file's name
    assert len(starts) == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("way", "stops"),
    [(TRAIN, [signaled, requeued, preempted, preempted_at_once]), (TORCHRUN, [signaled])],
    ids=["srun", "torchrun"],
)
def test_told_to_stop_and_cancelled(tmp_path: Path, cluster: Cluster, way: str, stops: list[Stop]) -> None:
    """After each stop the job resumes where it was; cancelled it stays out of the queue, and says what resumes it."""
    run = tmp_path / "a run"
    words = ["--nodes=2", "--time=30", "--mem=500", "--partition=low", "--exclusive", way, small(run, LONG)]
    job = sbatch(cluster, run.with_suffix(".log"), *words)
    job.train(run, EARLY)
    identity = run_id(run)
    for starts, stop in enumerate(stops, 1):
        stop(cluster, job.number)
        job.requeued(starts)
        left = stopped(job, run)
        job.start_now()
        job.train(run, batch_of(left) + EARLY)
        assert f"resumed from {left}" in job.text(), stop
    cluster.command("scancel", job.number)
    job.until(lambda: job.state() == "CANCELLED" and "saved in" in job.text(), "the job to be cancelled")
    job.until(lambda: cluster.command("squeue", "--noheader", f"--jobs={job.number}") == "", "its processes to end")
    assert job.shown("Restarts") == str(len(stops))
    left = stopped(job, run)
    [hint] = {line for line in job.text().splitlines() if line.startswith("resume with: ")}
    size = "--nodes=2 --ntasks-per-node=1 --mem=500 --partition=low --time=00:30:00"
    assert hint == f"resume with: sbatch {size} {way} '{run.with_suffix('.yaml')}' resume=auto"
    batches = finite(run, 30)
    again = sbatch(cluster, tmp_path / "again.log", *shlex.split(hint.removeprefix("resume with: sbatch ")))
    other = straight(tmp_path / "straight", {"train.max_batches": batches})
    again.end()
    assert f"resumed from {left}" in again.text()
    assert again.text().count("adding fptt: test mse ") == 1
    assert run_id(run) == identity
    assert json.loads((run / "result.json").read_text())["workers"] == 2
    assert job_of(run)["job"] == again.number
    assert_same(run, other, batches)
