"""Progress of a run, and its best validation."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self


@dataclass
class TrainState:
    """Progress of a run.

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
    """The best validation so far.

    Attributes:
        batch: after which it was.
        value: of the monitored metric.
        metrics: of all metrics, by name.
        since: validations since, none of which was better.
    """

    batch: int
    value: float
    metrics: dict[str, float]
    since: int = 0


def best_after(best: Best | None, now: Best, *, higher_is_better: bool) -> Best:
    """Return the better one of the best validation so far and the newest; the earlier one where they are equal.

    NaN is never an improvement, although the newest NaN replaces an earlier one.

    Args:
        best: the best one so far; None before the first.
        now: the newest.
        higher_is_better: the monitored metric's direction.
    """
    if best is None:
        return now
    if math.isnan(best.value):
        return replace(now, since=best.since + 1) if math.isnan(now.value) else now
    better = now.value > best.value if higher_is_better else now.value < best.value
    return now if better else replace(best, since=best.since + 1)


@dataclass(frozen=True)
class Progress:
    """Progress of a run at one of its validations.

    Attributes:
        batch: batches trained so far.
        value: the validation metric.
        best: the best one so far.
        updates: parameter updates so far.
        sequences: training sequences so far, over all workers.
        seconds: of training so far.
        checkpoint: the folder of the state right after this validation.
        best_checkpoint: the folder of the state at the best validation.
    """

    batch: int
    value: float
    best: float
    updates: int
    sequences: int
    seconds: float
    checkpoint: Path
    best_checkpoint: Path

    @classmethod
    def at(cls, position: TrainState, value: float, best: float, checkpoint: Path, best_checkpoint: Path) -> Self:
        """Return the progress at a position; the arguments are the attributes."""
        return cls(
            batch=position.batch,
            value=value,
            best=best,
            updates=position.updates,
            sequences=position.sequences,
            seconds=position.seconds,
            checkpoint=checkpoint,
            best_checkpoint=best_checkpoint,
        )


OnValidation = Callable[[Progress], None]
"""Called by every worker after each validation but the run's last, when that state has been saved."""
