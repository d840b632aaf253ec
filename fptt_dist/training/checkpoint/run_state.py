"""State of a run: the contents of its checkpoints, and what is restored from one.

    model, optimizer, task .safetensors, state.json     equal on all workers: written once
    sync.safetensors                                    shared state of the sync (Z, μ̄, last synced values)
    rank/<r>/model, optimizer .safetensors              where each worker has its own W, W̄, u and optimizer state
                                                        (consensus), or a shard of them: pieces.json says which (fsdp,
                                                        deepspeed)
    rank/<r>/sync, loss, random, carried, state     μ_r, a sync in flight, estimates, random streams, states

With the same number of workers a run resumes bit for bit. With another number, or another engine, what was equal on
all workers stays as it is, and shards are redistributed; W, W̄, u and optimizer state of which there were several
copies become their mean over the workers (weighted by their shares of the batch; W̄ ← Z with local duals); μ_r ← 0, a
sync in flight is dropped, and random streams start afresh from (seed, rank, batch, workers).
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.averaging import NonMonotonicTrigger
from fptt_dist.config import ConfigError
from fptt_dist.parallel import Engine, SyncState
from fptt_dist.tasks import Task
from fptt_dist.tasks.base import unlike
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.checkpoint.content import ContentCheck
from fptt_dist.training.checkpoint.pytree import flatten_state, unflatten_state
from fptt_dist.training.checkpoint.reader import (
    MODEL,
    OPTIMIZER,
    PIECES,
    SavedState,
    copies_of,
    described,
    plain_optimizer_values,
    rank_folder,
)
from fptt_dist.training.checkpoint.store import Files, read_tensors, read_values
from fptt_dist.training.schedulers import Scheduler
from fptt_dist.training.setup import seeds
from fptt_dist.training.train_state import Best, TrainState
from fptt_dist.types import State

VARYING = (
    "drift",
    "due",
    "payload/",
    "snapshot/",
)  # of a sync: a metric, and what is there only while one is under way
LOG = logging.getLogger("fptt_dist")


@dataclass
class RunState:
    """Everything of a run that its checkpoints hold.

    Attributes:
        engine: placement, sync and control flags.
        network: the model.
        optimizer: FPTT.
        task: the data's position-independent state, and the loss's estimates.
        schedulers: of the learning rate and of α, by name.
        trigger: of the average of the weights; None without one.
        shapes: shape of each parameter and buffer, by name.
        dtypes: their types, such as "float32".
        batch_size: sequences per global batch.
        shares: each worker's share of the batch.
        device: where this worker computes.
        seed: the run's.
        position: progress of the run.
        best: the best validation so far.
        carried: recurrent states carried from batch to batch, where the task is a stream.
    """

    engine: Engine
    network: nn.Module
    optimizer: FPTT
    task: Task
    schedulers: Mapping[str, Scheduler]
    trigger: NonMonotonicTrigger | None
    shapes: dict[str, list[int]]
    dtypes: dict[str, str]
    batch_size: int
    shares: list[float]
    device: torch.device
    seed: int
    position: TrainState = field(default_factory=TrainState)
    best: Best | None = None
    carried: list[State] | None = None

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether the newest `patience` validations were all no better than the best one; False for None."""
        return patience is not None and self.best is not None and self.best.since >= patience

    def collect(self, run_id: str | None) -> tuple[Files, Files]:
        """Return the files that rank 0 writes for all, and this worker's own; `run_id`: of the run's directory."""
        engine = self.engine
        pieces = engine.placement.shards()
        optimizer_tensors, optimizer_values = state_dict.optimizer_files(pieces, self.optimizer)
        weights: dict[str, Any] = {
            MODEL: state_dict.model_tensors(pieces, self.network, self.shapes, self.dtypes),
            OPTIMIZER: optimizer_tensors,
        }
        if len(engine.replica_groups) < engine.world:
            # flat, so that a range of elements can be read; a scalar stays one
            weights = {
                file: {name: t.reshape(-1) if t.dim() else t for name, t in tensors.items()}
                for file, tensors in weights.items()
            }
            weights[PIECES] = described(pieces)
        state = engine.state_dict()
        random_tensors, random_values = state_dict.random_files(self.device)
        carried: dict[str, Tensor] = {}
        skeleton = flatten_state(self.carried, carried, "carried")
        shared: dict[str, Any] = {
            "task.safetensors": self.task.state_dict(),
            "sync.safetensors": state.shared,
            "state.json": {
                "run_id": run_id if engine.rank == 0 else None,
                "engine": engine.kind,
                "replicated": engine.replicated,
                "copies": engine.replica_groups,
                "shapes": self.shapes,
                "dtypes": self.dtypes,
                "shares": self.shares,
                "num_replicas": engine.sync.num_replicas,
                "position": asdict(self.position),
                "best": self.best and asdict(self.best),
                "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
                "validations": self.trigger and self.trigger.values,
            },
        }
        own: dict[str, Any] = {
            "loss.safetensors": self.task.loss.state_dict(),
            "random.safetensors": random_tensors,
            "sync.safetensors": state.own,
            "carried.safetensors": carried,
            "state.json": {"random": random_values, "carried": skeleton, "optimizer": optimizer_values},
        }
        (shared if engine.replicated else own).update(weights)
        return shared, own

    def problem_in(self, folder: Path) -> str | None:
        """Return why the content of a checkpoint with right checksums makes no sense for this run; None if it does.

        A checkpoint of another model, which `restore` refuses, makes sense.
        """
        problem = ContentCheck(self.task, self.batch_size)(folder)
        if problem is not None:
            return problem
        values = read_values(folder, "state.json")
        if [values["shapes"], values["dtypes"]] != [self.shapes, self.dtypes]:
            return None
        groups = len(self.optimizer.param_groups)
        for rank in range(len(values["shares"])):
            saved = len(read_values(rank_folder(folder, rank), "state.json")["optimizer"]["param_groups"])
            if saved != groups:
                return f"rank/{rank}/state.json has {saved} groups of parameters instead of {groups}"
        return self._problem_of_sync(folder) if self._continues(values) else None

    def _problem_of_sync(self, folder: Path) -> str | None:
        state = self.engine.state_dict()
        shared, own = (
            read_tensors(each, "sync.safetensors") for each in (folder, rank_folder(folder, self.engine.rank))
        )
        found, expected = (
            {name: tensor for name, tensor in tensors.items() if not name.startswith(VARYING)}
            for tensors in (own, state.own)
        )
        problem = unlike(shared, state.shared) or unlike(found, expected)
        return None if problem is None else f"sync.safetensors: {problem}"

    def _continues(self, values: dict[str, Any]) -> bool:
        """Return whether a checkpoint is of the same engine and workers, so that a run continues bit for bit."""
        engine = self.engine
        then = (values["engine"], len(values["shares"]), values["num_replicas"], values["copies"])
        return then == (engine.kind, engine.world, engine.sync.num_replicas, engine.replica_groups)

    def restore(self, folder: Path) -> None:
        """Restore the state of a checkpoint: bit for bit with as many workers as wrote it.

        Raises:
            ConfigError: it is another model's, or holds what cannot be redistributed to another number of workers.
        """
        engine = self.engine
        values = read_values(folder, "state.json")
        self.position = TrainState(**values["position"])
        self.best = values["best"] and Best(**values["best"])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(values["schedulers"][name])
        if self.trigger is not None:
            self.trigger.values = values["validations"]
        self.task.load_state_dict(read_tensors(folder, "task.safetensors"))
        kept = SyncState(shared=read_tensors(folder, "sync.safetensors"))
        same_engine = values["engine"] == engine.kind
        if self._continues(values):
            own = rank_folder(folder, engine.rank)
            ranks, mine = next(copy for copy in copies_of(folder, values) if engine.rank in copy[0])
            self._load(folder, values, SavedState([mine], [1.0]), ranks)
            kept.own = read_tensors(own, "sync.safetensors")
            own_values = read_values(own, "state.json")
            self.task.loss.load_state_dict(read_tensors(own, "loss.safetensors"))
            carried = unflatten_state(own_values["carried"], read_tensors(own, "carried.safetensors"))
            self.carried = carried and [_to(state, self.device) for state in carried]
            state_dict.load_random(read_tensors(own, "random.safetensors"), own_values["random"], self.device)
        else:
            self._redistribute(folder, values)
        engine.load_state_dict(kept if same_engine else SyncState(), self.position.updates)

    def load_weights(self, folder: Path) -> None:
        """Load a checkpoint's weights, W̄, u and optimizer state, the mean of its copies, the same on every worker.

        Raises:
            ConfigError: it is another model's.
        """
        values = read_values(folder, "state.json")
        self.task.load_state_dict(read_tensors(folder, "task.safetensors"))
        self._load(folder, values, SavedState.mean_of(folder, values), None)

    def _load(self, folder: Path, values: dict[str, Any], saved: SavedState, ranks: list[int] | None) -> None:
        """Load this worker's shard of the weights and the optimizer state.

        `ranks`: the workers that wrote the copy that is read; None: all copies are.
        """
        pieces = self.engine.placement.shards()
        state_dict.check_model(values, self.shapes, self.dtypes, folder)
        state_dict.load_model(pieces, self.network, saved)
        plain = plain_optimizer_values(folder, values, ranks)
        state_dict.load_optimizer(pieces, self.optimizer, saved, state_dict.joined(plain))
        self.engine.placement.on_params_written()

    def _redistribute(self, folder: Path, values: dict[str, Any]) -> None:
        """Restore from another number of workers, or another engine: redistribute shards, or average copies."""
        then, engine = len(values["shares"]), self.engine
        own = [rank_folder(folder, rank) for rank in range(then)]
        how = f"{folder} was written by {then} worker{'s' if then > 1 else ''}, this run has {engine.world}"
        back = f"start {then}"
        if then == engine.world:
            how, back = f"{folder} was written with another parallel.strategy", "keep parallel.strategy"
        if any(read_values(rank, "state.json")["carried"] for rank in own):
            raise ConfigError(
                f"{how}, and the recurrent states carried from batch to batch cannot be redistributed: {back}, or save "
                "at an epoch's end, where there are none"
            )
        try:
            states = [read_tensors(rank, "loss.safetensors") for rank in own]
            self.task.loss.load_state_dict(self.task.loss.repartitioned(states, first=engine.rank == 0))
        except ValueError as error:
            raise ConfigError(f"{how}: {error}: {back}") from error
        self.load_weights(folder)
        self.carried = None
        seeds.seed_worker(self.seed, engine.rank, self.position.batch, engine.world)
        if engine.rank == 0:
            what = "are theirs" if values["replicated"] or len(values["copies"]) == 1 else "are the mean of theirs"
            LOG.warning("%s: weights and optimizer state %s, random streams start afresh", how, what)


def _to(state: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), state)
