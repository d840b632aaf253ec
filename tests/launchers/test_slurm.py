"""`fptt-dist submit` without any SLURM: its sbatch file, what it refuses, and real jobs on this machine.

The sbatch files in recorded/ are what three submissions come to. When they are meant to change, write them anew and
read the difference:

    .venv/bin/python -m tests.launchers.test_slurm && git diff tests/launchers/recorded
"""

import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import torch

from fptt_dist.config import Config, ConfigError, apply_overrides, dump
from fptt_dist.config.schema.cluster import Cluster, load_cluster
from fptt_dist.config.schema.section import explicit
from fptt_dist.launchers.slurm.submit import TrainingJob, sbatch_text, script, submit
from fptt_dist.launchers.sweeps.directory import check_folder, create_folder
from fptt_dist.launchers.sweeps.plan import make_plan
from fptt_dist.training.lock.directory_lock import hold
from tests.launchers.test_jobs import stand_in
from tests.training.helpers import tiny, train_until

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded"
PYTHON = "/env of mine/bin/python"
LOGS = Path("/shared/a run's/slurm")
EVERYTHING = Cluster(
    partition="gpu",
    account="lab",
    qos="normal",
    constraint="h100|a100",
    time="2-12:00:00",
    nodes=2,
    gpus_per_node=4,
    cpus_per_task=8,
    mem_gb=0.5,
    signal_lead_seconds=120,
    requeues=3,
    array_parallelism=2,
    setup=("module load cuda", 'export NOTE="a b"'),
    sbatch=("--mail-type=END", "--exclusive", "--comment=it's mine"),
    srun=("--mpi=none", "--container-image=/shared/a b.sqsh"),
    python="apptainer exec --nv /shared/fptt.sif python",
)
ALPHAS = "fptt.alpha: {grid: [0.1, 0.3]}"
CASES: dict[str, Callable[[], str]] = {
    "one_node": lambda: sbatch_text(Cluster(), "adding-fptt-seed0", LOGS),
    "everything": lambda: sbatch_text(EVERYTHING, "a run's", LOGS),
    "array": lambda: sbatch_text(Cluster(tasks_per_node=2, array_parallelism=2), "sweep", LOGS, runs=3),
}


pytestmark = pytest.mark.usefixtures("place")


def sweep_file(folder: Path, space: str, *, config: str = "add_task", more: str = "") -> str:
    """The file of a sweep; `space` is one line."""
    (folder / "sweep.yaml").write_text(f"config: {json.dumps(config)}\nspace:\n  {space}\n{more}")
    return "sweep.yaml"


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """The PATH of a machine whose sbatch takes every job, as number 12, and keeps the file it was given."""
    programs = tmp_path / "bin"
    stand_in(programs, "sbatch", f'/bin/cp "$1" {tmp_path / "given"} && echo Submitted batch job 12')
    stand_in(programs, "srun", "exit 1")
    return programs


# The sbatch file.


def test_the_sbatch_file_is_the_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    for case, text_of in CASES.items():
        assert text_of() == (RECORDED / f"{case}.sbatch").read_text()
        assert text_of() == text_of()


def test_bash_can_read_the_recorded_files() -> None:
    for case in CASES:
        command = ["/bin/bash", "-n", str(RECORDED / f"{case}.sbatch")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), case


def test_the_sbatch_file_of_a_submission_without_slurm(place: Path) -> None:
    cluster = Cluster(nodes=2)
    text = script("add_task", ["run.dir=a b/it's ü"], cluster)
    assert text == sbatch_text(cluster, "it's ü", place / "a b" / "it's ü" / "slurm")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("array", [False, True])
def test_sbatch_gets_what_the_dry_run_prints(array: bool, place: Path, slurm: Path) -> None:
    config = sweep_file(place, "fptt.alpha: {grid: [0.1, 0.3]}") if array else "add_task"
    words = ["run.dir=a b/it's ü", "device=cpu"]
    printed = script(config, words, Cluster(nodes=2), array=array)
    assert not (place / "a b").exists()
    done = submit(config, words, Cluster(nodes=2), array=array)
    assert (slurm.parent / "given").read_text() == printed
    base = place / "a b" / "it's ü"
    numbers = [f"12_{task}" for task in range(3)] if array else ["12"]
    assert done.job == "12"
    assert done.runs == ([base / f"{index:03d}" for index in range(3)] if array else [base])
    assert done.logs == [base / "slurm" / f"{number}_0_log.out" for number in numbers]
    for run, number, log in zip(done.runs, numbers, done.logs, strict=True):
        assert json.loads((run / "job.json").read_text()) == {"job": number, "log": str(log)}
        assert (base / "slurm" / f"{number}_submitted.pkl").is_file()


# What is refused, before anything is written.


MISTAKES: list[tuple[list[str], dict[str, int], str]] = [
    (["train.max_batchs=3"], {}, "train.max_batchs: unknown key; did you mean train.max_batches"),
    (
        ["train.batch_size=4"],
        {"nodes": 2, "gpus_per_node": 4},
        "train.batch_size=4 is the global batch, fewer sequences than the 8 workers: type train.batch_size=8",
    ),
    (
        ["parallel.strategy=single"],
        {"nodes": 2},
        "parallel.strategy=single, but 2 workers were started: type parallel.strategy=consensus or "
        "parallel.strategy=data_parallel",
    ),
    (
        ["train.batch_size=4"],
        {},
        "there is no sbatch here: type the command on a login node of the cluster, or add --local",
    ),
    (["run.dir=sweep.yaml"], {}, "run.dir={place}/sweep.yaml is a file: type run.dir=… for the run's own folder"),
]


def test_a_mistake(place: Path) -> None:
    (place / "sweep.yaml").touch()
    wrong = []
    for words, options, message in MISTAKES:
        with pytest.raises(ConfigError) as caught:
            submit("add_task", words, load_cluster(None, options))
        if not str(caught.value).startswith(message.format(place=place)):
            wrong.append((words, str(caught.value)))
        assert [path.name for path in place.iterdir()] == ["sweep.yaml"]
    assert wrong == []


def test_several_nodes_on_this_machine(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        submit("add_task", [], Cluster(nodes=2), where="local")
    assert str(caught.value) == "--nodes 2 with --local, which is this node alone: type --nodes 1"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("array", [False, True])
def test_a_folder_that_holds_a_run(array: bool, place: Path, slurm: Path) -> None:
    run = place / "run" / "001" if array else place / "run"
    config = str(place / "base.yaml")
    (place / "base.yaml").write_text(dump(tiny(place, batches=5)))
    train_until(tiny(run, {"fptt.alpha": 0.1} if array else {}, batches=5), 2)
    if array:
        config = sweep_file(place, ALPHAS, config=config)
        create_folder(make_plan(place / config, ["run.dir=run", "fptt.windows=3"]))
    before = state(place / "run")

    def refused(*more: str) -> str:
        with pytest.raises(ConfigError) as caught:
            submit(config, ["run.dir=run", "fptt.windows=3", *more], Cluster(), array=array)
        assert state(place / "run") == before
        return str(caught.value)

    kind = "sweep" if array else "run"
    said = f"run.dir={place / 'run'} holds a {kind} already: type resume=auto to resume it, or run.dir=…"
    assert refused().startswith(said)
    changed = refused("resume=auto", "seed=1").splitlines()
    if array:
        assert changed[0] == f"resume=auto: run.dir={place / 'run'} holds another sweep:"
        assert changed[1:-1] == ["  config.seed: 0 there, 1 now"]
    else:
        assert changed[0] == f"resume=auto: run.dir={run} holds a run with another configuration:"
        assert changed[1] == "  seed: 0 there, 1 now"
    done = submit(config, ["run.dir=run", "fptt.windows=3", "resume=auto"], Cluster(), array=array)
    assert done.job == "12"
    assert len(done.runs) == (3 if array else 1)


def test_a_folder_below_a_sweep_s_that_holds_another_run(place: Path, slurm: Path) -> None:
    config = sweep_file(place, ALPHAS)
    create_folder(make_plan(place / config, ["run.dir=run"]))
    train_until(tiny(place / "run" / "001", batches=5), 2)
    before = state(place / "run")
    with pytest.raises(ConfigError) as caught:
        submit(config, ["run.dir=run", "resume=auto"], Cluster(), array=True)
    said = f"resume=auto: run.dir={place / 'run' / '001'} holds a run with another configuration:"
    assert str(caught.value).splitlines()[0] == said
    assert state(place / "run") == before


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_folder_that_a_job_waits_for(place: Path, slurm: Path) -> None:
    submit("add_task", ["run.dir=run"], Cluster())
    stand_in(slurm, "squeue", "echo '12|PENDING||Resources'")
    with pytest.raises(ConfigError) as caught:
        submit("add_task", ["run.dir=run"], Cluster())
    assert str(caught.value) == (
        f"run.dir={place / 'run'} belongs to job 12, which is pending: type run.dir=… for another folder, or scancel "
        "12 first"
    )
    stand_in(slurm, "squeue", "echo '12|CANCELLED||None'")
    assert submit("add_task", ["run.dir=run"], Cluster()).job == "12"


@pytest.mark.parametrize("array", [False, True])
def test_a_folder_that_a_process_writes_into(array: bool, place: Path, slurm: Path) -> None:
    config = sweep_file(place, ALPHAS) if array else "add_task"
    with hold(place / "run", "another"):
        before = state(place)
        with pytest.raises(ConfigError) as caught:
            submit(config, ["run.dir=run"], Cluster(), array=array)
        assert str(caught.value).startswith(f"run.dir={place / 'run'} is in use by pid {os.getpid()} on ")
        assert state(place) == before
    assert submit(config, ["run.dir=run"], Cluster(), array=array).job == "12"


def test_sbatch_refuses_and_no_folder_is_left(place: Path, slurm: Path) -> None:
    (place.parent / "files").mkdir()
    sweep = str(place.parent / "files" / sweep_file(place.parent / "files", ALPHAS))
    stand_in(slurm, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    for exists, array in itertools.product((False, True), (False, True)):
        if exists:
            (place / "deep").mkdir(exist_ok=True)
        with pytest.raises(ConfigError) as caught:
            submit(sweep if array else "add_task", ["run.dir=deep/er/run"], Cluster(partition="nope"), array=array)
        assert str(caught.value) == "sbatch refused the job: sbatch: error: invalid partition specified: nope"
        assert [path.name for path in place.rglob("*")] == ["deep"] * exists


def test_a_folder_that_cannot_be_created(place: Path) -> None:
    (place / "dangling").symlink_to("gone")
    (place / "file").touch()
    for name in ("/proc/x", "dangling/x", "file/x"):
        with pytest.raises(ConfigError) as caught:
            submit("add_task", [f"run.dir={name}"], Cluster(), where="local")
        assert str(caught.value).startswith(f"run.dir={place / name} cannot be created: ")
        assert sorted(path.name for path in place.iterdir()) == ["dangling", "file"]


def test_a_folder_whose_name_slurm_would_read_otherwise() -> None:
    for name in ("100%j", r'"a\nb"', r'"a\\b"'):
        with pytest.raises(ConfigError, match=r"type run\.dir=… without"):
            script("add_task", [f"run.dir={name}"], Cluster())


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user: needs root")
@pytest.mark.parametrize("array", [False, True])
def test_a_folder_where_others_could_replace_what_the_job_unpickles(array: bool, place: Path, slurm: Path) -> None:
    config = sweep_file(place, ALPHAS) if array else "add_task"
    mask = os.umask(0o002)
    try:
        submit(config, ["run.dir=run"], Cluster(), array=array)
    finally:
        os.umask(mask)
    logs = place / "run" / "slurm"
    closed = [logs, *(place / "run" / f"{index:03d}" / "slurm" for index in range(3 if array else 0))]
    assert [path.stat().st_mode & 0o777 for path in closed] == [0o700] * len(closed)
    (pickled, *_) = logs.glob("*_submitted.pkl")
    for path in (place / "run").rglob("job.json"):
        path.unlink()
    before = state(place)
    for mode, owner, said in (
        (0o777, 0, f"{logs} is writable by everybody (mode 0777): look whether all in {logs} is your own, and type "),
        (0o700, 54321, f"{pickled} belongs to user 54321: type run.dir=… for another folder"),
    ):
        logs.chmod(mode)
        os.chown(pickled, owner, owner)
        with pytest.raises(ConfigError) as caught:
            submit(config, ["run.dir=run", "resume=auto"], Cluster(), array=array)
        start = f"run.dir={place}/run: the job unpickles a file of slurm/, which runs what it holds, and {said}"
        assert str(caught.value).startswith(start)
        assert state(place) == before
    os.chown(pickled, 0, 0)
    submit(config, ["run.dir=run", "resume=auto"], Cluster(), array=array)


def test_a_refused_job_leaves_an_old_folder_as_it_was(place: Path, slurm: Path) -> None:
    submit("add_task", ["run.dir=run"], Cluster())
    before = sorted((place / "run").rglob("*"))
    stand_in(slurm, "sbatch", "exit 1")
    with pytest.raises(ConfigError, match="sbatch refused the job"):
        submit("add_task", ["run.dir=run"], Cluster())
    assert sorted((place / "run").rglob("*")) == before


def test_a_launcher_that_will_not_be_there() -> None:
    script("add_task", ["parallel.launcher=single"], Cluster())
    for launcher, tasks in (("single", 2), ("torchrun", 1), ("ray", 1)):
        with pytest.raises(ConfigError) as caught:
            script("add_task", [f"parallel.launcher={launcher}"], Cluster(tasks_per_node=tasks))
        assert str(caught.value).startswith(f"parallel.launcher={launcher} ")


WITHOUT_SUBMITIT = """
import sys
sys.modules["submitit"] = sys.modules["submitit.slurm.slurm"] = None
from fptt_dist.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--dry-run", "--local"])
def test_without_submitit(option: str, place: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_SUBMITIT, "submit", "add_task", option]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    message = "fptt-dist: submit needs submitit: pip install -e '.[slurm]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(place.iterdir()) == []


# An array.


def test_an_array_is_the_sweep_with_the_default_and_its_folder(place: Path, slurm: Path) -> None:
    config = sweep_file(place, ALPHAS, more="  seed: {grid: [4, 5]}\n  train.max_batches: 7\n")
    words = ["model.hidden=3", "data.root=here"]
    done = submit(config, words, Cluster(nodes=2, tasks_per_node=3), array=True)
    plan = make_plan(place / config, [*words, "sweep.workers=6"])
    assert (
        done.runs
        == [plan.folder / trial.name for trial in plan.trials]
        == [place / "runs" / "sweep" / f"{index:03d}" for index in range(6)]
    )
    assert {path.name for path in plan.folder.iterdir()} == {"slurm", "sweep.yaml", *(run.name for run in done.runs)}
    assert check_folder(plan, resume=True)
    for run, trial in zip(done.runs, plan.trials, strict=True):
        assert json.loads((run / "trial.json").read_text()) == {
            "index": trial.index,
            "overrides": trial.overrides,
            "default": trial.index < 2,
        }
        assert {path.name for path in run.iterdir()} == {"trial.json", "job.json", "slurm"}
    pickled = [pickle.loads(file.read_bytes()) for file in sorted((plan.folder / "slurm").glob("*_submitted.pkl"))]
    given = [Config.model_validate(each.args[0]) for each in pickled]
    assert given == [plan.run(trial) for trial in plan.trials]
    assert {str(each.data.root) for each in given} == {str(place / "here")}


ARRAY_MISTAKES: list[tuple[str, list[str], str]] = [
    (
        "fptt.alpha: {uniform: [0.1, 1]}",
        ["sweep.search.name=optuna"],
        "--array with search.name=optuna: the runs of an array know nothing of each other: type fptt-dist sweep, "
        "or sweep.search.name=random",
    ),
    (
        "train.batch_size: {grid: [4, 1]}",
        [],
        "train.batch_size=1 is the global batch, fewer sequences than the 2 workers: type train.batch_size=2\n"
        "  in the run train.batch_size=1",
    ),
    (ALPHAS, ["fptt.alpha=0.2"], "sweep.yaml:3: fptt.alpha varies: type no fptt.alpha=…, or leave it"),
    (ALPHAS, ["resume=maybe"], "resume: maybe is not allowed; allowed: one of never, auto"),
    (ALPHAS, ["run.dir=50%"], "run.dir="),
    (ALPHAS, ["parallel.launcher=torchrun"], "parallel.launcher=torchrun is not what starts the 2 workers"),
    ("fptt.alpha: 1", [], "space: nothing varies: write a key with {grid: [one, another]}"),
]


def test_an_array_with_one_mistake(place: Path, slurm: Path) -> None:
    wrong = []
    for (space, words, message), make in itertools.product(ARRAY_MISTAKES, (script, submit)):
        config = sweep_file(place, space)
        with pytest.raises(ConfigError) as caught:
            make(config, words, Cluster(tasks_per_node=2), array=True)
        if not str(caught.value).startswith(message):
            wrong.append((space, words, str(caught.value)))
        assert [path.name for path in place.iterdir()] == ["sweep.yaml"]
        assert not (slurm.parent / "given").exists()
    assert wrong == []


def test_an_array_stops_no_run_early(place: Path, slurm: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = sweep_file(place, ALPHAS, more="scheduler: {name: asha}\n")
    with caplog.at_level(logging.WARNING):
        assert len(submit(config, [], Cluster(), array=True).runs) == 3
    assert caplog.messages == ["scheduler.name=asha: the runs of an array all go to their end"]


def test_an_array_says_what_is_dropped_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = sweep_file(place, "optimizer.name: {grid: [adam, adamw]}", more="  seed: {grid: [1, 2, 3]}\n")
    with caplog.at_level(logging.WARNING):
        text = script(config, [f"run.dir={place / 'mine'}"], Cluster(), array=True)
    assert "#SBATCH --job-name=mine\n" in text
    assert "#SBATCH --array=0-5%" in text
    assert caplog.messages == ["optimizer.name=adamw replaces adam: dropped optimizer.lr=0.003"]


def test_a_packaged_sweep_is_an_array(place: Path) -> None:
    text = script("alpha_windows", [], Cluster(), array=True)
    last = len(make_plan(Path("alpha_windows"), []).trials) - 1
    assert f"#SBATCH --array=0-{last}%" in text
    assert text == script("configs/sweeps/alpha_windows.yaml", [], Cluster(), array=True)
    assert list(place.iterdir()) == []


# What is put back into the queue.


def test_the_checkpoint_of_a_job_is_the_same_run_with_resume(place: Path) -> None:
    values = explicit(tiny(place / "run", {"optimizer.betas": [0.8, 0.95], "schedule.name": "cosine"}))
    training = TrainingJob()
    again = training.checkpoint(values)
    assert again.function is training
    assert (again.args, again.kwargs) == (({**values, "resume": "auto"},), {})
    assert "resume" not in values
    pickled = cloudpickle.dumps(again)
    assert b"step-" not in pickled
    assert b"checkpoints" not in pickled
    back = cloudpickle.loads(pickled)
    assert isinstance(back.function, TrainingJob)
    assert Config.model_validate(back.args[0]) == apply_overrides(Config.model_validate(values), {"resume": "auto"})
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    sys.executable = PYTHON
    for name, text in CASES.items():
        (RECORDED / f"{name}.sbatch").write_text(text())
