"""Callbacks: code of a user's that is called while a run trains."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from fptt_dist.config import Config
from fptt_dist.training.checkpoint.store import step_of
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.seeds import kept_streams
from fptt_dist.training.train_state import TrainState

LOG = logging.getLogger("fptt_dist")


@dataclass(frozen=True)
class RunStart:
    """A run that starts or resumes.

    Attributes:
        folder: the run's.
        run_id: the run's identity, the same after a resume.
        config: what is trained.
        batch: batches trained before; 0 of a new run.
        total_batches: batches of the whole run, unless its patience ends it earlier.
        workers: number of workers.
    """

    folder: Path
    run_id: str
    config: Config
    batch: int
    total_batches: int
    workers: int

    @classmethod
    def of(cls, run: RunDirectory, position: TrainState, total_batches: int, workers: int) -> Self:
        """Return the start of a run whose folder is open; the other arguments are the attributes."""
        return cls(run.path, run.run_id, run.config, position.batch, total_batches, workers)


@dataclass(frozen=True)
class BatchEnd:
    """A batch that has been trained.

    Attributes:
        batch: batches trained so far.
        epoch: the current epoch, from 0.
        updates: parameter updates so far.
        sequences: training sequences so far, over all workers.
        seconds: of training so far.
        record: what metrics.jsonl says of this batch; None of the batches between those of `logging.every_batches`,
            of which nothing is read from the device.
    """

    batch: int
    epoch: int
    updates: int
    sequences: int
    seconds: float
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Validation:
    """A validation.

    Attributes:
        batch: batches trained so far.
        epoch: the current epoch, from 0.
        updates: parameter updates so far.
        sequences: training sequences so far, over all workers.
        seconds: of training so far.
        metric: name of the monitored metric.
        value: of the monitored metric.
        metrics: of all metrics, by name.
        is_best: whether it is the best one so far.
    """

    batch: int
    epoch: int
    updates: int
    sequences: int
    seconds: float
    metric: str
    value: float
    metrics: dict[str, float]
    is_best: bool


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is complete.

    Attributes:
        batch: after which it was saved.
        folder: of the checkpoint, which a later save deletes: see `checkpoint.keep_last`.
        is_best: whether it was saved because the validation was the best one so far.
    """

    batch: int
    folder: Path
    is_best: bool


class Callback:
    """Base class of code that is called while a run trains; every method does nothing unless it is overridden.

    The methods are called on rank 0 only, between batches: meanwhile the other workers wait. They do not change what is
    trained: the global random streams (torch's, NumPy's, Python's) are put back after each call.

    An exception, SystemExit included, ends the run on all workers, with the class and the method named. The checkpoints
    are complete, and the run can be resumed. KeyboardInterrupt is raised as it is.
    """

    def on_start(self, event: RunStart) -> None:
        """Before the first batch of a run that starts or resumes; not of one with nothing left to do."""

    def on_batch_end(self, event: BatchEnd) -> None:
        """After each batch."""

    def on_validation(self, event: Validation) -> None:
        """After each validation."""

    def on_checkpoint(self, event: SavedCheckpoint) -> None:
        """After each checkpoint, when it is complete: with `checkpoint.async_save` some batches later."""

    def on_end(self, result: Result) -> None:
        """At the end of the run, by its last batch or its patience, when result.json is written."""

    def on_error(self, error: BaseException) -> None:
        """At the end of a run that ends by an exception in place of `on_end`: of a signal it is `Interrupted`.

        An exception in it is a warning only.
        """


class CallbackError(RuntimeError):
    """A callback raised an exception, which is this one's cause."""


class CallbackList:
    """The callbacks of a run on this worker.

    Within its context an exception is given to `on_error`.

    Args:
        callbacks: in the order in which they are called; none on other workers than rank 0.
        device: whose random stream they leave as it is.
    """

    def __init__(self, callbacks: Sequence[Callback], device: torch.device) -> None:
        self._callbacks = list(callbacks)
        self._device = device
        self._announced: Path | None = None
        self._best_save: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        for callback in self._callbacks:
            try:
                callback.on_error(error)
            except Exception as another:
                LOG.warning("%s: %s: %s", _name(callback.on_error), type(another).__name__, another)

    def start(self, event: RunStart) -> None:
        """Call `on_start`."""
        self._call([callback.on_start for callback in self._callbacks], lambda: event)

    def batch_end(self, position: TrainState, record: dict[str, Any] | None) -> None:
        """Call `on_batch_end`."""
        methods = [callback.on_batch_end for callback in self._callbacks]
        self._call(methods, lambda: BatchEnd(**_place(position), record=None if record is None else dict(record)))

    def validation(self, position: TrainState, metric: str, metrics: dict[str, float], *, is_best: bool) -> None:
        """Call `on_validation`."""
        self._call(
            [callback.on_validation for callback in self._callbacks],
            lambda: Validation(
                **_place(position), metric=metric, value=metrics[metric], metrics=dict(metrics), is_best=is_best
            ),
        )

    def saving(self, batch: int, *, best: bool) -> None:
        """Note the save that begins: the one before it is complete, and `saved` has been called."""
        self._best_save = batch if best else None

    def saved(self, folder: Path | None) -> None:
        """Call `on_checkpoint`, unless it was called for this checkpoint already, or there is none."""
        if folder is None or folder == self._announced:
            return
        self._announced = folder
        batch = step_of(folder)
        self._call(
            [callback.on_checkpoint for callback in self._callbacks],
            lambda: SavedCheckpoint(batch, folder, is_best=batch == self._best_save),
        )

    def end(self, result: Result) -> None:
        """Call `on_end`."""
        self._call([callback.on_end for callback in self._callbacks], lambda: result)

    def _call(self, methods: list[Callable[[Any], None]], event: Callable[[], Any]) -> None:
        """Call methods, each with its own event.

        Raises:
            CallbackError: one raised an exception.
        """
        for method in methods:
            try:
                with kept_streams(self._device):
                    method(event())
            except (Exception, SystemExit) as error:
                raise CallbackError(f"{_name(method)} raised {type(error).__name__}: {error}") from error


def _place(position: TrainState) -> dict[str, Any]:
    """Return the attributes that events have in common."""
    return {name: getattr(position, name) for name in ("batch", "epoch", "updates", "sequences", "seconds")}


def _name(method: Callable[[Any], None]) -> str:
    """Return the class and name of a callback's method."""
    return f"{type(getattr(method, '__self__', method)).__name__}.{getattr(method, '__name__', method)}"
