"""The printed command that resumes: with as many workers on as many nodes, whoever started them, fit to be pasted."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from fptt_dist.parallel import LaunchEnvironment, resolve_environment
from fptt_dist.parallel.comm.environment import FROM_RAY
from fptt_dist.training.process.resume_hint import RESUME, hint_of_workers, restart_hint, resume_hint, resuming
from tests.parallel.test_environment import ONE_NODE, SALLOC, STEP, TORCHRUN

RUN = Path("runs/a run")
CONFIG = "'runs/a run/config.yaml' resume=auto"
ONE_AGENT = {**TORCHRUN, "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "4"}
BY_HAND = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}
ON_GPUS = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}
ASKED_FOR_GPUS = {**ON_GPUS, "SLURM_GPUS_PER_TASK": "1"}
LAUNCHED = f"fptt-dist launch {CONFIG} --nproc 2"


def test_the_command(subtests: pytest.Subtests) -> None:
    for environ, hint in (
        ({}, f"resume with: fptt-dist train {CONFIG}"),
        (SALLOC, f"resume with: fptt-dist train {CONFIG}"),
        ({**BY_HAND, "WORLD_SIZE": "1"}, f"resume with: fptt-dist train {CONFIG}"),
        (BY_HAND, "resume with the same command and resume=auto"),
        (
            ONE_AGENT,
            f"resume with: torchrun --standalone --nproc-per-node 4 --max-restarts 2 -m fptt_dist train {CONFIG}",
        ),
        (
            {**ONE_AGENT, "TORCHELASTIC_MAX_RESTARTS": "0"},
            f"resume with: torchrun --standalone --nproc-per-node 4 -m fptt_dist train {CONFIG}",
        ),
        (TORCHRUN, "resume on each node with the same command and resume=auto"),
        (STEP, f"resume with: srun --nodes=2 --ntasks-per-node=2 fptt-dist train {CONFIG}"),
        (
            {**ONE_NODE, **ON_GPUS},
            "resume with: srun --nodes=1 --ntasks-per-node=2 --cpus-per-task=8 --gpus-per-node=4 fptt-dist train "
            f"{CONFIG}",
        ),
        (
            {**STEP, **ASKED_FOR_GPUS},
            "resume with: srun --nodes=2 --ntasks-per-node=2 --cpus-per-task=8 --gpus-per-task=1 fptt-dist train "
            f"{CONFIG}",
        ),
        ({**ONE_AGENT, RESUME: LAUNCHED}, f"resume with: {LAUNCHED}"),
        ({**TORCHRUN, RESUME: LAUNCHED}, f"resume on each node with: {LAUNCHED}"),
        (
            {**TORCHRUN, RESUME: "sbatch slurm/train_torchrun.sbatch add_task"},
            "resume with: sbatch slurm/train_torchrun.sbatch add_task",
        ),
    ):
        with subtests.test(environ=environ):
            environment = resolve_environment("auto", {"MASTER_ADDR": "n0", **environ})
            assert resume_hint(RUN, environment, environ) == hint


def test_workers_of_a_program_of_ones_own_on_ray() -> None:
    worker = LaunchEnvironment(world=2, source=FROM_RAY, local_world=2)
    assert resume_hint(RUN, worker, {}) == "resume with the same command and resume=auto"
    assert resume_hint(RUN, replace(worker, world=1), {}) == f"resume with: fptt-dist train {CONFIG}"


def test_what_was_typed_is_quoted_and_said_once() -> None:
    words = ["fptt-dist", "launch", "it's", "optimizer.betas=[0.8, 0.95]", 'a="$HOME"', "resume=never", "--nproc", "2"]
    line = resuming(words)
    assert shlex.split(line) == [*words[:5], *words[6:], "resume=auto"]
    assert "'optimizer.betas=[0.8, 0.95]'" in line
    assert resuming(["fptt-dist", "sweep", "s.yaml", "--resume"], "--resume") == "fptt-dist sweep s.yaml --resume"


def test_before_anything_was_saved_and_of_workers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESUME, raising=False)
    assert restart_hint(tmp_path, LaunchEnvironment()) == "type the same command again, nothing was saved yet"
    (tmp_path / "config.yaml").touch()
    again = f"fptt-dist train {tmp_path}/config.yaml resume=auto"
    assert restart_hint(tmp_path, LaunchEnvironment()) == hint_of_workers(tmp_path, 1) == f"resume with: {again}"
    assert hint_of_workers(RUN, 8) == (
        "resume its 8 workers, on one node, with: fptt-dist launch 'runs/a run/config.yaml' --nproc 8 resume=auto"
    )
    assert hint_of_workers(RUN, None) == "resume with the same command and resume=auto"
