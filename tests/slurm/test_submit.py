"""`fptt-dist submit` and `fptt-dist jobs`, as a user types them, on a real SLURM."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from fptt_dist.config import load
from fptt_dist.launchers.slurm.jobs import ENDED, JobRow, list_runs
from tests.slurm.cluster import Cluster
from tests.slurm.helpers import (
    BATCHES,
    SECONDS,
    assert_same,
    batch_of,
    checked,
    fptt_dist,
    newest_batch,
    printed,
    run_id,
    saved,
    small,
    submitted,
    typed,
    undisturbed,
    variables,
)

NOTHING = "--wrap=sleep 1000"


def row(cluster: Cluster, run: Path) -> JobRow:
    """What `fptt-dist jobs` has on a run."""
    with patch.dict(os.environ, variables(cluster), clear=True):
        [found] = [row for row in list_runs(run.parent) if row.run == run]
    return found


def refused(cluster: Cluster, *words: str) -> str:
    """The one message of a `fptt-dist submit` that puts nothing into the queue."""
    listed = ["squeue", "--noheader", "--states=all", "--format=%i"]
    before = cluster.command(*listed)
    done = fptt_dist(cluster, "submit", *words)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("fptt-dist: ")
    assert "Traceback" not in done.stderr
    assert cluster.command(*listed) == before
    return done.stderr.removeprefix("fptt-dist: ").rstrip()


def test_a_job_from_the_command_to_the_result(
    tmp_path: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It waits, runs, goes back into the queue, is cancelled and resumed, each with the command that was printed."""
    run = tmp_path / "run"
    words = ["--nodes=2", small(run)]
    script = checked(["fptt-dist", "submit", "--dry-run", *words], variables(cluster))
    assert not run.exists()
    blocker = cluster.submit("--nodes=2", "--exclusive", "--output=/dev/null", NOTHING)
    cluster.wait_for(blocker, {"RUNNING"}, 60)

    job, lines = submitted(cluster, checked(["fptt-dist", "submit", *words], variables(cluster)))
    number = job.number
    assert (run / f"slurm/{number}_submission.sh").read_text() == script
    log = run / f"slurm/{number}_0_log.out"
    assert lines == {
        "job": number,
        "run": str(run),
        "log": str(log),
        "follow": f"tail -n +1 -F {log}",
        "state": f"fptt-dist jobs {tmp_path}",
        "cancel": f"scancel {number}",
        "resume": f"fptt-dist submit --nodes=2 {words[1]} resume=auto",
    }
    waiting = row(cluster, run)
    assert (waiting.job, waiting.batch, waiting.nodes, waiting.last_words) == (number, "", "", "")
    assert waiting.state.startswith("pending (")
    remedy = f"type run.dir=… for another folder, or scancel {number} first"
    busy = f"run.dir={run} belongs to job {number}, which is {{}}: {remedy}"
    assert refused(cluster, *words) == busy.format("pending")

    cluster.command("scancel", blocker)
    job.train(run, 20)
    running = row(cluster, run)
    assert (running.state, running.nodes) == ("running", "node[0-1]")
    assert running.batch.endswith(f" of {BATCHES}")
    assert refused(cluster, *words, "resume=auto") == busy.format("running")
    identity = run_id(run)
    cluster.command("scancel", "--signal=USR2", number)
    job.requeued()
    checkpoint = saved(run)
    assert batch_of(checkpoint) == newest_batch(run), job.text()
    assert f"saved in {checkpoint}" in job.text()
    job.start_now()
    job.train(run, batch_of(checkpoint) + 20)
    assert f"resumed from {checkpoint}" in job.text()

    checked(shlex.split(lines["cancel"]), variables(cluster))
    job.reach("CANCELLED")
    checkpoint = saved(run)
    assert f"saved in {checkpoint}" in job.text()
    assert f"resume with: {lines['resume']}\n" in job.text()
    assert f"saved in {checkpoint}" in typed(["timeout", "2", *shlex.split(lines["follow"])], variables(cluster)).stdout
    gone = row(cluster, run)
    assert gone.state == "cancelled"
    assert "stopped by a signal after batch" in gone.last_words

    again, _ = submitted(cluster, checked(shlex.split(lines["resume"]), variables(cluster)))
    assert again.number != number
    again.end()
    assert f"resumed from {checkpoint}" in again.text()
    assert run_id(run) == identity
    assert_same(run, undisturbed(tmp_path_factory))
    table = checked(shlex.split(lines["state"]), variables(cluster))
    [line] = [line for line in table.splitlines() if line.startswith(str(run))]
    assert line.split()[1:5] == ["finished", str(BATCHES), "of", str(BATCHES)]


def test_an_array(tmp_path: Path, cluster: Cluster) -> None:
    """Its runs are those of the sweep, and the task that finishes last writes the sweep's results."""
    base = tmp_path / "base"
    config = small(tmp_path / "run", {"train.max_batches": 20, "checkpoint.every_batches": 10, "optimizer.lr": 0.003})
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"config: {Path(config).name}\nspace:\n  optimizer.lr: {{grid: [0.001, 0.01, 0.003]}}\n")
    job, lines = submitted(cluster, printed(cluster, "submit", "--array", str(sweep), f"run.dir={base}"))
    runs = [base / f"{index:03d}" for index in range(3)]
    assert lines["run"].split() == [str(run) for run in runs]
    assert lines["resume"] == f"fptt-dist submit --array {sweep} run.dir={base} resume=auto"
    notes = [json.loads((run / "trial.json").read_text()) for run in runs]
    assert notes == [
        {"index": 0, "overrides": {}, "default": True},
        {"index": 1, "overrides": {"optimizer.lr": 0.001}, "default": False},
        {"index": 2, "overrides": {"optimizer.lr": 0.01}, "default": False},
    ]
    cluster.wait_for(job.number, ENDED, SECONDS)
    assert cluster.states(job.number) == {"COMPLETED"}, job.text()
    for run, rate in zip(runs, (0.003, 0.001, 0.01), strict=True):
        assert load(run / "config.yaml").optimizer.lr == rate
        assert batch_of(saved(run)) == 20
    assert len({run_id(run) for run in runs}) == 3
    values = [json.loads((run / "result.json").read_text())["value"] for run in runs]
    assert len(set(values)) == 3
    table = printed(cluster, *shlex.split(lines["state"])[1:])
    for index, (run, log) in enumerate(zip(runs, lines["log"].split(), strict=True)):
        [line] = [line for line in table.splitlines() if line.startswith(str(run))]
        assert line.split()[1:5] == ["finished", "20", "of", "20"]
        assert f"{job.number}_{index}" in line.split()
        assert "adding fptt: test mse " in Path(log).read_text()
        assert "could not be written" not in Path(log).read_text()

    found = json.loads((base / "sweep.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 3
    assert [trial["test"] for trial in found["trials"]] == values
    validations = [json.loads((run / "result.json").read_text())["validation"] for run in runs]
    best = runs[validations.index(min(validations))]
    assert found["best"] == int(best.name)
    assert load(base / "best.yaml").optimizer.lr == load(best / "config.yaml").optimizer.lr
    assert list((base / "figures").glob("*.png"))
    report = printed(cluster, "report", str(base))
    assert f"best: {best.name}, validation mse " in report
    ranked = sorted(runs, key=lambda run: validations[runs.index(run)])
    assert re.findall(r"(?m)^\W*\d+ \W*(\d{3}) \W*finished", report) == [run.name for run in ranked]


def test_what_slurm_refuses_leaves_nothing(tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "folder" / "run"
    message = refused(cluster, "--partition=nowhere", small(tmp_path / "run"), f"run.dir={run}")
    assert message.startswith("sbatch refused the job: ")
    assert "invalid partition specified: nowhere" in message
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_python_that_cannot_import(tmp_path: Path, cluster: Cluster) -> None:
    """The job fails, and `fptt-dist jobs` says why."""
    jobs = {}
    # Without site.py nothing that was installed is found, and with its folder all but what was installed as a link.
    for missing, found in (("submitit", ""), ("fptt_dist", f"env PYTHONPATH={Path(torch.__file__).parents[1]} ")):
        site = tmp_path / f"{missing}.yaml"
        site.write_text(f"python: {found}{sys.executable} -S -P\n")
        words = ["submit", f"--cluster={site}", small(tmp_path / missing / "run")]
        jobs[missing], _ = submitted(cluster, printed(cluster, *words))
    for missing, job in jobs.items():
        job.end(state="FAILED", codes=("1:0",))
        reason = f"No module named '{missing}'"
        assert reason in job.text()
        ended = row(cluster, tmp_path / missing / "run")
        assert ended.state == "failed"
        assert reason in ended.last_words
        assert str(ended.log) == str(job.log)
