"""The training loop."""

import logging
import math
import shlex
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fptt_dist.algorithm import PROCEDURES
from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment, wait_for_all
from fptt_dist.tasks import share
from fptt_dist.training import build, snapshot
from fptt_dist.training.batch import BatchResult, WindowLoop
from fptt_dist.training.checkpoint import CheckpointStore, problem_of, read_tensors, read_values
from fptt_dist.training.evaluation import Weights, evaluate, evaluated_weights
from fptt_dist.training.lr_schedule import LrSchedule
from fptt_dist.training.nested import flatten, unflatten
from fptt_dist.training.run_folder import Result, RunFolder, versions
from fptt_dist.training.signals import Interrupted, StopFlag
from fptt_dist.training.telemetry import Telemetry, peak_memory_bytes

LOG = logging.getLogger("fptt_dist")


class NonFiniteError(Exception):
    """A loss or gradient was NaN or infinite; the run stops and its checkpoints stay as they were."""


@dataclass
class Position:
    """How far a run is.

    Attributes:
        batch: global batches trained.
        epoch: the current epoch, from 0.
        cursor: training examples of this epoch already seen, over all workers.
        updates: parameter updates.
        sequences: training sequences seen, over all workers.
        seconds: training time.
    """

    batch: int = 0
    epoch: int = 0
    cursor: int = 0
    updates: int = 0
    sequences: int = 0
    seconds: float = 0.0


@dataclass
class Best:
    """The best validation so far: after which batch, and its value."""

    batch: int
    value: float


class Trainer:
    """One run on this worker: everything that the configuration describes, built, and the loop over it.

    Args:
        folder: the run's folder and configuration.
        environment: this worker's place.
        device: where it computes.

    Raises:
        ConfigError: settings that do not fit the number of workers or the task.
    """

    def __init__(self, folder: RunFolder, environment: LaunchEnvironment, device: torch.device) -> None:
        config = folder.config
        self.folder = folder
        self.config = config
        self.device = device

        # what is trained
        self.task = build.build_task(config)
        self.task.loss.to(device)
        self.strategy = build.build_strategy(config, environment)
        self.network = build.build_model(config, self.task).to(device)
        self.model = self.strategy.prepare(self.network)
        self.optimizer = build.build_optimizer(config, self.model)
        self.strategy.attach(self.optimizer)
        self.share = share(config.train.batch_size, self.strategy.rank, self.strategy.world)
        micro = config.train.micro_batch_size
        procedure = PROCEDURES[config.algorithm]
        self.loop = WindowLoop(
            self.model,
            self.task,
            self.strategy,
            self.optimizer,
            procedure,
            windows=config.windows,
            micro_batches=1 if micro is None else (self.share.stop - self.share.start) // micro,
            precision=config.train.precision,
        )

        # how long
        self.batches_per_epoch = self.task.train_examples // config.train.batch_size
        if self.batches_per_epoch == 0:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} is more than the {self.task.train_examples} training "
                "sequences of an epoch: type a smaller train.batch_size"
            )
        limits = [config.train.batches, config.train.epochs and config.train.epochs * self.batches_per_epoch]
        self.total_batches = min(limit for limit in limits if limit is not None)

        # what changes on the way
        self.alpha_schedule = build.build_alpha_schedule(config)
        self.lr_schedule = LrSchedule(
            config,
            self.optimizer,
            batches_per_epoch=self.batches_per_epoch,
            total_batches=self.total_batches,
            higher_is_better=self.task.higher_is_better,
        )
        force = procedure.has_force and config.fptt.alpha > 0.0
        chosen = config.evaluate.weights
        self.weights: Weights = ("center" if force else "weights") if chosen == "auto" else chosen
        self.store = CheckpointStore(
            folder.checkpoints,
            keep_last=config.checkpoint.keep_last,
            rank=self.strategy.rank,
            world=self.strategy.world,
            wait_for_all=lambda name: wait_for_all(name=name),
        )
        self.position = Position()
        self.best: Best | None = None
        self.states: list[Any] | None = None  # carried from batch to batch, where the task is a stream
        build.seed_worker(config.seed, self.strategy.rank)

    @property
    def done(self) -> bool:
        """Whether all batches of the run have been trained."""
        return self.position.batch >= self.total_batches

    def fit(self, stop: StopFlag) -> Result:
        """Train to the end, evaluate the best checkpoint on the test set and write the result.

        Raises:
            NonFiniteError: a loss or gradient was not finite.
            Interrupted: `stop` was set on some worker; a checkpoint was saved.
            OSError: a checkpoint could not be written.
        """
        active = self.strategy.rank == 0
        if active:
            self.folder.discard_result()
        with Telemetry(
            self.folder, active=active, total_batches=self.total_batches, first_batch=self.position.batch
        ) as telemetry:
            while not self.done:
                self._train_batch(telemetry)
                improved = self._validate_if_due(telemetry)
                if self._due(self.config.checkpoint.every) or improved or self.done:
                    self.save(improved=improved)
                telemetry.batch(self.position.batch)
                if stop.number is not None:
                    self.strategy.request_stop()
                if not self.done and self.strategy.stopping():
                    folder = self.save()
                    raise Interrupted(
                        f"stopped by a signal after batch {self.position.batch} of {self.total_batches}, saved in "
                        f"{folder}\nresume with: fptt-dist train {shlex.quote(str(self.folder.path / 'config.yaml'))} "
                        "resume=auto",
                        stop.exit_code,
                    )
            result = self._finish(telemetry)
            if active:
                telemetry.result(result)
                self.folder.write_result(result)
        return result

    def _train_batch(self, telemetry: Telemetry) -> None:
        """One global batch: this worker's share of it, K windows."""
        began = time.perf_counter()
        position, size = self.position, self.config.train.batch_size
        progress = position.batch / max(1, self.total_batches - 1)
        for group in self.optimizer.param_groups:
            group["alpha"] = self.alpha_schedule(progress, group["lr"] / self.config.optimizer.lr)
        recorded = (position.batch + 1) % self.config.telemetry.every == 0
        batch = self.task.train_batch(position.epoch, position.cursor, size, self.share).to(self.device)
        result, norms = self.loop.run(batch, self.states, measure=recorded)
        self._check_finite(result)
        if self.task.carries_state:
            self.states = result.states
        rates = {"lr": self.optimizer.param_groups[0]["lr"], "alpha": self.optimizer.param_groups[0]["alpha"]}
        self.lr_schedule.after_batch()
        position.batch += 1
        position.cursor += size
        position.updates += self.loop.updates
        position.sequences += size
        elapsed = time.perf_counter() - began
        position.seconds += elapsed
        if recorded:
            telemetry.training(self._record(result, norms, rates, size / elapsed))
        if position.batch % self.batches_per_epoch == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        """After an epoch's last update: the reset, the estimates, the next epoch's first example."""
        fptt = self.config.fptt
        if PROCEDURES[self.config.algorithm].has_force and (fptt.reset_weights or fptt.reset_dual):
            self.optimizer.recenter(weights=fptt.reset_weights, dual=fptt.reset_dual)
        self.task.loss.end_epoch(self.strategy.sum)
        self.position.epoch += 1
        self.position.cursor = 0
        self.states = None

    def _record(
        self, result: BatchResult, norms: dict[str, Tensor], rates: dict[str, float], speed: float
    ) -> dict[str, Any]:
        both = self.strategy.sum(torch.cat([result.window_losses, result.window_metrics])) / self.strategy.world
        losses, metrics = (part.tolist() for part in both.tensor_split([len(result.window_losses)]))
        values = {name: float(norm) for name, norm in norms.items()}
        return {
            **asdict(self.position),
            "loss": sum(losses) / len(losses),
            "window_losses": losses,
            f"window_{self.task.metric}": metrics,
            "gradient_norm": values["gradient"],
            "force_ratio": values["force"] / max(values["gradient"], 1e-30),
            "center_distance": values["center_distance"],
            "dual_norm": values["dual"],
            **rates,
            "sequences_per_second": speed,
            "memory_bytes": peak_memory_bytes(self.device),
        }

    def _check_finite(self, result: BatchResult) -> None:
        if bool(result.finite.all()):
            return
        update = int((~result.finite).nonzero()[0]) + 1
        of = f"window {update} of {self.loop.updates}" if self.loop.updates > 1 else "the update"
        raise NonFiniteError(
            f"a loss or gradient is not finite in {of} of batch {self.position.batch + 1}, "
            f"epoch {self.position.epoch}. {self._way_out()}"
        )

    def _check_storable(self, tensors: dict[str, Tensor]) -> None:
        """A run could not go on from a checkpoint with an infinite weight: the last update of a batch may overflow."""
        bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise NonFiniteError(f"{bad[0]} is not finite after batch {self.position.batch}. {self._way_out()}")

    def _way_out(self) -> str:
        lower = f"Lower optimizer.lr (now {self.config.optimizer.lr:g})"
        clip = "" if self.config.train.max_norm else " or set train.max_norm=1"
        return f"The newest checkpoint is {self.store.newest() or 'none'}. {lower}{clip}"

    def _due(self, every: int | None) -> bool:
        return self.position.batch % (every or self.batches_per_epoch) == 0

    def _validate_if_due(self, telemetry: Telemetry) -> bool:
        """Validate when it is time; whether the value is the best so far."""
        epoch_ended = self.position.batch % self.batches_per_epoch == 0
        needed = epoch_ended and self.lr_schedule.needs_validation
        if not (self._due(self.config.evaluate.every) or needed or self.done):
            return False
        value = evaluate(self.model, self.task, self.strategy, "validation", self.weights, self.device)
        sign = 1.0 if self.task.higher_is_better else -1.0
        improved = self.best is None or math.isnan(self.best.value) or sign * value > sign * self.best.value
        if improved:
            self.best = Best(self.position.batch, value)
        self._report("validation", value, telemetry, best=improved)
        if epoch_ended:
            self.lr_schedule.after_epoch(value)
        return improved

    def _report(self, split: str, value: float, telemetry: Telemetry, **more: Any) -> None:
        record = {"split": split, "metric": self.task.metric, "value": value, "weights": self.weights}
        telemetry.evaluation({**asdict(self.position), **record, **more})

    def save(self, *, improved: bool = False) -> Path:
        """Write a checkpoint of this batch; all workers together. `improved`: it is the best so far."""
        self.strategy.drain()
        optimizer_tensors, optimizer_values = snapshot.optimizer_files(self.network, self.optimizer)
        self._check_storable({**snapshot.model_tensors(self.network), **optimizer_tensors})
        random_tensors, random_values = snapshot.random_files(self.device)
        state_tensors: dict[str, Tensor] = dict(self.strategy.state_dict())
        carried = flatten(self.states, state_tensors, "carried")
        return self.store.save(
            self.position.batch,
            shared={
                "model.safetensors": snapshot.model_tensors(self.network),
                "optimizer.safetensors": optimizer_tensors,
                "task.safetensors": self.task.state_dict(),
                "state.json": {
                    "run_id": self.folder.run_id if self.strategy.rank == 0 else None,
                    "position": asdict(self.position),
                    "best": self.best and asdict(self.best),
                    "optimizer": optimizer_values,
                    "lr_schedule": self.lr_schedule.state_dict(),
                },
            },
            own={
                "loss.safetensors": self.task.loss.state_dict(),
                "random.safetensors": random_tensors,
                "state.safetensors": state_tensors,
                "state.json": {"random": random_values, "carried": carried},
            },
            best=improved,
        )

    def restore(self, folder: Path) -> None:
        """Go back to the state of a checkpoint, bit for bit.

        Raises:
            ConfigError: it is another model's, or was written by another number of workers.
        """
        saved, world = read_values(folder, "manifest.json")["world"], self.strategy.world
        if saved != world:
            raise ConfigError(f"{folder} was written by {saved} processes, this run has {world}: start {saved}")
        values = self.load_weights(folder)
        own = folder / "rank" / str(self.strategy.rank)
        own_tensors, own_values = read_tensors(own, "state.safetensors"), read_values(own, "state.json")
        self.lr_schedule.load_state_dict(values["lr_schedule"])
        self.task.loss.load_state_dict(read_tensors(own, "loss.safetensors"))
        self.position = Position(**values["position"])
        self.best = values["best"] and Best(**values["best"])
        self.store.point("latest", folder)
        if self.best is not None:
            self._point_at_best(self.store.at(self.best.batch))
        carried = unflatten(own_values["carried"], own_tensors)
        self.states = carried and [_to(state, self.device) for state in carried]
        self.strategy.load_state_dict({k: v for k, v in own_tensors.items() if not k.startswith("carried")})
        snapshot.load_random(read_tensors(own, "random.safetensors"), own_values["random"], self.device)

    def _point_at_best(self, folder: Path) -> None:
        """The pointer "best" as the resumed checkpoint knows it: a kill may have come before it was set."""
        problem = problem_of(folder)
        if problem is None:
            self.store.point("best", folder)
        else:
            LOG.warning("the best checkpoint so far, %s, is lost (%s): the best is sought anew", folder, problem)
            self.best = None

    def load_weights(self, folder: Path) -> dict[str, Any]:
        """W, W̄, u, the moments and what the task keeps of a checkpoint; returns its plain values."""
        values = read_values(folder, "state.json")
        self.task.load_state_dict(read_tensors(folder, "task.safetensors"))
        snapshot.load_model(self.network, read_tensors(folder, "model.safetensors"), folder)
        tensors = read_tensors(folder, "optimizer.safetensors")
        snapshot.load_optimizer(self.network, self.optimizer, tensors, values["optimizer"])
        return values

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Within the context the network has the weights that the run evaluates, W̄ or W."""
        return evaluated_weights(self.strategy, self.weights)

    def test(self) -> dict[str, float]:
        """The metric on the validation and test sets, with the weights as they are."""
        splits = ("validation", "test")
        return {s: evaluate(self.model, self.task, self.strategy, s, self.weights, self.device) for s in splits}

    def _finish(self, telemetry: Telemetry) -> Result:
        if self.best is None:  # resumed with nothing left to train, before any validation
            self.save(improved=self._validate_if_due(telemetry))
        position, best = self.position, self.best
        assert best is not None
        folder = self.store.at(best.batch)
        problem = problem_of(folder)
        if problem is not None:
            raise OSError(f"the best checkpoint, {folder}, is lost: {problem}")
        self.load_weights(folder)
        value = self.test()["test"]
        self._report("test", value, telemetry)
        counts = self.network.parameter_counts()
        return Result(
            task=self.task.name,
            algorithm=self.config.algorithm,
            metric=self.task.metric,
            value=value,
            validation=best.value,
            best_batch=best.batch,
            weights=self.weights,
            updates=position.updates,
            batches=position.batch,
            sequences=position.sequences,
            seconds=position.seconds,
            sequences_per_second=position.sequences / position.seconds if position.seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(self.device),
            parameters=counts["total"],
            recurrent_parameters=counts["recurrent"],
            workers=self.strategy.world,
            seed=self.config.seed,
            run_id=self.folder.run_id,
            versions=versions(),
        )


def _to(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _to(value, device) for key, value in state.items()}
    return None if state is None else type(state)(_to(value, device) for value in state)
