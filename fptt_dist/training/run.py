"""Entry points that train, try out and evaluate a run."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from fptt_dist.config import Config, ConfigError, Run, SingleProcess, apply_overrides, load
from fptt_dist.history import require_schema
from fptt_dist.parallel import Communicator, LaunchEnvironment, LostWorkerError, process_group, resolve_environment
from fptt_dist.parallel.comm.environment import FROM_SLURM
from fptt_dist.training.checkpoint.store import read_values
from fptt_dist.training.process.orphan import ended_with_parent
from fptt_dist.training.process.resume_hint import hint_of_workers, restart_hint
from fptt_dist.training.process.signals import Interrupted, forward_to_requeue_handler, stop_on_signal
from fptt_dist.training.run_dir import Result, RunDirectory
from fptt_dist.training.setup.consistency import check_consistency
from fptt_dist.training.setup.factory import build_device
from fptt_dist.training.tools.dry_run import DryRun, dry_run
from fptt_dist.training.train_state import OnValidation
from fptt_dist.training.trainer import Trainer

LOG = logging.getLogger("fptt_dist")


@ended_with_parent()
def train(config: Config, watch: OnValidation | None = None) -> Result:
    """Train as configured, on this worker or on all workers that torchrun started.

    Args:
        config: from `fptt_dist.config.load` or built in Python.
        watch: called by every worker after each validation but the last, when that state has been saved.

    Returns:
        What `result.json` in the run's folder says.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
        NonFiniteError: a loss or gradient was not finite.
        Interrupted: a signal arrived and the run was saved. After SIGUSR2 in a SLURM job the process ends instead, and
            the job goes back into the queue.
        LostWorkerError: another worker died or did not respond in time.
    """
    environment = resolve_environment(config.parallel.launcher)
    if environment.requeues and config.resume == "never":
        LOG.warning("resume=auto: SLURM started this job again")
        config = apply_overrides(config, {"resume": "auto"})
    try:
        return _train(config, environment, watch)
    except Interrupted as stopped:
        forward_to_requeue_handler(stopped, rank=environment.rank)  # now that the process group is destroyed
        raise
    except LostWorkerError as lost:
        lost.remedy = restart_hint(RunDirectory(config).path, environment)
        raise


def _train(config: Config, environment: LaunchEnvironment, watch: OnValidation | None) -> Result:
    device = build_device(config, environment)
    folder = RunDirectory(config)
    # Connected first: a signal while this worker waits for the others ends it at once, as there is nothing to save.
    with (
        _connected(environment, device, folder.path) as everyone,
        stop_on_signal(environment.rank) as stop,
        ExitStack() as held,
    ):
        check_consistency(everyone, folder.config)
        trainer = Trainer(folder, environment, device, watch)

        def take_folder() -> None:
            held.enter_context(folder.held())

        # After everything that can be refused: a mistake leaves no folder behind.
        everyone.rank0_first(take_folder, name="run folder")
        newest = _newest_checkpoint(trainer, everyone)
        if newest is not None:
            trainer.restore(newest)
            LOG.warning("resumed from %s", newest)
        result = folder.read_result()
        if trainer.done and result is not None and result.batches == trainer.state.position.batch:
            LOG.warning("nothing left to do: %s is finished (batch %d)", folder.path, trainer.state.position.batch)
            return result
        return trainer.fit(stop)


def try_out(config: Config) -> DryRun:
    """Build the run, train one window of one batch and return what it takes; nothing is written.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
    """
    environment = resolve_environment(config.parallel.launcher)
    device = build_device(config, environment)
    folder = RunDirectory(config)
    with _connected(environment, device, folder.path) as everyone:
        check_consistency(everyone, folder.config)
        return dry_run(Trainer(folder, environment, device))


def evaluate_run(path: Path, which: str = "best") -> dict[str, float]:
    """Return the validation and test metric of a run's checkpoint.

    Args:
        path: the run's folder.
        which: "best" or "latest".

    Raises:
        ConfigError: no run there, or no such checkpoint.
    """
    return open_checkpoint(path, which).test()


def open_checkpoint(path: Path, which: str) -> Trainer:
    """Return a run's trainer with a single worker and the weights of its "best" or "latest" checkpoint.

    Raises:
        ConfigError: no run there, or no such checkpoint.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    require_schema(path)
    config = load(path / "config.yaml")
    folder = RunDirectory(config.model_copy(update={"parallel": SingleProcess(), "run": Run(dir=str(path))}))
    environment = LaunchEnvironment()
    device = build_device(folder.config, environment)
    _prepare(device, environment)
    trainer = Trainer(folder, environment, device)
    checkpoint = trainer.store.resolve_pointer("best") if which == "best" else trainer.store.newest()
    if checkpoint is None:
        newest = trainer.store.newest() if which == "best" else None
        workers = None if newest is None else read_values(newest, "manifest.json")["world"]
        raise ConfigError(f"{path} has no complete {which} checkpoint yet: {hint_of_workers(path, workers)}")
    trainer.load_weights(checkpoint)
    return trainer


@contextmanager
def _connected(environment: LaunchEnvironment, device: torch.device, evidence: Path) -> Iterator[Communicator]:
    """Set up torch, and connect the workers within the context."""
    if environment.world > 1:
        LOG.warning("%s, on %s", environment, device)
    _prepare(device, environment)
    with process_group(environment, device, evidence) as everyone:
        yield everyone


def threads(environment: LaunchEnvironment, cores: int, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of threads that this worker may use: the node's cores, divided among the workers on it.

    Two workers that each use all cores wait for each other at every operation, and are ten times slower.

    Args:
        environment: this worker's place.
        cores: number of cores that this worker may run on.
        environ: the environment variables.

    Returns:
        At least 1; None where the user, or the launcher, has set the number.
    """
    if "OMP_NUM_THREADS" in environ or "MKL_NUM_THREADS" in environ:
        return None
    given = environ.get("SLURM_CPUS_PER_TASK", "")
    own = given.isdecimal() and int(given) > 0
    if own:
        cores = min(cores, int(given))
    shared = 1 if own and environment.source == FROM_SLURM else environment.local_world  # a SLURM task has its own
    return max(1, cores // shared)


def _prepare(device: torch.device, environment: LaunchEnvironment) -> None:
    allowed = threads(environment, len(os.sched_getaffinity(0)))
    if allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)  # never more: torch knows the real cores, and a program may want fewer
    if device.type == "cpu":
        # A long backward pass is full of denormal gradients, on which CPUs are several times slower.
        torch.set_flush_denormal(True)


def _newest_checkpoint(trainer: Trainer, everyone: Communicator) -> Path | None:
    """Return the newest valid checkpoint as rank 0 sees it."""

    def look() -> str | None:
        newest = trainer.store.newest()
        return None if newest is None else newest.name

    name = everyone.rank0_first(look, name="newest checkpoint")
    return None if name is None else trainer.store.root / name
