"""The end of a run at a non-finite value: the error, and the words that say where it was seen first."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fptt_dist.algorithm import Window
from fptt_dist.parallel import Communicator
from fptt_dist.parallel.nan_check import LOSS, SUM, NonFiniteRecord
from fptt_dist.tasks import Batch

KEPT = 10_000  # batches


class NonFiniteError(Exception):
    """A loss or gradient was NaN or infinite; the run stops and its checkpoints stay as they were."""


class UpdateLog:
    """The updates of the batches trained last, by which an update's batch is found.

    Batches may have different numbers of updates. All workers learn of a non-finite value at the next sync of the flags
    at the latest, which is not many batches later.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int, int]] = deque(maxlen=KEPT)

    def add(self, batch: int, first: int, updates: int) -> None:
        """Record a batch, from 0: its first update, and how many it has."""
        self._batches.append((batch, first, updates))

    def place(self, update: int) -> tuple[int, int, int]:
        """Return an update's batch, its number in that batch, from 0, and how many updates the batch has."""
        batch, first, updates = next(each for each in reversed(self._batches) if each[1] <= update)
        return batch, update - first, updates


def describe(seen: NonFiniteRecord, place: tuple[int, int, int], batches_per_epoch: int, world: int) -> str:
    """Return what was not finite, and where it was seen first.

    Args:
        seen: the first record of all workers.
        place: of its update, from `UpdateLog.place`.
        batches_per_epoch: batches per epoch.
        world: number of workers.
    """
    batch, update, updates = place
    window = f"window {update + 1} of {updates}" if updates > 1 else "the update"
    rank = f", on rank {seen.rank}" if world > 1 else ""
    what = seen.tensor if seen.tensor in (LOSS, SUM) else f"the gradient of {seen.tensor}"
    return f"{what} is not finite in {window} of batch {batch + 1}, epoch {batch // batches_per_epoch}{rank}"


def fault_in_data(batch: Batch, passes: Iterable[list[Window]], everyone: Communicator) -> str | None:
    """Return the first value of a batch's inputs or targets that is not finite; None if all are; all workers together.

    Args:
        batch: this worker's share.
        passes: the windows of its sequences, by forward and backward passes.
        everyone: all workers.
    """
    found = everyone.all_gather_object(_first_fault(batch, [window for each in passes for window in each]), name="data")
    for rank, fault in enumerate(found):
        if fault is not None:
            return fault + (f" of rank {rank}'s share" if everyone.world > 1 else "")
    return None


def _first_fault(batch: Batch, windows: list[Window]) -> str | None:
    tensors = (("inputs", batch.inputs, True), ("targets", batch.targets, batch.per_step_targets))
    for name, tensor, has_steps in tensors:
        places = torch.isfinite(tensor).logical_not().nonzero()
        if len(places) == 0:
            continue
        first = places[0].tolist()
        value = float(tensor[tuple(first)])
        if not has_steps:
            return f"the {name} have {value:g} in sequence {first[0] + 1}"
        step, sequence = first[:2]
        window = next(window for window in windows if window.part.start <= step < window.part.stop)
        within = f", in window {window.index} of {window.count}" if window.count > 1 else ""
        return f"the {name} have {value:g} at step {step + 1} of {len(tensor)}{within}, sequence {sequence + 1}"
    return None


def non_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors with a value that is not finite."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
