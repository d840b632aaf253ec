"""Jobs that must give way, at every point where SLURM says so: saved, back in the queue, and equal at the end."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.helpers import (
    BATCHES,
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
    submit,
    undisturbed,
)

TRAIN, TORCHRUN, SUBMIT = "slurm/train.sbatch", "slurm/train_torchrun.sbatch", "fptt-dist submit"
WAYS = [TRAIN, TORCHRUN, SUBMIT]
EARLY = 30  # a batch long before the last one


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, uninterrupted."""
    return undisturbed(tmp_path_factory)


def start(cluster: Cluster, way: str, run: Path) -> Job:
    """A job of two processes on two nodes."""
    config = small(run)
    if way == SUBMIT:
        return submit(cluster, "--nodes=2", config)[0]
    return sbatch(cluster, run.with_suffix(".log"), "--nodes=2", way, config)


def stopped(job: Job, run: Path) -> tuple[Path, str]:
    """What a start left that was told to stop: the checkpoint of its last batch, and the run's identity."""
    checkpoint = saved(run)
    assert EARLY <= batch_of(checkpoint) == newest_batch(run), job.text()
    assert f"saved in {checkpoint}" in job.text()
    return checkpoint, run_id(run)


def assert_went_on(job: Job, run: Path, left: tuple[Path, str], other: Path, batches: int = BATCHES) -> None:
    """The next start goes on from there, as the same run, and ends as the run `other`."""
    job.end()
    assert f"resumed from {left[0]}" in job.text()
    assert run_id(run) == left[1]
    assert_same(run, other, batches)


def test_the_time_limit(tmp_path: Path, cluster: Cluster) -> None:
    """SLURM looks twice a minute whose time is nearly over, so the signal comes 20 to 50 s after the start."""
    run = tmp_path / "run"
    often = {"checkpoint.every": 1, "telemetry.tensorboard": True}
    words = ["--nodes=2", "--time=1", "--signal=USR2@10", TRAIN]
    job = sbatch(cluster, tmp_path / "log", *words, small(run, {**LONG, **often}))
    job.requeued()
    left = stopped(job, run)
    batches = newest_batch(run) + 50
    small(run, {"train.batches": batches, **often})  # now that it is clear how many are more than one start trains
    job.start_now()
    other = straight(tmp_path / "straight", {"train.batches": batches})
    assert_went_on(job, run, left, other, batches)
    starts = {path.name.split(".")[-2] for path in (run / "tensorboard").iterdir()}  # the process is in a file's name
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("way", "words"), [*((way, ["scancel", "--signal=USR2"]) for way in WAYS), (TRAIN, ["scontrol", "requeue"])]
)
def test_told_to_stop(tmp_path: Path, cluster: Cluster, other: Path, way: str, words: list[str]) -> None:
    """What SLURM does at the time limit, or an operator, done by hand."""
    run = tmp_path / "run"
    job = start(cluster, way, run)
    job.train(run, EARLY)
    cluster.command(*words, job.number)
    job.requeued()
    left = stopped(job, run)
    job.start_now()
    assert_went_on(job, run, left, other)


@pytest.mark.parametrize("way", [TRAIN, TORCHRUN])
def test_cancelled(tmp_path: Path, cluster: Cluster, other: Path, way: str) -> None:
    """It saves, stays out of the queue, and the printed command resumes it."""
    run = tmp_path / "a run"
    job = sbatch(cluster, run.with_suffix(".log"), "--nodes=2", "--time=30", "--mem=500", way, small(run))
    job.train(run, EARLY)
    cluster.command("scancel", job.number)
    job.until(lambda: job.state() == "CANCELLED" and "saved in" in job.text(), "the job to be cancelled")
    job.until(lambda: cluster.command("squeue", "--noheader", f"--jobs={job.number}") == "", "its processes to end")
    assert job.shown("Restarts") == "0"
    left = stopped(job, run)
    [hint] = {line for line in job.text().splitlines() if line.startswith("resume with: ")}
    size = "--nodes=2 --ntasks-per-node=1 --mem=500 --partition=main --time=00:30:00"
    assert hint == f"resume with: sbatch {size} {way} '{small(run)}' resume=auto"
    again = sbatch(cluster, run.with_suffix(".log"), *shlex.split(hint.removeprefix("resume with: sbatch ")))
    assert_went_on(again, run, left, other)


@pytest.fixture(params=[20, 0], ids=["grace", "no grace"])
def low(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whose partition low gives its jobs so many seconds of grace."""
    cluster.command("scontrol", "update", "PartitionName=low", f"GraceTime={request.param}")
    yield cluster
    cluster.command("scontrol", "update", "PartitionName=low", "GraceTime=20")


def test_gives_way_to_a_partition_of_higher_priority(tmp_path: Path, low: Cluster, other: Path) -> None:
    run = tmp_path / "run"
    words = ["--partition=low", "--nodes=2", "--exclusive", TRAIN, small(run)]
    job = sbatch(low, run.with_suffix(".log"), *words)
    job.train(run, EARLY)
    high = low.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    job.requeued()
    left = stopped(job, run)
    low.wait_for(high, {"COMPLETED"}, SECONDS)
    job.start_now()
    assert_went_on(job, run, left, other)
