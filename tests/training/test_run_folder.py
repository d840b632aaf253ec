"""A run's folder: who may write into it, what may change, and what it holds afterwards."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError, load
from fptt_dist.history import read_runs
from fptt_dist.training.lock import directory_lock as lock
from fptt_dist.training.lock.directory_lock import LostLockError
from fptt_dist.training.lock.holder import Holder
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory, job_of
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.train_state import Progress
from tests.training.helpers import assert_same_run, records, result, resumed, steps, tiny, train_until


def test_an_occupied_folder_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", batches=1)
    train(config)
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        train(config)
    assert str(caught.value) == (
        f"run.dir={tmp_path / 'run'} holds a run already: type resume=auto to resume it, or run.dir=… for another "
        "folder"
    )
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize("exists", [False, True])
def test_resume_auto_starts_where_nothing_is(exists: bool, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    if exists:
        run.mkdir(parents=True)
    assert train(resumed(tiny(run, batches=1))).batches == 1


def test_a_start_that_was_killed_early_is_started_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "versions.json.tmp").write_text("{")
    (run / ".lock").write_bytes(replace(Holder.here(kernel=True), pid=2**22 + 1).text())  # no process has this number
    (run / f".lock.{'a' * 32}").write_text("{")
    assert train(tiny(run, batches=1)).batches == 1
    assert not list(run.glob("*.tmp"))


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    for config in (tiny(tmp_path / "run"), resumed(tiny(tmp_path / "run"))):
        with pytest.raises(ConfigError, match=r"is not empty and holds no run: type run.dir=… for another folder"):
            train(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_as_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"file is a file: type run.dir=… for the run's own folder"):
        train(tiny(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"run.dir=.* cannot be created: Not a directory"):
        train(tiny(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "x"


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=5)
    train_until(parts, 2)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    other = {"seed": 1, "optimizer.name": "sgd", "optimizer.lr": 0.1, "fptt.windows": None, "train.max_norm": None}
    with pytest.raises(ConfigError) as caught:
        train(resumed(parts, **other))
    head, *lines, tail = str(caught.value).splitlines()
    assert head == f"resume=auto: run.dir={tmp_path / 'run'} holds a run with another configuration:"
    assert tail == (
        "Only train.max_batches, train.max_epochs, train.patience, checkpoint.*, logging.*, data.root, "
        "data.workers, "
        "parallel.launcher, parallel.timeout_seconds and, among single, data_parallel, fsdp and deepspeed, "
        "parallel.strategy may change: give the old values, or run.dir=… for a new run"
    )
    assert {
        "  seed: 0 there, 1 now",
        "  optimizer.name: adam there, sgd now",
        "  fptt.windows: 3 there, null now",
    } <= set(lines)
    assert "  optimizer.lr: 0.01 there, 0.1 now" in lines
    assert "  train.max_norm: 1.0 there, null now" in lines
    assert not any("batches" in line or "run.dir" in line for line in lines)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


STRATEGIES = ("single", "data_parallel", "fsdp", "deepspeed", "consensus", "hierarchical", "auto")


def test_who_holds_what_may_change_where_the_updates_are_the_same(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for old in STRATEGIES:
        RunDirectory(tiny(tmp_path / old, {"parallel": {"strategy": old}})).open()
        for new in STRATEGIES:
            with subtests.test(old=old, new=new):
                now = RunDirectory(resumed(tiny(tmp_path / old, {"parallel": {"strategy": new}})))
                if new == old or {new, old} <= set(STRATEGIES[:4]):
                    assert now.check()
                else:
                    with pytest.raises(ConfigError, match=f"  parallel.strategy: {old} there, {new} now"):
                        now.check()


def test_a_machines_workers_may_hold_parts_from_now_on(tmp_path: Path) -> None:
    inside = {"parallel.strategy": "hierarchical", "parallel.intra_node": "data_parallel"}
    RunDirectory(tiny(tmp_path / "run", inside)).open()
    assert RunDirectory(resumed(tiny(tmp_path / "run", {**inside, "parallel.intra_node": "fsdp"}))).check()


def test_what_may_change(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=5)
    train_until(parts, 2)
    changed = {
        "train.max_batches": 4,
        "train.max_epochs": 9,
        "checkpoint.every_batches": 1,
        "checkpoint.keep_last": 7,
        "logging.every_batches": 2,
        "logging.tensorboard": True,
        "parallel.timeout_seconds": 9.0,
        "parallel.launcher": "single",
        "data.root": "elsewhere",
    }
    assert train(resumed(parts, **changed)).batches == 4
    assert steps(tmp_path / "run") == [2, 3, 4]
    assert load(tmp_path / "run" / "config.yaml").train.max_batches == 4


def test_a_moved_run_goes_on(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=5)
    train_until(parts, 2)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert train(resumed(tiny(tmp_path / "moved", batches=5))).batches == 5


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny(tmp_path / "run", batches=3)
    first = train(config)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with caplog.at_level(logging.WARNING):
        assert train(resumed(config)) == first
    assert f"nothing left to do: {tmp_path / 'run'} is finished (batch 3)" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert train(resumed(config, **{"train.max_batches": 4})).batches == 4


def test_a_result_that_is_lost_is_found_again(tmp_path: Path) -> None:
    """Or the run was killed before it was written; the records are those of an undisturbed run too."""
    config = tiny(tmp_path / "run", batches=3)
    train(config)
    shutil.copytree(tmp_path / "run", tmp_path / "straight")
    (tmp_path / "run" / "result.json").unlink()
    train(resumed(config))
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_the_shorter_of_batches_and_epochs_ends_the_run(tmp_path: Path) -> None:
    assert train(tiny(tmp_path / "one", {"train.max_epochs": 1}, batches=7)).batches == 5
    assert train(tiny(tmp_path / "two", {"train.max_epochs": 2}, batches=7)).batches == 7
    assert train(tiny(tmp_path / "three", {"train.max_epochs": 2, "train.max_batches": None})).batches == 10


def test_the_run_keeps_its_identity(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=4)
    train_until(parts, 2)
    identity = RunDirectory(parts).run_id
    outcome = train(resumed(parts))
    assert outcome.run_id == RunDirectory(parts).run_id == identity
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["run_id"] == identity
    assert train(tiny(tmp_path / "other", batches=1)).run_id != identity


RESTS = [
    *(b'{"kind": "train", "bat', b"{}\n", b"null\n[]\n", b'"half', b"\n\n"),
    *(b'{"batch": 1\xff}\n', b'{"batch": 1e999}\n', b'{"batch": "late"}\n', b"\0" * 64, b"[" * 100_000),
]


def test_metrics_are_cut_back_to_the_checkpoint(subtests: pytest.Subtests, tmp_path: Path) -> None:
    overrides = {"checkpoint.every_batches": 2, "evaluate.every_batches": 2}
    train(tiny(tmp_path / "straight", overrides, batches=6))
    parts = tiny(tmp_path / "parts", overrides, batches=6)
    train_until(parts, 4)
    late = "".join(json.dumps({"kind": "train", "batch": batch}) + "\n" for batch in (5, 6, 7)).encode()
    folder = RunDirectory(parts)
    whole = folder.metrics.read_bytes()
    for rest in RESTS:  # of a run that was killed
        with subtests.test(rest=rest[:20]):
            folder.metrics.write_bytes(whole + late + rest)
            folder.cut_metrics(4)
            assert folder.metrics.read_bytes() == whole
    folder.metrics.write_bytes(whole + late + RESTS[0])
    train(resumed(parts))
    assert [record["batch"] for record in records(tmp_path / "parts", "train")] == [1, 2, 3, 4, 5, 6]
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("end", [b"\n", b"", b'\n{"batch": 2\xff}\n', b'\n{"batch": 2\xff}\n{"batch": 3}\n'])
def test_metrics_are_cut_in_place(end: bytes, tmp_path: Path) -> None:
    folder = RunDirectory(tiny(tmp_path))
    folder.cut_metrics(2)
    assert not folder.metrics.exists()
    folder.metrics.write_bytes(b'{"batch": 1}\n{"batch": 2}' + end)
    with folder.metrics.open("a") as writer:  # of a process that stood still
        folder.cut_metrics(2)
        assert folder.metrics.read_bytes() == b'{"batch": 1}\n{"batch": 2}\n'
        folder.cut_metrics(1)
        writer.write('{"batch": 2}\n')
    assert folder.metrics.read_bytes() == b'{"batch": 1}\n{"batch": 2}\n'


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b'{"run_id": "', b"[1]"])
def test_a_run_with_damaged_small_files_resumes(damage: bytes, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"checkpoint.every_batches": 1}, batches=2)
    before = train(config)
    for name in ("versions.json", "result.json", "job.json"):
        (tmp_path / "run" / name).write_bytes(damage)
    with (tmp_path / "run" / "metrics.jsonl").open("rb+") as metrics:
        metrics.write(b"\xff")
    again = train(resumed(config))
    assert (again.run_id, again.value, again.batches) == (before.run_id, before.value, 2)
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["run_id"] == before.run_id
    assert RunDirectory(config).read_result() == again
    assert len((tmp_path / "run" / "metrics.jsonl").read_text(errors="replace").splitlines()) == 4


@pytest.mark.parametrize("text", ["", "seed: 0\n"])
def test_a_configuration_that_is_lost_is_named(text: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", batches=1)
    train(config)
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run/config.yaml is no run's, or damaged: it has no algorithm"):
        train(resumed(config))
    with pytest.raises(ConfigError, match="is no run's, or damaged"):
        evaluate_run(tmp_path / "run")


def test_a_corrupt_line_takes_no_record_with_it(tmp_path: Path) -> None:
    folder = RunDirectory(tiny(tmp_path))
    kept = b'{"batch": 1}\n{"batch": 2\xff}\n{"batch": 3}\n'
    folder.metrics.write_bytes(kept + b'{"batch": 4}\n')
    folder.cut_metrics(3)
    assert folder.metrics.read_bytes() == kept


def test_a_folder_that_is_held_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", batches=3)
    with RunDirectory(config).alone() as held:
        for resume in ("never", "auto"):
            with pytest.raises(ConfigError, match=rf"^run.dir={tmp_path / 'run'} is in use by pid {os.getpid()} on "):
                train(tiny(tmp_path / "run", {"resume": resume}, batches=3))
        held.check()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        RunDirectory(config).check()
    train(config)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config)
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_mistake_that_is_found_under_the_lock_releases_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: RunDirectory) -> None:
        raise ConfigError("no")

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "open", refuse)
        with pytest.raises(ConfigError, match=r"^no$"):
            train(tiny(tmp_path / "run", batches=1))
    assert train(tiny(tmp_path / "run", batches=1)).batches == 1


@pytest.mark.parametrize(("how", "asynchronous"), [("taken over", False), ("taken over", True), ("deleted", True)])
def test_a_run_that_lost_its_folder_writes_nothing_more(
    how: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.0)  # every record asks
    run = tmp_path / "run"
    often = {"evaluate.every_batches": 2, "checkpoint.every_batches": 2, "checkpoint.async_save": asynchronous}

    def lose(progress: Progress) -> None:
        if progress.batch == 4:
            if how == "taken over":
                (run / ".new").write_bytes(replace(Holder.here(kernel=True), host="other", pid=7).text())
                (run / ".new").rename(run / ".lock")
            else:
                (run / ".lock").unlink()

    with pytest.raises(LostLockError) as caught:
        train(tiny(run, often, batches=6), lose)
    said = {"taken over": "was taken over by pid 7 on other (", "deleted": f"{run / '.lock'} is gone, so nothing more"}
    assert said[how] in str(caught.value)
    assert "so nothing more is written" in str(caught.value)
    assert steps(run) == [2, 4]
    assert {record["batch"] for record in records(run, "train")} == {1, 2, 3, 4}
    assert {record["batch"] for record in records(run, "evaluation")} == {2, 4}
    assert (run / ".lock").exists() is (how == "taken over")
    (run / ".lock").unlink(missing_ok=True)
    train(resumed(tiny(run, often, batches=6)))
    train(tiny(tmp_path / "straight", often, batches=6))
    assert_same_run(tmp_path / "straight", run)


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"optimizer.betas": [0.8, 0.95], "schedule.name": "cosine"}, batches=1)
    train(config)
    assert load(tmp_path / "run" / "config.yaml") == config


def test_a_run_of_another_schema_is_refused_and_not_read_anew(tmp_path: Path) -> None:
    """Its `algorithm: tbptt` was another algorithm."""
    config = tiny(tmp_path / "run", {"algorithm": "tbptt"}, batches=1)
    train(config)
    versions = tmp_path / "run" / "versions.json"
    values = json.loads(versions.read_text())
    del values["schema_version"]
    versions.write_text(json.dumps(values))
    for read in (
        lambda: train(resumed(config)),
        lambda: evaluate_run(tmp_path / "run"),
        lambda: read_runs([tmp_path / "run"]),
    ):
        with pytest.raises(ConfigError, match=r"run has run schema 1 of another fptt_dist, this one reads 2: use the"):
            read()
    values["schema_version"] = 3
    versions.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="run has run schema 3 of another"):
        read_runs([tmp_path / "run"])


def test_the_folder_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(Path("x"), {"run.dir": None, "seed": 3, "algorithm": "tbptt"}, batches=1))
    run = Path("runs/adding-tbptt-seed3")
    assert load(run / "config.yaml").run.dir == str(run)
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "network.json",
        "result.json",
        "versions.json",
    }
    assert result(run)["seed"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.batch_size": 21}, "train.batch_size=21 is more than the 20 training sequences of an epoch"),
        ({"task.length": 2, "fptt.windows": 1, "model.init": "chrono"}, "chrono needs at least 3 steps"),
        ({"device": "cuda"}, "device=cuda, but torch finds no usable GPU"),
    ],
)
def test_a_mistake_leaves_no_folder_behind(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny(tmp_path / "run", overrides))
    assert not (tmp_path / "run").exists()


def test_a_job_that_waits_leaves_the_folder_free(tmp_path: Path) -> None:
    folder = RunDirectory(tiny(tmp_path / "run", batches=1))
    folder.logs.mkdir(parents=True)
    (folder.logs / "12_submitted.pkl").touch()
    folder.note_job("12", log="/somewhere/12_0_log.out")
    assert not folder.check()
    assert folder.job == {"job": "12", "log": "/somewhere/12_0_log.out"}
    train(folder.config)
    assert folder.job == {"job": "12", "log": "/somewhere/12_0_log.out"}


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
    ],
)
def test_the_job_is_noted(variables: dict[str, str], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = tiny(tmp_path / "run", batches=1)
    train(config)
    assert job_of(tmp_path / "run") == {"job": job}
    RunDirectory(config).note_job(job, log="/its/log")  # as submit does, which may come after the start
    train(resumed(config))
    assert job_of(tmp_path / "run") == {"job": job, "log": "/its/log"}
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    train(resumed(config))
    assert job_of(tmp_path / "run") == {"job": "20_0"}


def test_outside_a_job_none_is_noted(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=1))
    assert job_of(tmp_path / "run") == {}


def test_a_job_that_slurm_started_again_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tiny(tmp_path / "run", batches=5)
    train_until(parts, 2)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(parts)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with caplog.at_level(logging.WARNING):
        assert train(parts).batches == 5
    assert caplog.messages[0] == "resume=auto: SLURM started this job again"
    train(tiny(tmp_path / "straight", batches=5))
    assert_same_run(tmp_path / "straight", tmp_path / "run")
