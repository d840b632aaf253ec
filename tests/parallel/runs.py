"""Whole runs for the tests: a small configuration, and a trainer whose state can be looked at."""

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fptt_dist.config import Config, ConfigError, load
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.checkpoint.store import read_tensors
from fptt_dist.training.process.signals import Interrupted, StopFlag
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.trainer import Trainer

TINY: dict[str, Any] = {
    "task.length": 20,
    "task.examples": 32,  # an epoch is 4 batches
    "task.validation": 41,  # workers' shares differ by one
    "task.test": 30,
    "model.hidden": 6,
    "fptt.alpha": 0.5,
    "fptt.windows": 4,
    "fptt.metric": "euclidean",
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train.batch_size": 8,
    "train.max_batches": 10,
    "train.max_norm": None,
    "evaluate.every_batches": None,
    "checkpoint.every_batches": 10,
    "logging.every_batches": 1,
    "logging.tensorboard": False,
    "device": "cpu",
}


def tiny(folder: Path, overrides: dict[str, Any] | None = None) -> Config:
    """A run of seconds in `folder`, with dotted keys of `overrides` set."""
    return load("add_task.yaml", {**TINY, "run.dir": str(folder), **(overrides or {})})


@dataclass
class Outcome:
    """What a worker knows at the end of a run.

    Attributes:
        weights: every weight after the last batch.
        optimizer: W̄, u and the base optimizer's moments after the last batch.
        random: the states of the random streams after the last batch.
        values: validation and test metric of the result, as this worker computed them.
        message: of `Interrupted`, where the run was stopped.
        batch: how far it came.
        start: every weight before the first batch.
        engine: the kind of the engine.
        replicated: whether weights and optimizer are equal on all workers.
        folder: the run's folder.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    values: tuple[float, float] | None = None
    message: str = ""
    batch: int = 0
    start: dict[str, Tensor] = field(default_factory=dict)
    engine: str = ""
    replicated: bool = True
    folder: Path = Path()


class Watched(Trainer):
    """A trainer that notes its state at each checkpoint (a finished run has the best weights, read from the disk), and
    whose worker `stopped_rank` finds its stop flag set when it saves batch `stop_at`.
    """

    outcome: Outcome
    start: dict[str, Tensor]
    flag: StopFlag
    stop_at: int | None = None
    stopped_rank: int = 0

    def save(self, *, improved: bool = False) -> Path:
        """Note the state, then save."""
        tensors, _ = state_dict.optimizer_files(self.engine.placement.shards(), self.optimizer)
        streams, _ = state_dict.random_files(self.device)
        self.outcome = Outcome(
            {
                name: tensor.detach().clone()
                for name, tensor in state_dict.model_tensors(
                    self.engine.placement.shards(), self.network, self.shapes, self.dtypes
                ).items()
            },
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            {name: tensor.clone() for name, tensor in streams.items()},
            batch=self.state.position.batch,
            start=self.start,
            engine=self.engine.kind,
            replicated=self.engine.replicated,
            folder=self.folder.path,
        )
        if self.state.position.batch == self.stop_at and self.engine.rank == self.stopped_rank:
            self.flag.number = signal.SIGTERM
        return super().save(improved=improved)


def open_trainer(environment: LaunchEnvironment, config: Config) -> Watched:
    """The trainer of a new run, or of one to resume (resume=auto), at its newest checkpoint."""
    folder = RunDirectory(config)
    if environment.rank == 0:
        folder.open()
    trainer = Watched(folder, environment, torch.device("cpu"))
    trainer.start = {
        name: tensor.detach().clone()
        for name, tensor in state_dict.model_tensors(
            trainer.engine.placement.shards(), trainer.network, trainer.shapes, trainer.dtypes
        ).items()
    }
    newest = trainer.store.newest() if config.resume == "auto" else None
    if newest is not None:
        trainer.restore(newest)
    return trainer


def train(environment: LaunchEnvironment, config: Config, stop_at: int | None = None, stopped_rank: int = 0) -> Outcome:
    """Train as `fptt_dist.training.run.train` does, in the process group that is there; see `Watched`."""
    trainer = open_trainer(environment, config)
    trainer.stop_at, trainer.stopped_rank, trainer.flag = stop_at, stopped_rank, StopFlag()
    try:
        result = trainer.fit(trainer.flag)
    except Interrupted as interrupted:
        trainer.outcome.message = str(interrupted)
    else:
        trainer.outcome.values = (result.validation, result.value)
    return trainer.outcome


def refusal(environment: LaunchEnvironment, config: Config) -> str:
    """The message of the ConfigError that building the trainer, or restoring it, ends with."""
    try:
        open_trainer(environment, config)
    except ConfigError as error:
        return str(error)
    return "accepted"


def folder_of(outcomes: list[Outcome]) -> Path:
    """The run's folder, once its workers know where it is."""
    [path] = {outcome.folder for outcome in outcomes}
    return path


def records(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return the telemetry's records, one per batch."""
    lines = (folder_of(outcomes) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, types, shapes and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and tensor.numpy().tobytes() == other[name].numpy().tobytes()
        for name, tensor in one.items()
    )


def checkpoint_tensors(folder: Path, world: int) -> dict[str, dict[str, Tensor]]:
    """The tensors of every file of a checkpoint, of which some must hold weights, moments and random streams."""
    assert (folder / "manifest.json").is_file(), folder
    apart = not json.loads((folder / "state.json").read_text())["replicated"]
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.safetensors"))]
    tensors = {name: read_tensors(folder, name) for name in names}
    for rank in range(world):
        assert tensors[f"rank/{rank}/random.safetensors"]
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert tensors[f"rank/{rank}/{name}" if apart else name]
    return tensors
