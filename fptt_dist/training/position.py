"""How far a run is, and what its best was."""

from dataclasses import dataclass


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
