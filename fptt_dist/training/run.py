"""Entry points that train a run and try one out."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from fptt_dist.config import Config, ConfigError, apply_overrides, objects_of
from fptt_dist.parallel import Communicator, LaunchEnvironment, LostWorkerError, process_group, resolve_environment
from fptt_dist.training.given import NOTHING, Given
from fptt_dist.training.network_file import keep_network
from fptt_dist.training.process.orphan import ended_with_parent
from fptt_dist.training.process.resume_hint import restart_hint
from fptt_dist.training.process.signals import Interrupted, forward_to_requeue_handler, stop_on_signal
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.consistency import check_consistency
from fptt_dist.training.setup.device import build_device, prepare_torch
from fptt_dist.training.setup.factory import exit_refused
from fptt_dist.training.tools.dry_run import DryRun, dry_run
from fptt_dist.training.train_state import OnValidation
from fptt_dist.training.trainer import Trainer
from fptt_dist.training.vocabulary import keep_vocabulary

LOG = logging.getLogger("fptt_dist")


@ended_with_parent()
def train(config: Config, watch: OnValidation | None = None, given: Given = NOTHING) -> Result:
    """Train as configured, on this worker or on all workers that torchrun started.

    Args:
        config: from `fptt_dist.config.load` or built in Python.
        watch: called by every worker after each validation but the last, when that state has been saved.
        given: objects in the place of those that the configuration describes.

    Returns:
        What `result.json` in the run's folder says.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
        NonFiniteError: a loss or gradient was not finite.
        CallbackError: a callback raised an exception.
        Interrupted: a signal arrived and the run was saved. After SIGUSR2 in a SLURM job the process ends instead, and
            the job goes back into the queue.
        LostWorkerError: another worker died or did not respond in time.
    """
    environment = resolve_environment(config.parallel.launcher)
    if environment.requeues and config.resume == "never":
        LOG.warning("resume=auto: SLURM started this job again")
        config = apply_overrides(config, {"resume": "auto"})
    try:
        with exit_refused(config):
            return _train(config, environment, watch, given)
    except Interrupted as stopped:
        forward_to_requeue_handler(stopped, rank=environment.rank)  # now that the process group is destroyed
        raise
    except LostWorkerError as lost:
        lost.remedy = restart_hint(RunDirectory(config).path, environment, objects=bool(objects_of(config)))
        raise


def _train(config: Config, environment: LaunchEnvironment, watch: OnValidation | None, given: Given) -> Result:
    device = build_device(config, environment)
    folder = RunDirectory(config)
    # Connected first: a signal while this worker waits for the others ends it at once, as there is nothing to save.
    with (
        _connected(environment, device, folder.path) as everyone,
        stop_on_signal(environment.rank) as stop,
        ExitStack() as held,
    ):
        check_consistency(everyone, folder.config)
        trainer = Trainer(folder, environment, device, watch, given)

        def take_folder() -> None:
            held.enter_context(folder.held())
            keep_vocabulary(folder.path, trainer.task)
            keep_network(folder.path, trainer.task)

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
        with exit_refused(folder.config):
            return dry_run(Trainer(folder, environment, device))


@contextmanager
def _connected(environment: LaunchEnvironment, device: torch.device, evidence: Path) -> Iterator[Communicator]:
    """Set up torch, and connect the workers within the context."""
    if environment.world > 1:
        LOG.warning("%s, on %s", environment, device)
    prepare_torch(device, environment)
    with process_group(environment, device, evidence) as everyone:
        yield everyone


def _newest_checkpoint(trainer: Trainer, everyone: Communicator) -> Path | None:
    """Return the newest valid checkpoint as rank 0 sees it; None of a run that has saved nothing.

    Raises:
        ConfigError: the run has checkpoints, and none is valid: to begin anew would lose them.
    """
    root = trainer.store.root

    def look() -> str | None:
        newest = trainer.store.newest()
        if newest is None and trainer.store.has_any():
            raise ConfigError(
                f"none of the checkpoints in {root} is valid, for the reasons above: put a copy of one back there to "
                "resume, or type run.dir=… for a new run"
            )
        return None if newest is None else newest.name

    name = everyone.rank0_first(look, name="newest checkpoint")
    return None if name is None else root / name
