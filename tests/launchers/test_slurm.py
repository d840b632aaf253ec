"""`fptt-dist submit` without any SLURM: its sbatch file, what it refuses, and real jobs on this machine.

The sbatch files in recorded/ are what three submissions come to. When they are meant to change, write them anew and
read the difference:

    .venv/bin/python -m tests.launchers.test_slurm && git diff tests/launchers/recorded
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import torch

from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.config.cluster import Cluster, load_cluster
from fptt_dist.config.section import explicit
from fptt_dist.launchers.slurm import Training, sbatch_text, script, submit
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
    lead=120,
    requeues=3,
    array_parallelism=2,
    setup=("module load cuda", 'export NOTE="a b"'),
    sbatch=("--mail-type=END", "--exclusive", "--comment=it's mine"),
    srun=("--mpi=none", "--container-image=/shared/a b.sqsh"),
    python="apptainer exec --nv /shared/fptt.sif python",
)
CASES: dict[str, Callable[[], str]] = {
    "one_node": lambda: sbatch_text(Cluster(), "adding-fptt-seed0", LOGS),
    "everything": lambda: sbatch_text(EVERYTHING, "a run's", LOGS),
    "array": lambda: sbatch_text(Cluster(tasks_per_node=2, array_parallelism=2), "sweep", LOGS, runs=3),
}


pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """The PATH of a machine whose sbatch takes every job, as number 12, and keeps the file it was given."""
    programs = tmp_path / "bin"
    stand_in(programs, "sbatch", f'/bin/cp "$1" {tmp_path / "given"} && echo Submitted batch job 12')
    stand_in(programs, "srun", "exit 1")
    return programs


# The sbatch file.


@pytest.mark.parametrize("case", CASES)
def test_the_sbatch_file_is_the_recorded_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    text = CASES[case]()
    assert text == (RECORDED / f"{case}.sbatch").read_text()
    assert text == CASES[case]()


@pytest.mark.parametrize("case", CASES)
def test_bash_can_read_the_recorded_files(case: str) -> None:
    done = subprocess.run(
        ["/bin/bash", "-n", str(RECORDED / f"{case}.sbatch")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sbatch_file_of_a_submission_without_slurm(place: Path) -> None:
    cluster = Cluster(nodes=2)
    text = script("add_task", ["run.dir=a b/it's ü"], cluster)
    assert text == sbatch_text(cluster, "it's ü", place / "a b" / "it's ü" / "slurm")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("array", [False, True])
def test_sbatch_gets_what_the_dry_run_prints(array: bool, place: Path, slurm: Path) -> None:
    (place / "sweep.yaml").write_text("seed: {grid: [1, 2, 3]}\n")
    sweep = Path("sweep.yaml") if array else None
    words = ["run.dir=a b/it's ü", "device=cpu"]
    printed = script("add_task", words, Cluster(nodes=2), array=sweep)
    done = submit("add_task", words, Cluster(nodes=2), array=sweep)
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


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["train.batchs=3"], {}, "train.batchs: unknown key; did you mean train.batches"),
        (
            ["train.batch_size=4"],
            {"nodes": 2, "gpus_per_node": 4},
            "train.batch_size=4 is the global batch, fewer sequences than the 8 processes: type train.batch_size=8",
        ),
        (
            ["parallel.strategy=single"],
            {"nodes": 2},
            "parallel.strategy=single, but 2 processes were started: type parallel.strategy=consensus or "
            "parallel.strategy=gradient",
        ),
        (
            ["train.batch_size=4"],
            {},
            "there is no sbatch here: type the command on a login node of the cluster, or add --local",
        ),
        (["run.dir=sweep.yaml"], {}, "run.dir={place}/sweep.yaml is a file: type run.dir=… for the run's own folder"),
    ],
)
def test_a_mistake(words: list[str], options: dict[str, int], message: str, place: Path) -> None:
    (place / "sweep.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        submit("add_task", words, load_cluster(None, options))
    assert str(caught.value).startswith(message.format(place=place))
    assert [path.name for path in place.iterdir()] == ["sweep.yaml"]


def test_several_nodes_on_this_machine(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        submit("add_task", [], Cluster(nodes=2), where="local")
    assert str(caught.value) == "--nodes 2 with --local, which is this machine alone: type --nodes 1"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("point", ["", "/001"])
def test_a_folder_that_holds_a_run(point: str, place: Path, slurm: Path) -> None:
    run = place / f"run{point}"
    config = tiny(run, batches=5)
    train_until(config, 2)
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")}
    (place / "sweep.yaml").write_text("telemetry.every: {grid: [1, 2]}\n")
    array = Path("sweep.yaml") if point else None

    def refused(*more: str) -> str:
        with pytest.raises(ConfigError) as caught:
            submit(str(run / "config.yaml"), ["run.dir=run", *more], Cluster(), array=array)
        assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")} == before
        return str(caught.value)

    assert refused().startswith(f"run.dir={run} holds a run already: type resume=auto to go on with it, or run.dir=…")
    changed = refused("resume=auto", "seed=1").splitlines()
    assert changed[0] == f"resume=auto: run.dir={run} holds a run with another configuration:"
    assert changed[1] == "  seed: 0 there, 1 now"
    if array is None:
        assert submit(str(run / "config.yaml"), ["run.dir=run", "resume=auto"], Cluster()).job == "12"


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


@pytest.mark.parametrize("exists", [False, True])
def test_sbatch_refuses_and_no_folder_is_left(exists: bool, place: Path, slurm: Path) -> None:
    stand_in(slurm, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    if exists:
        (place / "deep").mkdir()
    with pytest.raises(ConfigError) as caught:
        submit("add_task", ["run.dir=deep/er/run"], Cluster(partition="nope"))
    assert str(caught.value) == ("sbatch refused the job: sbatch: error: invalid partition specified: nope")
    assert [path.name for path in place.rglob("*")] == ["deep"] * exists


@pytest.mark.parametrize("name", ["/proc/x", "dangling/x", "file/x"])
def test_a_folder_that_cannot_be_created(name: str, place: Path) -> None:
    (place / "dangling").symlink_to("gone")
    (place / "file").touch()
    with pytest.raises(ConfigError) as caught:
        submit("add_task", [f"run.dir={name}"], Cluster(), where="local")
    assert str(caught.value).startswith(f"run.dir={place / name} cannot be created: ")
    assert sorted(path.name for path in place.iterdir()) == ["dangling", "file"]


@pytest.mark.parametrize("name", ["100%j", r'"a\nb"', r'"a\\b"'])
def test_a_folder_whose_name_slurm_would_read_otherwise(name: str, place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        script("add_task", [f"run.dir={name}"], Cluster())
    assert "type run.dir=… without" in str(caught.value)


def test_a_refused_job_leaves_an_old_folder_as_it_was(place: Path, slurm: Path) -> None:
    submit("add_task", ["run.dir=run"], Cluster())
    before = sorted((place / "run").rglob("*"))
    stand_in(slurm, "sbatch", "exit 1")
    with pytest.raises(ConfigError, match="sbatch refused the job"):
        submit("add_task", ["run.dir=run"], Cluster())
    assert sorted((place / "run").rglob("*")) == before


@pytest.mark.parametrize(("launcher", "tasks"), [("single", 2), ("torchrun", 1), ("ray", 1)])
def test_a_launcher_that_will_not_be_there(launcher: str, tasks: int) -> None:
    script("add_task", ["parallel.launcher=single"], Cluster())
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
    message = "fptt-dist: submit needs submitit: pip install 'fptt-dist[slurm]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(place.iterdir()) == []


# What is put back into the queue.


def test_the_checkpoint_of_a_job_is_the_same_run_with_resume(place: Path) -> None:
    values = explicit(tiny(place / "run", {"optimizer.betas": [0.8, 0.95], "schedule.name": "cosine"}))
    training = Training()
    again = training.checkpoint(values)
    assert again.function is training
    assert (again.args, again.kwargs) == (({**values, "resume": "auto"},), {})
    assert "resume" not in values
    pickled = cloudpickle.dumps(again)
    assert b"step-" not in pickled
    assert b"checkpoints" not in pickled
    back = cloudpickle.loads(pickled)
    assert isinstance(back.function, Training)
    assert Config.model_validate(back.args[0]) == apply_overrides(Config.model_validate(values), {"resume": "auto"})
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    sys.executable = PYTHON
    for name, text in CASES.items():
        (RECORDED / f"{name}.sbatch").write_text(text())
