"""The end of a run at a non-finite value: the error, and the words that say where it was seen first."""

from collections.abc import Mapping
from typing import Any

import torch

from fptt_dist.parallel.nan_check import LOSS, SUM, NonFiniteRecord


class NonFiniteError(Exception):
    """A loss or gradient was NaN or infinite; the run stops and its checkpoints stay as they were."""


def describe(seen: NonFiniteRecord, updates: int, batches_per_epoch: int, world: int) -> str:
    """Return what was not finite, and where it was seen first.

    Args:
        seen: the first record of all workers.
        updates: parameter updates per batch.
        batches_per_epoch: batches per epoch.
        world: number of workers.
    """
    batch, update = divmod(seen.window, updates)
    window = f"window {update + 1} of {updates}" if updates > 1 else "the update"
    rank = f", on rank {seen.rank}" if world > 1 else ""
    what = seen.tensor if seen.tensor in (LOSS, SUM) else f"the gradient of {seen.tensor}"
    return f"{what} is not finite in {window} of batch {batch + 1}, epoch {batch // batches_per_epoch}{rank}"


def non_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors with a value that is not finite."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
