"""What became of the runs below a folder: from what they wrote, and from what a queue says of their jobs."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.launchers.slurm import jobs
from fptt_dist.launchers.slurm.jobs import JobRow, Queued, active_jobs, list_runs, queue
from fptt_dist.training.lock.holder import Holder
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory
from tests.training.helpers import isolated, tiny, train_until

STOPPED = "stopped at batch 3, resumable"


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program of SLURM's that does as `script` says, with what no cluster of ours can be made to do."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished and an interrupted run."""
    root = tmp_path_factory.mktemp("jobs")
    with isolated():
        train(tiny(root / "finished", {"evaluate.every_batches": 2}, batches=4))
        train_until(tiny(root / "interrupted", {"evaluate.every_batches": 2}, batches=9), 3)
    return root


@pytest.fixture
def runs(two: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return shutil.copytree(two, tmp_path / "runs")


def note(run: Path, job: str, log: str | None = None) -> None:
    """What submit writes."""
    run.mkdir(exist_ok=True)
    (run / "job.json").write_text(json.dumps({"job": job} | ({} if log is None else {"log": str(run / "log")})))
    if log is not None:
        (run / "log").write_text(log)


def by_name(root: Path) -> dict[str, JobRow]:
    return {row.run.name: row for row in list_runs(root)}


def test_from_the_folders_alone(runs: Path, programs: Path) -> None:
    rows = by_name(runs)
    finished, interrupted = rows["finished"], rows["interrupted"]
    assert (finished.state, finished.batch) == ("finished", "4 of 4")
    assert finished.metric == f"test mse {RunDirectory(tiny(runs / 'finished')).read_result().value:.4g}"  # type: ignore[union-attr]
    assert (interrupted.state, interrupted.batch) == (STOPPED, "3 of 9")
    assert interrupted.metric.startswith("validation mse ")
    for row in rows.values():
        assert (row.job, row.nodes, row.log, row.last_words) == ("", "", None, "")
    config = runs / "interrupted" / "config.yaml"
    assert (finished.resume, interrupted.resume) == ("", f"resume with: fptt-dist train {config} resume=auto")


def test_what_is_saved_counts_and_what_runs(runs: Path, programs: Path) -> None:
    run = runs / "interrupted"
    (run / "metrics.jsonl").unlink()
    for name in ("step-00000009.tmp", "step-00000010", "step-00000011"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-00000011" / "manifest.json").write_text('{"wor')
    assert (by_name(runs)["interrupted"].state, by_name(runs)["interrupted"].batch) == (STOPPED, "3 of 9")
    manifest = run / "checkpoints" / "step-00000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"world": 1', '"world": 2'))
    again = f"fptt-dist launch {run / 'config.yaml'} --nproc 2 resume=auto"
    assert by_name(runs)["interrupted"].resume == f"resume its 2 workers, on one node, with: {again}"
    note(run, "12")
    assert by_name(runs)["interrupted"].resume == "resume with the same command and resume=auto"
    (run / "trial.json").write_text("{}")
    assert by_name(runs)["interrupted"].resume == "resume its sweep with the same command and --resume"
    holder = Holder.here(kernel=False)
    (run / ".lock").write_bytes(holder.text())
    row = by_name(runs)["interrupted"]
    assert (row.state, row.nodes, row.resume) == ("running", holder.host, "")
    (run / ".lock").write_bytes(replace(holder, began="0").text())  # of a process that was killed
    assert by_name(runs)["interrupted"].state == STOPPED
    shutil.rmtree(run / "checkpoints")
    row = by_name(runs)["interrupted"]
    assert (row.state, row.batch, row.resume) == ("stopped, nothing saved", "0 of 9", "")


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b'{"job": "1', b"[1]", b'{"job": 12, "log": null}'])
def test_damaged_files_hide_nothing(damage: bytes, runs: Path, programs: Path) -> None:
    for name in ("job.json", "result.json", "versions.json"):
        (runs / "interrupted" / name).write_bytes(damage)
    (runs / "interrupted" / "versions.json").write_bytes(b"[1]")
    with (runs / "interrupted" / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b"\xff\n[1]\n")
    row = by_name(runs)["interrupted"]
    assert (row.state, row.batch, row.job) == (STOPPED, "3 of 9", "")


def test_a_run_that_only_waits(runs: Path, programs: Path) -> None:
    note(runs / "waits", "12")
    row = by_name(runs)["waits"]
    assert (row.state, row.batch, row.metric, row.job) == ("not finished", "", "", "12")
    stand_in(programs, "squeue", "echo '12|PENDING||Resources'")
    assert by_name(runs)["waits"].state == "pending (Resources)"


def test_what_the_queue_says(runs: Path, programs: Path) -> None:
    down = "Nodes required for job are DOWN, DRAINED or reserved|x"
    expected = {  # the state, the nodes, whether the log's last words are shown
        "12|PENDING||Resources": ("pending (Resources)", "", False),
        f"12|PENDING||{down}": (f"pending ({down})", "", False),
        "12|RUNNING|n[0-1]|None": ("running", "n[0-1]", False),
        "12|COMPLETING|n0|None": ("completing", "n0", False),
        "12|FAILED|n0|NonZeroExitCode": ("failed", "", True),
        "12|TIMEOUT|n0|TimeLimit": ("timeout", "", True),
        "12|OUT_OF_MEMORY|n0|OutOfMemory": ("out_of_memory", "", True),
        "12|COMPLETED|n0|None": (STOPPED, "", True),
        "13|RUNNING|n0|None": (STOPPED, "", True),
    }
    note(runs / "interrupted", "12", "srun: launched\nfptt-dist: the reason\nand where to look\nsrun: error: n0\n\n")
    found = {}
    for line in expected:
        stand_in(programs, "squeue", f"echo '{line}'")
        row = by_name(runs)["interrupted"]
        found[line] = (row.state, row.nodes, row.last_words == "fptt-dist: the reason")
        assert row.last_words in ("", "fptt-dist: the reason")
        assert (row.job, row.batch, row.log) == ("12", "3 of 9", runs / "interrupted" / "log")
    assert found == expected


def test_the_tasks_of_an_array(runs: Path, programs: Path) -> None:
    stand_in(programs, "squeue", "printf '12_0|FAILED|n0|None\\n12_1|RUNNING|n1|None\\n12_10|PENDING||Priority\\n'")
    for index in (0, 1, 10):
        note(runs / f"{index:03d}", f"12_{index}")
    states = {name: row.state for name, row in by_name(runs).items() if name.isdecimal()}
    assert states == {"000": "failed", "001": "running", "010": "pending (Priority)"}
    assert active_jobs() == {"12_1": "RUNNING", "12_10": "PENDING"}


def test_the_last_words(runs: Path, programs: Path) -> None:
    expected = {
        "fptt-dist: first\nfptt-dist: second\nresume with: x\n": "fptt-dist: second",
        "Traceback:\nKeyError: 1\nsrun: error: n0: task 0\n": "KeyError: 1",
        "srun: error: n0: task 0\n": "srun: error: n0: task 0",
        "\n \n": "",
        "cut \udcff short": "cut \ufffd short",
        None: "",
    }
    note(runs / "interrupted", "12", "")
    note(runs / "finished", "13", log="fptt-dist: an old reason\n")
    path = runs / "interrupted" / "log"
    found = {}
    for log in expected:
        if log is None:
            path.unlink()
        else:
            path.write_bytes(log.encode(errors="surrogateescape"))
        rows = by_name(runs)
        found[log] = rows["interrupted"].last_words
        assert (rows["interrupted"].log, rows["finished"].last_words) == (path, "")
    assert found == expected


def test_a_line_that_is_being_written(runs: Path, programs: Path) -> None:
    with (runs / "interrupted" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "train", "batch": 4, "lo')
    assert by_name(runs)["interrupted"].batch == "3 of 9"


def test_the_newest_is_the_last(runs: Path, programs: Path) -> None:
    note(runs / "waits", "12")
    for age, name in enumerate(("interrupted", "waits", "finished")):
        os.utime(runs / name, (1e9 - age, 1e9 - age))
    assert [row.run.name for row in list_runs(runs)] == ["finished", "waits", "interrupted"]


def test_runs_are_found_below(runs: Path, programs: Path) -> None:
    (runs / "sweep").mkdir()
    shutil.move(runs / "interrupted", runs / "sweep" / "interrupted")
    note(runs / "sweep" / "waits", "12")
    assert set(by_name(runs)) == {"finished", "interrupted", "waits"}
    assert set(by_name(runs / "finished")) == {"finished"}


def test_no_run_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for named, place in ((tmp_path, tmp_path), (Path("runs"), tmp_path / "runs")):
        with pytest.raises(ConfigError) as caught:
            list_runs(named)
        assert str(caught.value) == (
            f"{place}: no run is there: type fptt-dist jobs FOLDER, the folder above the runs' folders"
        )


# squeue itself.


def test_without_slurm(programs: Path) -> None:
    assert queue() == {}


def test_what_squeue_is_asked(programs: Path, tmp_path: Path) -> None:
    stand_in(programs, "squeue", f'printf "%s\\n" "$@" > {tmp_path / "asked"}\nprintf "7|RUNNING|n0|None\\n"')
    assert queue() == {"7": Queued("RUNNING", "n0", "None")}
    asked = (tmp_path / "asked").read_text().splitlines()
    assert {"--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r"} < set(asked)


def test_squeue_fails(runs: Path, programs: Path, caplog: pytest.LogCaptureFixture) -> None:
    stand_in(programs, "squeue", "echo warning >&2; echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    note(runs / "interrupted", "12")
    message = "slurm_load_jobs error: Unable to contact: type the command on a login node of the cluster"
    with pytest.raises(ConfigError) as caught:
        queue()
    assert str(caught.value) == message
    with caplog.at_level(logging.WARNING):
        rows = by_name(runs)
    assert caplog.messages == [message]
    assert [rows[name].state for name in ("finished", "interrupted")] == ["finished", STOPPED]


def test_squeue_is_not_asked_of_local_runs(runs: Path, programs: Path, caplog: pytest.LogCaptureFixture) -> None:
    stand_in(programs, "squeue", "echo 'fatal: no cluster' >&2; exit 1")
    note(runs / "interrupted", "process 12")
    with caplog.at_level(logging.WARNING):
        assert by_name(runs)["interrupted"].job == "process 12"
    assert caplog.messages == []


def test_squeue_hangs(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SECONDS", 0.2)
    stand_in(programs, "squeue", "exec /bin/sleep 60")
    with pytest.raises(ConfigError) as caught:
        queue()
    assert str(caught.value) == "squeue: SLURM's controller did not answer within 0 s"


def test_a_queue_in_words_of_another_slurm(programs: Path) -> None:
    stand_in(programs, "squeue", "echo 'CLUSTER: here'\nprintf '12|RUNNING|n\\377|None\\n\\n13|PENDING\\n'")
    assert queue() == {"12": Queued("RUNNING", "n\ufffd", "None")}


def test_a_user_whom_the_machine_does_not_know(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert queue() == {}


def test_a_folder_that_is_no_run_does_not_hide_the_others(
    runs: Path, programs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (runs / "thesis").mkdir()
    (runs / "thesis" / "config.yaml").write_text("title: mine\n")
    (runs / "nothing").mkdir()
    (runs / "nothing" / "config.yaml").write_text("algorithm: fptt\ntask: {name: adding}\ntrain: 3\n")
    (runs / "truncated").mkdir()
    (runs / "truncated" / "job.json").write_text('{"job": "1')
    with caplog.at_level(logging.WARNING):
        assert {"finished", "interrupted"} <= set(by_name(runs))
    assert f"{runs / 'thesis'} cannot be read as a run's folder" in caplog.text


def test_a_finished_run_in_a_job_that_goes_on_with_something_else(runs: Path, programs: Path) -> None:
    stand_in(programs, "squeue", "echo '12|RUNNING|n0|None'")
    note(runs / "finished", "12")
    assert by_name(runs)["finished"].state == "finished"
