"""The training loop."""

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import SCHEMES
from fptt_dist.algorithm.diagnostics import NORMS
from fptt_dist.config import objects_of
from fptt_dist.models import compile_steps, hidden_of
from fptt_dist.parallel import LaunchEnvironment, Weights, communicator, new_gloo_group, set_pg_timeouts
from fptt_dist.parallel.comm.communicator import checksum
from fptt_dist.tasks import Split, TaskShape, rank_slice
from fptt_dist.training import cuda_graph as graph
from fptt_dist.training.batches import TrainBatches, count_batches
from fptt_dist.training.callbacks import CallbackList, RunStart
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.checkpoint.async_store import AsyncCheckpointStore
from fptt_dist.training.checkpoint.reader import MODEL, OPTIMIZER
from fptt_dist.training.checkpoint.run_state import RunState
from fptt_dist.training.checkpoint.store import CheckpointStore, Files
from fptt_dist.training.data_workers import BatchOrder
from fptt_dist.training.evaluation import evaluate, measured
from fptt_dist.training.given import NOTHING, Given
from fptt_dist.training.lock.directory_lock import LostLockError
from fptt_dist.training.logging.metrics_logger import MetricsLogger, TrafficMeter, mean_and_largest, peak_memory_bytes
from fptt_dist.training.logging.profile import BatchProfile
from fptt_dist.training.logging.wandb_callback import trackers
from fptt_dist.training.non_finite import NonFiniteError, UpdateLog, describe, fault_in_data, non_finite
from fptt_dist.training.pretrained import freeze, start_from
from fptt_dist.training.process.resume_hint import resume_hint
from fptt_dist.training.process.signals import Interrupted, StopFlag, agreed_interruption
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import RunDirectory, versions
from fptt_dist.training.schedulers import AlphaScheduler, LrScheduler, scaled_lr
from fptt_dist.training.setup import factory, seeds, task_factory
from fptt_dist.training.setup.consistency import check_data, check_weights
from fptt_dist.training.setup.engine import batch_shares, build_engine, set_partition
from fptt_dist.training.train_state import Best, OnValidation, Progress, best_after
from fptt_dist.training.window_loop import BatchResult, WindowLoop

LOG = logging.getLogger("fptt_dist")


class Trainer:
    """One run on this worker: everything that the configuration describes, and the training loop.

    Args:
        folder: the run's folder and configuration.
        environment: this worker's place.
        device: where it computes.
        watch: see `OnValidation`.
        given: objects in the place of those that the configuration describes.

    Raises:
        ConfigError: settings that do not fit the number of workers or the task.
    """

    def __init__(
        self,
        folder: RunDirectory,
        environment: LaunchEnvironment,
        device: torch.device,
        watch: OnValidation | None = None,
        given: Given = NOTHING,
    ) -> None:
        config = folder.config
        self.folder = folder
        self.environment = environment
        self.config = config
        self.device = device
        self.watch = watch
        self._build_engine(given)
        self.batches_per_epoch, self.total_batches = count_batches(config, self.task)
        order = BatchOrder(config.train.batch_size, self.batches_per_epoch, self.share)
        self.batches = TrainBatches(self.task, order, config, device)
        self._prepare_state()
        callbacks = [*trackers(config), *given.callbacks]
        self.callbacks = CallbackList(callbacks if self.engine.rank == 0 else [], device)
        self.profile = BatchProfile(folder, self.total_batches, self.engine.rank, device)
        seeds.seed_worker(config.seed, self.engine.rank)

    def _build_engine(self, given: Given) -> None:
        """Build what is trained: task, network, optimizer, engine and the loop over windows."""
        config, device = self.config, self.device
        task = given.task
        self.task = task_factory.build_task(config) if task is None else task_factory.given_task(config, task)
        self.task.loss.to(device)
        self.engine = build_engine(config, self.environment, communicator(self.environment, device))
        check_data(self.engine.everyone, self.task, config.train.batch_size)
        self.shares = batch_shares(config, self.engine.world)
        set_partition(self.task, config, self.engine.rank, self.engine.world)
        if not config.data.workers:  # whose processes read the data in the host's memory
            self.task.to(device)
        self.network = factory.build_model(config, TaskShape.of(self.task), given.network).to(device)
        if not any(self.folder.checkpoints.glob("step-*")):  # a run that resumes has weights of its own
            start_from(self.network, config, self.task)
        freeze(self.network, config, self.engine.world)
        if given.network is not None:
            check_weights(self.engine.everyone, self.network)
        if config.train.compile_update and device.type == "cuda":
            compile_steps(self.network)  # on a CPU few layers gain by it, after half a minute
        self.counts = self.network.parameter_counts()  # an engine may remove the weights from the network
        self.shapes, self.dtypes = state_dict.described(self.network)
        says = self.engine.world > 1 and self.engine.rank == 0
        sum_of_bits = int(checksum(list(self.network.parameters()))) % 2**64 if says else 0
        self.engine.prepare(self.network)
        if says:
            LOG.warning("%d workers start from equal weights, checksum %016x", self.engine.world, sum_of_bits)
        self.optimizer = factory.build_optimizer(config, self.engine.placement.parameters())
        self.engine.attach(self.optimizer)
        self.model = self.engine.placement.module
        self.share = rank_slice(config.train.batch_size, self.engine.rank, self.engine.world)
        micro = config.train.micro_batch_size
        procedure = SCHEMES[config.algorithm]
        self.loop = WindowLoop(
            self.model,
            self.task,
            self.engine,
            self.optimizer,
            procedure,
            windows=config.windows,
            window_size=config.window_size,
            window_length=None if config.algorithm == "bptt" else config.fptt.window_length,
            micro_batches=1 if micro is None else (self.share.stop - self.share.start) // micro,
            precision="fp32" if self.engine.placement.computes_in_bf16 else config.train.precision,
        )

        self.runner = self._runner()

    def _prepare_state(self) -> None:
        """Build what changes during the run, and what saves it."""
        config = self.config
        self.schedulers = {
            "lr": LrScheduler(
                config,
                self.optimizer,
                batches_per_epoch=self.batches_per_epoch,
                total_batches=self.total_batches,
                higher_is_better=self.task.higher_is_better,
            ),
            "alpha": AlphaScheduler(
                factory.build_alpha_schedule(config),
                self.optimizer,
                first_lr=config.optimizer.lr,
                total_batches=self.total_batches,
            ),
        }
        self._weights: Weights = factory.weights_to_evaluate(config)
        self.average, self.trigger = factory.build_average(config, self.optimizer, self.task)
        asynchronous = config.checkpoint.async_save
        # Collectives of the thread that writes must not be matched with those of the one that trains.
        self.savers = new_gloo_group(self.engine.everyone) if asynchronous else self.engine.everyone
        self.store = (AsyncCheckpointStore if asynchronous else CheckpointStore)(
            self.folder.checkpoints,
            keep_last=config.checkpoint.keep_last,
            rank=self.engine.rank,
            world=self.engine.world,
            wait_for_all=lambda name: self.savers.barrier(name=name),
            check=lambda folder: self.state.problem_in(folder),
        )
        self.traffic = TrafficMeter(self.engine)
        self.update_log = UpdateLog()
        self.state = RunState(
            engine=self.engine,
            network=self.network,
            optimizer=self.optimizer,
            task=self.task,
            schedulers=self.schedulers,
            trigger=self.trigger,
            shapes=self.shapes,
            dtypes=self.dtypes,
            batch_size=config.train.batch_size,
            shares=self.shares,
            device=self.device,
            seed=config.seed,
        )

    def _runner(self) -> WindowLoop | graph.BatchGraph:
        """Return what runs a batch: the loop, or the CUDA graph of it."""
        if not self.config.train.cuda_graph:
            return self.loop
        problem = graph.refusal(self.engine, self.device)
        if problem is not None:
            LOG.warning("train.cuda_graph=true has no effect: %s", problem)
            return self.loop
        return graph.BatchGraph(self.loop, graph.CudaCapture(self.device))

    @property
    def weights(self) -> Literal["center", "weights", "average"]:
        """The weights that are evaluated now: W̄, W, or W's mean over updates."""
        averages = self.average is not None and self.average.started and self.config.evaluate.weights == "auto"
        return "average" if averages else self._weights

    def _evaluating(self, *, own: bool = False) -> AbstractContextManager[nn.Module]:
        if self.weights != "average":
            return self.engine.eval_weights(self.weights, own=own)
        assert self.average is not None
        return self.engine.placement.swapped_weights(self.average.values())

    @property
    def done(self) -> bool:
        """True if the run is over: all its batches have been trained, or its patience is at an end."""
        finished = self.state.position.batch >= self.total_batches
        return finished or self.state.out_of_patience(self.config.train.patience)

    def fit(self, stop: StopFlag) -> Result:
        """Train to the end, evaluate the best checkpoint on the test set and write the result.

        Raises:
            NonFiniteError: a loss or gradient was not finite.
            Interrupted: `stop` was set on some worker; a checkpoint was saved.
            CallbackError: a callback raised an exception.
            OSError: a checkpoint could not be written.
        """
        active = self.engine.rank == 0
        if active:
            self.folder.discard_result()
        with (
            self.callbacks,
            MetricsLogger(
                self.folder,
                active=active,
                total_batches=self.total_batches,
                ended=self.done,
                first_batch=self.state.position.batch,
                workers=self.engine.world,
            ) as telemetry,
            self.store,
            self.batches.ahead(self.state.position, self.total_batches),
            self.profile,
        ):
            if active:
                self.callbacks.start(
                    RunStart.of(self.folder, self.state.position, self.total_batches, self.engine.world)
                )
            first = True
            while not self.done:
                with self.profile.batch(self.state.position.batch + 1):
                    record = self._train_batch(telemetry)
                self.callbacks.batch_end(self.state.position, record)
                if first:
                    groups = {id(each): each for each in (*self.engine.communicators(), self.savers)}
                    set_pg_timeouts(list(groups.values()), self.config.parallel.timeout_seconds)
                    first = False
                value = self._validate_if_due(telemetry)
                best = self.state.best
                improved = value is not None and best is not None and best.batch == self.state.position.batch
                watched, saved = self.watch is not None and value is not None, None
                if self._due(self.config.checkpoint.every_batches) or improved or watched or self.done:
                    saved = self.save(improved=improved)
                    if self.watch is not None and value is not None and best is not None and not self.done:
                        self.store.wait()
                        best_folder = self.store.path_of(best.batch)
                        self.watch(Progress.at(self.state.position, value, best.value, saved, best_folder))
                if self.store.saved is not None:
                    stop.saved = True
                self.callbacks.saved(self.store.saved)
                telemetry.batch(self.state.position.batch)
                if stop.number is not None:
                    self.engine.control.request_stop()
                if not self.done and self.engine.control.should_stop():
                    raise self._interrupted(stop, saved)
            result = self._finish(telemetry)
            if active:
                telemetry.result(result)
                self.folder.write_result(result)
            self.callbacks.end(result)
        return result

    def _interrupted(self, stop: StopFlag, saved: Path | None) -> Interrupted:
        """Return the exception to raise after a signal, when this batch is `saved`, here if it was not yet."""
        saved = self.save() if saved is None else saved
        self.store.wait()
        self.callbacks.saved(self.store.saved)
        batch = self.state.position.batch
        hint = resume_hint(self.folder.path, self.environment, objects=bool(objects_of(self.config)))
        message = f"stopped by a signal after batch {batch} of {self.total_batches}, saved in {saved}\n{hint}"
        return agreed_interruption(stop, self.engine.everyone, message)

    def _train_batch(self, telemetry: MetricsLogger) -> dict[str, Any] | None:
        """Train on this worker's share of one global batch, K windows; return its record, None without one."""
        began = time.perf_counter()
        position, size = self.state.position, self.config.train.batch_size
        for scheduler in self.schedulers.values():
            scheduler.before_batch(position.batch)
        recorded = (position.batch + 1) % self.config.logging.every_batches == 0
        batch = self.batches.get(position.batch)
        rates = {"lr": self.optimizer.param_groups[0]["lr"], "alpha": self.optimizer.param_groups[0]["alpha"]}
        steps, length = len(batch.inputs), self.task.length
        proportion = scaled_lr(self.optimizer, steps, length) if self.task.scale_lr_by_length else nullcontext()
        with self.engine.placement.collective_errors(), proportion:
            result, norms = self.runner.run(batch, self.state.carried, measure=recorded)
            self.engine.after_batch()
        self.update_log.add(position.batch, position.updates, result.updates)
        self._check_finite()
        if self.task.stateful:
            self.state.carried = [hidden_of(state) for state in result.states]
        for scheduler in self.schedulers.values():
            scheduler.after_batch()
        position.batch += 1
        position.cursor += size
        position.updates += result.updates
        position.sequences += size
        elapsed = time.perf_counter() - began
        position.seconds += elapsed
        record = self._record(result, norms, rates, size / elapsed) if recorded else None
        if record is not None:
            telemetry.training(record)
        if position.batch % self.batches_per_epoch == 0:
            self._end_epoch()
        if self.done:
            self.engine.sync.now()
        return record

    def _end_epoch(self) -> None:
        """End an epoch after its last update: the reset, the estimates, the next epoch's first example."""
        fptt = self.config.fptt
        if SCHEMES[self.config.algorithm].has_regularizer and (fptt.reset_weights or fptt.reset_dual):
            self.engine.sync.now()
            self.optimizer.reset_to_center(weights=fptt.reset_weights, dual=fptt.reset_dual)
            self.engine.placement.on_params_written()
        self.task.loss.end_epoch(partial(self.engine.everyone.all_reduce, name="metrics"))
        self.state.position.epoch += 1
        self.state.position.cursor = 0
        self.state.carried = None

    def _record(
        self, result: BatchResult, norms: dict[str, Tensor], rates: dict[str, float], speed: float
    ) -> dict[str, Any]:
        share, apart = self.shares[self.engine.rank], self.engine.sync.metrics()
        own = torch.cat([result.window_losses, result.window_metrics])
        means, largest = mean_and_largest(self.engine.everyone, share, own, list(apart.values()))
        losses, metrics = (part.tolist() for part in means.tensor_split([len(result.window_losses)]))
        values = dict.fromkeys(NORMS, 0.0) | {name: float(norm) for name, norm in norms.items()}  # none: no update
        return {
            **asdict(self.state.position),
            "loss": sum(losses) / len(losses),
            "window_losses": losses,
            f"window_{self.task.metric}": metrics,
            "gradient_norm": values["gradient"],
            "regularizer_ratio": values["regularizer"] / max(values["gradient"], 1e-30),
            "center_distance": values["center_distance"],
            "dual_norm": values["dual"],
            **rates,
            "sequences_per_second": speed,
            "memory_bytes": peak_memory_bytes(self.device),
            "data_wait": self.batches.wait_share(self.state.position.seconds),
            **dict(zip(apart, largest, strict=True)),
            **self.traffic.since_last(self.state.position.seconds),
        }

    def _check_finite(self) -> None:
        """Check the losses and gradients of all workers; called by all together.

        Raises:
            NonFiniteError: what was not finite, and where it was seen first.
        """
        if self.engine.control.all_finite():
            return
        seen = self.engine.control.first_non_finite()
        place = self.update_log.place(seen.window)
        where = describe(seen, place, self.batches_per_epoch, self.engine.world)
        batch = self.batches.on_host(place[0]).without_padding()
        fault = fault_in_data(batch, self.loop.passes_of(batch), self.engine.everyone)
        raise NonFiniteError(f"{where}. {self._way_out(fault)}")

    def _check_storable(self, files: Files) -> None:
        """Refuse a checkpoint that must not be written; all workers together.

        A run could not resume from one with an infinite weight, and the last update of a batch may overflow. Nor may it
        replace that of a process which has taken the run over.
        """
        bad = non_finite({**files[MODEL], **files[OPTIMIZER]})
        found = self.engine.everyone.all_gather_object([self.folder.lost(), bad[:1]], name="storable")
        if found[0][0] is not None:
            raise LostLockError(found[0][0])
        for rank, (_, names) in enumerate(found):
            if names:
                of = f" of rank {rank}" if self.engine.world > 1 else ""
                raise NonFiniteError(
                    f"{names[0]}{of} is not finite after batch {self.state.position.batch}. {self._way_out()}"
                )

    def _way_out(self, fault: str | None = None) -> str:
        lower = f"Lower optimizer.lr (now {self.config.optimizer.lr:g})"
        clip = "" if self.config.train.max_norm else " or set train.max_norm=1"
        remedy = lower + clip if fault is None else f"The cause is in that batch: {fault}. Correct the data"
        return f"The newest checkpoint is {self.store.newest() or 'none'}. {remedy}"

    def _due(self, every: int | None) -> bool:
        return self.state.position.batch % (every or self.batches_per_epoch) == 0

    def _validate_if_due(self, telemetry: MetricsLogger) -> float | None:
        """Validate when it is due; return the value, or None. `best` is up to date then."""
        epoch_ended = self.state.position.batch % self.batches_per_epoch == 0
        needed = epoch_ended and any(scheduler.needs_validation for scheduler in self.schedulers.values())
        if not (self._due(self.config.evaluate.every_batches) or needed or self.done):
            return None
        with self._evaluating() as network:
            metrics = evaluate(network, self.task, self.engine.everyone, "validation", self.device)
        value = metrics[self.task.metric]
        now = Best(self.state.position.batch, value, metrics)
        self.state.best = best_after(self.state.best, now, higher_is_better=self.task.higher_is_better)
        is_best = self.state.best.batch == now.batch
        self._report("validation", metrics, telemetry, best=is_best)
        self.callbacks.validation(self.state.position, self.task.metric, metrics, is_best=is_best)
        if epoch_ended:
            for scheduler in self.schedulers.values():
                scheduler.after_epoch(value)
        if self.average is not None and self.trigger is not None and self.trigger(value):
            self.average.begin()
        return value

    def _report(self, split: Split, metrics: dict[str, float], telemetry: MetricsLogger, **more: Any) -> None:
        record = measured(self.task, split, metrics, weights=self.weights)
        telemetry.evaluation({**asdict(self.state.position), **record, **more})

    def save(self, *, improved: bool = False) -> Path:
        """Write a checkpoint of this batch; called by all workers together. `improved`: it is the best so far.

        Raises:
            NonFiniteError: a loss, gradient or weight of some worker is not finite.
            LostLockError: another process has taken the run over; nothing was written.
        """
        self.engine.settle()
        self._check_finite()
        shared, own = self.state.collect(self.folder.run_id if self.engine.rank == 0 else None)
        self._check_storable({**shared, **own})
        self.store.wait()
        self.callbacks.saved(self.store.saved)  # before the save that may follow it closely
        self.callbacks.saving(self.state.position.batch, best=improved)
        return self.store.save(self.state.position.batch, shared=shared, own=own, best=improved)

    def restore(self, folder: Path) -> None:
        """Restore the state of a checkpoint; see `RunState.restore`."""
        self.state.restore(folder)
        self.store.set_pointer("latest", folder)
        if self.state.best is not None:
            self._point_at_best(self.store.path_of(self.state.best.batch), restored=folder)

    def _point_at_best(self, folder: Path, *, restored: Path) -> None:
        """Set the pointer "best" as the resumed checkpoint knows it: a kill may have come before it was set.

        `restored`: the checkpoint that was resumed from, which has been validated.
        """
        problem = None if folder == restored else self.store.validate(folder)
        if problem is None:
            self.store.set_pointer("best", folder)
        else:
            LOG.warning("the best checkpoint so far, %s, is lost (%s): the best is sought anew", folder, problem)
            self.state.best = None

    def _finish(self, telemetry: MetricsLogger) -> Result:
        if self.state.best is None:  # resumed with nothing left to train, before any validation
            self._validate_if_due(telemetry)
            self.save(improved=True)
        self.store.wait()
        self.callbacks.saved(self.store.saved)
        position, best = self.state.position, self.state.best
        assert best is not None
        folder = self.store.path_of(best.batch)
        problem = self.store.validate(folder)
        if problem is not None:
            raise OSError(f"the best checkpoint, {folder}, is lost: {problem}")
        self.state.load_weights(folder)
        with self._evaluating(own=True) as network:  # equal on all workers now
            metrics = evaluate(network, self.task, self.engine.everyone, "test", self.device)
        self._report("test", metrics, telemetry)
        return Result(
            task=self.task.name,
            algorithm=self.config.algorithm,
            metric=self.task.metric,
            higher_is_better=self.task.higher_is_better,
            value=metrics[self.task.metric],
            validation=best.value,
            metrics={"validation": best.metrics, "test": metrics},
            best_batch=best.batch,
            weights=self.weights,
            updates=position.updates,
            batches=position.batch,
            stopped_early=position.batch < self.total_batches,
            sequences=position.sequences,
            seconds=position.seconds,
            sequences_per_second=position.sequences / position.seconds if position.seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(self.device),
            parameters=self.counts["total"],
            recurrent_parameters=self.counts["recurrent"],
            workers=self.engine.world,
            seed=self.config.seed,
            run_id=self.folder.run_id,
            versions=versions(),
            unknown_tokens=dict(self.task.unknown_tokens),
            path=self.folder.path.absolute(),
        )
