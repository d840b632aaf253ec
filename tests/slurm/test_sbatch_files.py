"""The files in slurm/ as they stand: what they train, and what they say of a mistake."""

import re
import subprocess
from pathlib import Path

import pytest

from fptt_dist.training.run_dir import job_of
from tests.slurm.cluster import Cluster
from tests.slurm.helpers import ROOT, Job, assert_same, sbatch, small, straight, variables

FILES = ["slurm/train.sbatch", "slurm/train_torchrun.sbatch"]
CONSENSUS = {"train.max_batches": 60, "parallel": {"strategy": "consensus", "sync_every": 3, "dual": "local"}}


def messages(job: Job) -> list[str]:
    """What the program said of a mistake; a job must not end with a traceback."""
    assert "Traceback" not in job.text()
    return [line for line in job.text().splitlines() if line.startswith("fptt-dist: ")]


@pytest.fixture(scope="module")
def straight_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return straight(tmp_path_factory.mktemp("straight") / "run", CONSENSUS, processes=4)


def test_each_starts_two_on_each_of_two(tmp_path: Path, cluster: Cluster, straight_of_four: Path) -> None:
    by_srun, by_torchrun = tmp_path / "srun", tmp_path / "torchrun"
    config = small(by_srun, CONSENSUS)
    jobs = [
        sbatch(cluster, tmp_path / "log0", "--nodes=2", "--ntasks-per-node=2", FILES[0], config),
        sbatch(cluster, tmp_path / "log1", "--nodes=2", FILES[1], config, f"run.dir={by_torchrun}", NPROC="2"),
    ]
    for job, run, starter in zip(jobs, (by_srun, by_torchrun), ("SLURM's step", "torchrun's"), strict=True):
        job.end()
        assert_same(run, straight_of_four, 60)
        for rank in range(4):
            place = f"rank {rank} of 4, local rank {rank % 2} of 2 on node {rank // 2} of 2"
            assert re.search(rf"{place}(, meeting at \S+)? \(from {starter}", job.text()), job.text()
        assert job_of(run)["job"] == job.number


def test_mistakes(tmp_path: Path, cluster: Cluster) -> None:
    """A job with a mistake says it once and ends with exit code 2."""
    missing = tmp_path / "python"
    missing.write_text('#!/bin/sh\nexec python3 -I -S "$@"\n')
    missing.chmod(0o755)
    jobs = {
        (file, what): sbatch(cluster, tmp_path / f"{what}{index}", "--nodes=2", file, *words, **more)
        for index, file in enumerate(FILES)
        for what, words, more in (
            ("nothing", [], {}),
            ("python", ["add_task"], {"FPTT_PYTHON": str(missing)}),
            ("key", ["add_task", "optimizer.lrr=1", f"run.dir={tmp_path / 'run'}"], {}),
        )
    }
    for (file, what), job in jobs.items():
        job.end(state="FAILED", codes=("2:0",))
        said = messages(job)
        match what:
            case "nothing":
                usage = f"type sbatch {file} CONFIG [key=value …]"
                assert said == [f"fptt-dist: no configuration: {usage}"]
            case "python":
                assert len(said) == 1
                assert said[0].startswith(f"fptt-dist: {missing} on node")
                assert " cannot run fptt_dist (" in said[0]
                assert re.search("No module named '?fptt_dist'?\\)+: ", said[0])
                assert said[0].endswith("set FPTT_PYTHON to the python of its environment before sbatch")
            case _:
                assert len(said) == 1
                assert "optimizer.lrr: unknown key; did you mean optimizer.lr?" in said[0]
    assert not (tmp_path / "run").exists()


def test_outside_slurm(cluster: Cluster) -> None:
    for file in FILES:
        done = subprocess.run(
            ["bash", file, "add_task"], cwd=ROOT, env=variables(cluster), capture_output=True, text=True, timeout=30
        )
        message = f"fptt-dist: this is a job for SLURM: type sbatch {file} CONFIG [key=value …]\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
