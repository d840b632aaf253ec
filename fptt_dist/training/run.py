"""From a configuration to a finished run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fptt_dist.config import Config, ConfigError, load
from fptt_dist.parallel import LaunchEnvironment, process_group, resolve_environment
from fptt_dist.parallel.collectives import broadcast_from_first, first_alone
from fptt_dist.training.build import build_device
from fptt_dist.training.dry_run import DryRun, dry_run
from fptt_dist.training.run_folder import Result, RunFolder
from fptt_dist.training.signals import stop_on_signal
from fptt_dist.training.trainer import Trainer

LOG = logging.getLogger("fptt_dist")


def train(config: Config) -> Result:
    """Train as configured, on this process or on all processes that torchrun started.

    Args:
        config: from `fptt_dist.config.load` or built in Python.

    Returns:
        What `result.json` in the run's folder says.

    Raises:
        ConfigError: a mistake in the configuration or the environment.
        NonFiniteError: a loss or gradient was not finite.
        Interrupted: SIGINT or SIGTERM arrived; the run was saved.
    """
    environment = resolve_environment()
    device = build_device(config, environment)
    folder = RunFolder(config)
    # Connected first: a signal while this process waits for the others ends it at once, there is nothing to save.
    with _connected(environment, device), stop_on_signal() as stop:
        trainer = Trainer(folder, environment, device)
        # After all that can be refused: a mistake leaves no folder behind.
        first_alone(folder.open, rank=environment.rank, device=device, name="run folder")
        newest = _agree_on_checkpoint(trainer, device)
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
    environment = resolve_environment()
    device = build_device(config, environment)
    with _connected(environment, device):
        return dry_run(Trainer(RunFolder(config), environment, device))


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
        raise ConfigError(f"{path} is not a run's folder: it has no config.yaml")
    overrides = {"run.dir": str(path), "parallel": {"strategy": "single"}}
    folder = RunFolder(load(path / "config.yaml", overrides))
    environment = LaunchEnvironment()
    device = build_device(folder.config, environment)
    _prepare(device)
    trainer = Trainer(folder, environment, device)
    checkpoint = trainer.store.pointed("best") if which == "best" else trainer.store.newest()
    if checkpoint is None:
        raise ConfigError(f"{path} has no whole {which} checkpoint yet")
    trainer.load_weights(checkpoint)
    return trainer


@contextmanager
def _connected(environment: LaunchEnvironment, device: torch.device) -> Iterator[None]:
    """The processes connected, and torch set up for training."""
    if environment.world > 1:
        LOG.warning("%s, on %s", environment, device)
    _prepare(device)
    with process_group(environment, device):
        yield


def _prepare(device: torch.device) -> None:
    if device.type == "cpu":
        # A long backward pass is full of denormal gradients, on which CPUs are several times slower.
        torch.set_flush_denormal(True)


def _agree_on_checkpoint(trainer: Trainer, device: torch.device) -> Path | None:
    """The newest whole checkpoint as rank 0 sees it."""
    step = torch.full((1,), -1, dtype=torch.int64, device=device)

    def look() -> None:
        newest = trainer.store.newest()
        if newest is not None:
            step.fill_(int(newest.name.removeprefix("step-")))

    first_alone(look, rank=trainer.strategy.rank, device=device, name="newest checkpoint")
    broadcast_from_first([step], name="checkpoint to resume")
    return None if step.item() < 0 else trainer.store.root / f"step-{int(step.item()):08d}"
