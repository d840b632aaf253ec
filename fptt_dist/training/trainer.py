"""The training loop."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import PROCEDURES
from fptt_dist.config import ConfigError
from fptt_dist.models import compile_steps, hidden_of
from fptt_dist.parallel import LaunchEnvironment, Weights, beside, communicator, tighten
from fptt_dist.parallel.collectives import checksum
from fptt_dist.parallel.finite import LOSS, SUM
from fptt_dist.tasks import share
from fptt_dist.training import build, graph, snapshot
from fptt_dist.training.background import BackgroundStore
from fptt_dist.training.batch import BatchResult, WindowLoop
from fptt_dist.training.build_strategy import build_strategy, deal, shares
from fptt_dist.training.checkpoint import CheckpointStore, problem_of
from fptt_dist.training.contents import contents_of, load_agreed, restore
from fptt_dist.training.evaluation import evaluate
from fptt_dist.training.lock import LostLockError
from fptt_dist.training.lr_schedule import LrSchedule
from fptt_dist.training.position import Best, Position, Progress, Watch
from fptt_dist.training.resume_hint import resume_hint
from fptt_dist.training.run_folder import Result, RunFolder, versions
from fptt_dist.training.signals import Interrupted, StopFlag, fate
from fptt_dist.training.telemetry import Telemetry, TrafficMeter, peak_memory_bytes

LOG = logging.getLogger("fptt_dist")


class NonFiniteError(Exception):
    """A loss or gradient was NaN or infinite; the run stops and its checkpoints stay as they were."""


class Trainer:
    """One run on this worker: everything that the configuration describes, built, and the loop over it.

    Args:
        folder: the run's folder and configuration.
        environment: this worker's place.
        device: where it computes.
        watch: see `Watch`.

    Raises:
        ConfigError: settings that do not fit the number of workers or the task.
    """

    def __init__(
        self,
        folder: RunFolder,
        environment: LaunchEnvironment,
        device: torch.device,
        watch: Watch | None = None,
    ) -> None:
        config = folder.config
        self.folder = folder
        self.environment = environment
        self.config = config
        self.device = device

        # what is trained
        self.task = build.build_task(config)
        self.task.loss.to(device)
        self.strategy = build_strategy(config, environment, communicator(environment, device))
        self.shares = shares(config, self.strategy.world)
        deal(self.task, config, self.strategy.rank, self.strategy.world)
        self.task.to(device)
        self.network = build.build_model(config, self.task).to(device)
        if config.train.compile and device.type == "cuda":
            compile_steps(self.network)  # on a CPU few cells gain by it, after half a minute
        self.counts = self.network.parameter_counts()  # an engine may leave the network without its weights
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        self.shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        says = self.strategy.world > 1 and self.strategy.rank == 0
        sum_of_bits = int(checksum(list(self.network.parameters()))) % 2**64 if says else 0
        self.strategy.prepare(self.network)
        if says:
            LOG.warning("%d workers start from equal weights, checksum %016x", self.strategy.world, sum_of_bits)
        self.optimizer = build.build_optimizer(config, self.strategy.parameters())
        self.strategy.attach(self.optimizer)
        self.model = self.strategy.module
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
            remainder=config.fptt.remainder,
            micro_batches=1 if micro is None else (self.share.stop - self.share.start) // micro,
            precision="fp32" if self.strategy.casts else config.train.precision,
        )

        self.runner = self._runner()

        # how long
        self.batches_per_epoch = self.task.train_examples // config.train.batch_size
        if self.batches_per_epoch == 0:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} is more than the {self.task.train_examples} training "
                "sequences of an epoch: type a smaller train.batch_size"
            )
        limits = [config.train.batches, config.train.epochs and config.train.epochs * self.batches_per_epoch]
        self.total_batches = min(limit for limit in limits if limit is not None)

        self._agree_on_length()

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
        self._weights: Weights = ("center" if force else "weights") if chosen == "auto" else chosen
        self.average, self.trigger = build.build_average(config, self.optimizer, self.task)
        asynchronous = config.checkpoint.asynchronous
        # Collectives of the thread that writes must not meet those of the one that trains.
        self.savers = beside(self.strategy.everyone) if asynchronous else self.strategy.everyone
        self.store = (BackgroundStore if asynchronous else CheckpointStore)(
            folder.checkpoints,
            keep_last=config.checkpoint.keep_last,
            rank=self.strategy.rank,
            world=self.strategy.world,
            wait_for_all=lambda name: self.savers.barrier(name=name),
        )
        self.traffic = TrafficMeter(self.strategy)
        self.position = Position()
        self.best: Best | None = None
        self.states: list[Any] | None = None  # carried from batch to batch, where the task is a stream
        self.watch = watch
        build.seed_worker(config.seed, self.strategy.rank)

    def _runner(self) -> WindowLoop | graph.BatchGraph:
        """What runs a batch: the loop, or the CUDA graph of it."""
        if not self.config.train.graph:
            return self.loop
        problem = graph.refusal(self.strategy, self.device)
        if problem is not None:
            LOG.warning("train.graph=true has no effect: %s", problem)
            return self.loop
        return graph.BatchGraph(self.loop, graph.CudaCapture(self.device))

    @property
    def weights(self) -> Literal["center", "weights", "average"]:
        """Which weights are evaluated now: W̄, W, or W's mean over updates."""
        averages = self.average is not None and self.average.started and self.config.evaluate.weights == "auto"
        return "average" if averages else self._weights

    def _evaluating(self, *, own: bool = False) -> AbstractContextManager[nn.Module]:
        if self.weights != "average":
            return self.strategy.evaluating(self.weights, own=own)
        assert self.average is not None
        return self.strategy.showing(self.average.values())

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
        with (
            Telemetry(
                self.folder,
                active=active,
                total_batches=self.total_batches,
                first_batch=self.position.batch,
                workers=self.strategy.world,
            ) as telemetry,
            self.store,
        ):
            first = True
            while not self.done:
                self._train_batch(telemetry)
                if first:
                    groups = {id(each): each for each in (*self.strategy.communicators(), self.savers)}
                    tighten(list(groups.values()), self.config.parallel.timeout)
                    first = False
                value = self._validate_if_due(telemetry)
                improved = value is not None and self.best is not None and self.best.batch == self.position.batch
                watched = self.watch is not None and value is not None
                if self._due(self.config.checkpoint.every) or improved or watched or self.done:
                    saved = self.save(improved=improved)
                    if self.watch is not None and value is not None and not self.done:
                        self.store.wait()
                        self.watch(self._progress(value, saved))
                if self.store.saved is not None:
                    stop.saved = True
                telemetry.batch(self.position.batch)
                if stop.number is not None:
                    self.strategy.request_stop()
                if not self.done and self.strategy.stopping():
                    saved = self.save()
                    self.store.wait()
                    raise self._interrupted(stop, saved)
            result = self._finish(telemetry)
            if active:
                telemetry.result(result)
                self.folder.write_result(result)
        return result

    def _interrupted(self, stop: StopFlag, folder: Path) -> Interrupted:
        """What to raise after saving in `folder`; all workers together."""
        slurm = fate() if self.strategy.rank == 0 else "goes on"
        said = self.strategy.everyone.gather([stop.requeue, slurm], name="requeue")
        wanted = any(wish for wish, _ in said)
        return Interrupted(
            f"stopped by a signal after batch {self.position.batch} of {self.total_batches}, saved in {folder}\n"
            f"{resume_hint(self.folder.path, self.environment)}",
            stop.exit_code,
            requeue=said[0][1] == "preempted" or (wanted and said[0][1] != "ended"),
        )

    def _agree_on_length(self) -> None:
        """A worker with other data would run another number of windows, and the others would wait for it for ever."""
        everyone = self.strategy.everyone
        mine = self.task.train_examples
        for rank, other in enumerate(everyone.gather(mine, name="length of the run")):
            if other != mine:
                raise ConfigError(
                    f"rank {everyone.rank} finds {mine} training sequences, rank {rank} {other}: give all the same "
                    "data.root"
                )

    def _train_batch(self, telemetry: Telemetry) -> None:
        """One global batch: this worker's share of it, K windows."""
        began = time.perf_counter()
        position, size = self.position, self.config.train.batch_size
        progress = position.batch / max(1, self.total_batches - 1)
        for group in self.optimizer.param_groups:
            group["alpha"] = self.alpha_schedule(progress, group["lr"] / self.config.optimizer.lr)
        recorded = (position.batch + 1) % self.config.telemetry.every == 0
        batch = self.task.train_batch(position.epoch, position.cursor, size, self.share).to(self.device)
        rates = {"lr": self.optimizer.param_groups[0]["lr"], "alpha": self.optimizer.param_groups[0]["alpha"]}
        with self.strategy.guarding(), self._rate_in_proportion(len(batch.inputs)):
            result, norms = self.runner.run(batch, self.states, measure=recorded)
        self._check_finite()
        if self.task.carries_state:
            self.states = [hidden_of(state) for state in result.states]
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
        if self.done:
            self.strategy.settle()

    @contextmanager
    def _rate_in_proportion(self, steps: int) -> Iterator[None]:
        """The learning rate times steps / task.length within the context, where the task asks for it."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.task.scales_rate:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * steps / self.task.length
        try:
            yield
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _end_epoch(self) -> None:
        """After an epoch's last update: the reset, the estimates, the next epoch's first example."""
        fptt = self.config.fptt
        if PROCEDURES[self.config.algorithm].has_force and (fptt.reset_weights or fptt.reset_dual):
            self.strategy.settle()
            self.optimizer.recenter(weights=fptt.reset_weights, dual=fptt.reset_dual)
            self.strategy.changed()
        self.task.loss.end_epoch(self.strategy.sum)
        self.position.epoch += 1
        self.position.cursor = 0
        self.states = None

    def _record(
        self, result: BatchResult, norms: dict[str, Tensor], rates: dict[str, float], speed: float
    ) -> dict[str, Any]:
        own = torch.cat([result.window_losses, result.window_metrics])
        apart = self.strategy.measured()
        largest = own.new_zeros(len(apart), self.strategy.world)  # each worker's in its place, so that one sum serves
        for row, value in zip(largest, apart.values(), strict=True):
            row[self.strategy.rank] = value
        own = own * (self.shares[self.strategy.rank] * self.strategy.world)
        both = self.strategy.sum(torch.cat([own, largest.flatten()]))
        means, largest = both[: len(own)] / self.strategy.world, both[len(own) :].view_as(largest)
        losses, metrics = (part.tolist() for part in means.tensor_split([len(result.window_losses)]))
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
            **{name: float(row.max()) for name, row in zip(apart, largest, strict=True)},
            **self.traffic.since_last(self.position.seconds),
        }

    def _check_finite(self) -> None:
        """Called by all workers together.

        Raises:
            NonFiniteError: what was not finite, where it was seen first.
        """
        if self.strategy.healthy():
            return
        seen = self.strategy.first_sight()
        batch, update = divmod(seen.window, self.loop.updates)
        window = f"window {update + 1} of {self.loop.updates}" if self.loop.updates > 1 else "the update"
        rank = f", on rank {seen.rank}" if self.strategy.world > 1 else ""
        what = seen.tensor if seen.tensor in (LOSS, SUM) else f"the gradient of {seen.tensor}"
        raise NonFiniteError(
            f"{what} is not finite in {window} of batch {batch + 1}, epoch {batch // self.batches_per_epoch}{rank}. "
            f"{self._way_out()}"
        )

    def _check_storable(self) -> None:
        """A run could not go on from a checkpoint with an infinite weight: the last update of a batch may overflow.

        Nor may it be written over that of a process which has taken the run over. All workers refuse together.
        """
        pieces = self.strategy.pieces()
        optimizer_tensors, _ = snapshot.optimizer_files(pieces, self.optimizer)
        tensors = {**snapshot.model_tensors(pieces, self.network), **optimizer_tensors}
        bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        found = self.strategy.everyone.gather([self.folder.lost(), bad[:1]], name="storable")
        if found[0][0] is not None:
            raise LostLockError(found[0][0])
        for rank, (_, names) in enumerate(found):
            if names:
                of = f" of rank {rank}" if self.strategy.world > 1 else ""
                raise NonFiniteError(
                    f"{names[0]}{of} is not finite after batch {self.position.batch}. {self._way_out()}"
                )

    def _way_out(self) -> str:
        lower = f"Lower optimizer.lr (now {self.config.optimizer.lr:g})"
        clip = "" if self.config.train.max_norm else " or set train.max_norm=1"
        return f"The newest checkpoint is {self.store.newest() or 'none'}. {lower}{clip}"

    def _due(self, every: int | None) -> bool:
        return self.position.batch % (every or self.batches_per_epoch) == 0

    def _progress(self, value: float, checkpoint: Path) -> Progress:
        best, position = self.best, self.position
        assert best is not None
        return Progress(
            batch=position.batch,
            value=value,
            best=best.value,
            updates=position.updates,
            sequences=position.sequences,
            seconds=position.seconds,
            checkpoint=checkpoint,
            best_checkpoint=self.store.at(best.batch),
        )

    def _validate_if_due(self, telemetry: Telemetry) -> float | None:
        """Validate when it is time; the value, or None. `best` is up to date then."""
        epoch_ended = self.position.batch % self.batches_per_epoch == 0
        needed = epoch_ended and self.lr_schedule.needs_validation
        if not (self._due(self.config.evaluate.every) or needed or self.done):
            return None
        with self._evaluating() as network:
            value = evaluate(network, self.task, self.strategy, "validation", self.device)
        sign = 1.0 if self.task.higher_is_better else -1.0
        improved = self.best is None or math.isnan(self.best.value) or sign * value > sign * self.best.value
        if improved:
            self.best = Best(self.position.batch, value)
        self._report("validation", value, telemetry, best=improved)
        if epoch_ended:
            self.lr_schedule.after_epoch(value)
        if self.average is not None and self.trigger is not None and self.trigger(value):
            self.average.begin()
        return value

    def _report(self, split: str, value: float, telemetry: Telemetry, **more: Any) -> None:
        record = {"split": split, "metric": self.task.metric, "value": value, "weights": self.weights}
        telemetry.evaluation({**asdict(self.position), **record, **more})

    def save(self, *, improved: bool = False) -> Path:
        """Write a checkpoint of this batch; all workers together. `improved`: it is the best so far.

        Raises:
            NonFiniteError: some worker has met, or holds, what is not finite.
            LostLockError: another process has taken the run over; nothing was written.
        """
        self.strategy.vote()
        self._check_finite()
        self.strategy.drain()
        self._check_storable()
        shared, own = contents_of(self)
        return self.store.save(self.position.batch, shared=shared, own=own, best=improved)

    def restore(self, folder: Path) -> None:
        """Go back to the state of a checkpoint; see `contents.restore`."""
        restore(self, folder)
        self.store.point("latest", folder)
        if self.best is not None:
            self._point_at_best(self.store.at(self.best.batch))

    def _point_at_best(self, folder: Path) -> None:
        """The pointer "best" as the resumed checkpoint knows it: a kill may have come before it was set."""
        problem = problem_of(folder)
        if problem is None:
            self.store.point("best", folder)
        else:
            LOG.warning("the best checkpoint so far, %s, is lost (%s): the best is sought anew", folder, problem)
            self.best = None

    def load_weights(self, folder: Path) -> None:
        """The weights that a checkpoint's workers agree on, and what the task keeps."""
        load_agreed(self, folder)

    def evaluated_weights(self) -> AbstractContextManager[nn.Module]:
        """A network with the weights that the run evaluates (`weights`) within the context; of this worker alone."""
        return self._evaluating(own=True)

    def test(self) -> dict[str, float]:
        """The metric on the validation and test sets, with weights that are equal on all workers."""
        with self.evaluated_weights() as network:
            return {
                split: evaluate(network, self.task, self.strategy, split, self.device)
                for split in ("validation", "test")
            }

    def _finish(self, telemetry: Telemetry) -> Result:
        if self.best is None:  # resumed with nothing left to train, before any validation
            self._validate_if_due(telemetry)
            self.save(improved=True)
        self.store.wait()
        position, best = self.position, self.best
        assert best is not None
        folder = self.store.at(best.batch)
        problem = problem_of(folder)
        if problem is not None:
            raise OSError(f"the best checkpoint, {folder}, is lost: {problem}")
        self.load_weights(folder)
        value = self.test()["test"]
        self._report("test", value, telemetry)
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
            parameters=self.counts["total"],
            recurrent_parameters=self.counts["recurrent"],
            workers=self.strategy.world,
            seed=self.config.seed,
            run_id=self.folder.run_id,
            versions=versions(),
        )
