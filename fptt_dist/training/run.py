"""From a configuration to a finished run."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from fptt_dist.config import Config, ConfigError, Run, SingleProcess, apply_overrides, load
from fptt_dist.parallel import Communicator, LaunchEnvironment, LostWorkerError, process_group, resolve_environment
from fptt_dist.parallel.environment import FROM_SLURM
from fptt_dist.training.build import build_device
from fptt_dist.training.checkpoint import read_values
from fptt_dist.training.dry_run import DryRun, dry_run
from fptt_dist.training.orphan import ended_with_parent
from fptt_dist.training.position import Watch
from fptt_dist.training.resume_hint import hint_of_workers, restart_hint
from fptt_dist.training.run_folder import Result, RunFolder
from fptt_dist.training.same_program import check_same_program
from fptt_dist.training.signals import Interrupted, hand_on, stop_on_signal
from fptt_dist.training.trainer import Trainer

LOG = logging.getLogger("fptt_dist")


@ended_with_parent()
def train(config: Config, watch: Watch | None = None) -> Result:
    """Train as configured, on this process or on all processes that torchrun started.

    Args:
        config: from `fptt_dist.config.load` or built in Python.
        watch: called by every process after each validation but the last, when that state has been saved.

    Returns:
        What `result.json` in the run's folder says.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
        NonFiniteError: a loss or gradient was not finite.
        Interrupted: a signal arrived and the run was saved. After SIGUSR2 in a SLURM job the process ends instead, and
            the job goes back into the queue.
        LostWorkerError: another process died or did not come in time.
    """
    environment = resolve_environment(config.parallel.launcher)
    if environment.requeues and config.resume == "never":
        LOG.warning("resume=auto: SLURM started this job again")
        config = apply_overrides(config, {"resume": "auto"})
    try:
        return _train(config, environment, watch)
    except Interrupted as stopped:
        hand_on(stopped, rank=environment.rank)  # now that the processes are no longer connected
        raise
    except LostWorkerError as lost:
        lost.remedy = restart_hint(RunFolder(config).path, environment)
        raise


def _train(config: Config, environment: LaunchEnvironment, watch: Watch | None) -> Result:
    device = build_device(config, environment)
    folder = RunFolder(config)
    # Connected first: a signal while this process waits for the others ends it at once, there is nothing to save.
    with (
        _connected(environment, device, folder.path) as everyone,
        stop_on_signal(environment.rank) as stop,
        ExitStack() as held,
    ):
        check_same_program(everyone, folder.config)
        trainer = Trainer(folder, environment, device, watch)

        def take_folder() -> None:
            held.enter_context(folder.held())

        # After all that can be refused: a mistake leaves no folder behind.
        everyone.first_alone(take_folder, name="run folder")
        newest = _agree_on_checkpoint(trainer, everyone)
        if newest is not None:
            trainer.restore(newest)
            LOG.warning("resumed from %s", newest)
        result = folder.read_result()
        if trainer.done and result is not None and result.batches == trainer.position.batch:
            LOG.warning("nothing left to do: %s is finished (batch %d)", folder.path, trainer.position.batch)
            return result
        return trainer.fit(stop)


def try_out(config: Config) -> DryRun:
    """Build the run, train one window of one batch and say what it takes; nothing is written.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
    """
    environment = resolve_environment(config.parallel.launcher)
    device = build_device(config, environment)
    folder = RunFolder(config)
    with _connected(environment, device, folder.path) as everyone:
        check_same_program(everyone, folder.config)
        return dry_run(Trainer(folder, environment, device))


def evaluate_run(path: Path, which: str = "best") -> dict[str, float]:
    """The validation and test metric of a run's checkpoint.

    Args:
        path: the run's folder.
        which: "best" or "latest".

    Raises:
        ConfigError: no run there, or no such checkpoint.
    """
    return open_checkpoint(path, which).test()


def open_checkpoint(path: Path, which: str) -> Trainer:
    """A run's trainer in this process alone, with the weights of its "best" or "latest" checkpoint.

    Raises:
        ConfigError: no run there, or no such checkpoint.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    config = load(path / "config.yaml")
    folder = RunFolder(config.model_copy(update={"parallel": SingleProcess(), "run": Run(dir=str(path))}))
    environment = LaunchEnvironment()
    device = build_device(folder.config, environment)
    _prepare(device, environment)
    trainer = Trainer(folder, environment, device)
    checkpoint = trainer.store.pointed("best") if which == "best" else trainer.store.newest()
    if checkpoint is None:
        newest = trainer.store.newest() if which == "best" else None
        workers = None if newest is None else read_values(newest, "manifest.json")["world"]
        raise ConfigError(f"{path} has no complete {which} checkpoint yet: {hint_of_workers(path, workers)}")
    trainer.load_weights(checkpoint)
    return trainer


@contextmanager
def _connected(environment: LaunchEnvironment, device: torch.device, evidence: Path) -> Iterator[Communicator]:
    """The processes connected, and torch set up for training."""
    if environment.world > 1:
        LOG.warning("%s, on %s", environment, device)
    _prepare(device, environment)
    with process_group(environment, device, evidence) as everyone:
        yield everyone


def threads(environment: LaunchEnvironment, cores: int, environ: Mapping[str, str] = os.environ) -> int | None:
    """How many threads this process may take: the machine's cores, shared out to the processes on it.

    Two processes that each take all cores wait for each other at every operation, and are ten times slower for it.

    Args:
        environment: this process's place.
        cores: that this process may run on.
        environ: the environment variables.

    Returns:
        At least 1; None where the user, or who started the process, has said how many.
    """
    if "OMP_NUM_THREADS" in environ or "MKL_NUM_THREADS" in environ:
        return None
    given = environ.get("SLURM_CPUS_PER_TASK", "")
    own = given.isdecimal() and int(given) > 0
    if own:
        cores = min(cores, int(given))
    shared = 1 if own and environment.source == FROM_SLURM else environment.local_world  # a task of SLURM's has its own
    return max(1, cores // shared)


def _prepare(device: torch.device, environment: LaunchEnvironment) -> None:
    allowed = threads(environment, len(os.sched_getaffinity(0)))
    if allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)  # never more: torch knows the real cores, and a program may want fewer
    if device.type == "cpu":
        # A long backward pass is full of denormal gradients, on which CPUs are several times slower.
        torch.set_flush_denormal(True)


def _agree_on_checkpoint(trainer: Trainer, everyone: Communicator) -> Path | None:
    """The newest whole checkpoint as rank 0 sees it."""

    def look() -> str | None:
        newest = trainer.store.newest()
        return None if newest is None else newest.name

    name = everyone.first_alone(look, name="newest checkpoint")
    return None if name is None else trainer.store.root / name
