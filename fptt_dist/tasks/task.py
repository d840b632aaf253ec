"""What every task gives the loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fptt_dist.algorithm.losses import InstantaneousLoss
from fptt_dist.tasks.shards import Shards

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Sequences of one split, time-major.

    Attributes:
        inputs: (T, B, I) numbers, or (T, B) ids of symbols (int64).
        targets: (B, …) for one target a sequence, (T, B) for one a step; T may differ from batch to batch.
        examples: (B,) global ids, where the task's examples have one.
    """

    inputs: Tensor
    targets: Tensor
    examples: Tensor | None = None
    targets_in_time: bool = False

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.inputs.shape[1]

    def select(self, part: slice) -> "Batch":
        """The sequences of `part`."""
        targets = self.targets[:, part] if self.targets_in_time else self.targets[part]
        examples = None if self.examples is None else self.examples[part]
        return Batch(self.inputs[:, part], targets, examples, self.targets_in_time)

    def to(self, device: torch.device) -> "Batch":
        """The same sequences on `device`; nothing is copied of what is there."""
        examples = None if self.examples is None else self.examples.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), examples, self.targets_in_time)

    def target(self, part: slice) -> Tensor:
        """What the window `part` is trained on: its steps' targets, or the sequence's."""
        return self.targets[part] if self.targets_in_time else self.targets


def share(size: int, rank: int, world: int) -> slice:
    """The part of `size` items that falls to `rank` of `world`; parts are contiguous and differ by at most one."""
    return slice(rank * size // world, (rank + 1) * size // world)


class Task(ABC):
    """Data, loss and metric of one learning problem.

    Attributes:
        name: as in the configuration.
        inputs: I, numbers a step (1 where they are ids).
        outputs: O, what the network must give.
        length: T, steps of a sequence; of a usual one where a task has longer and shorter ones.
        train_examples: training sequences an epoch, over all workers.
        loss: what a window is trained on.
        metric: the metric's name.
        higher_is_better: the metric's direction.
        carries_state: whether a batch's last state is the next one's first (streams of text), in training and in the
            batches of an evaluation.
        vocabulary_size: V, where inputs are ids from 0 to V − 1; None where they are numbers.
        scales_rate: whether a batch's learning rate is in proportion to its length (Merity et al. 2018).
    """

    name: str
    inputs: int
    outputs: int
    length: int
    train_examples: int
    loss: InstantaneousLoss
    metric: str
    higher_is_better: bool
    carries_state: bool = False
    vocabulary_size: int | None = None
    scales_rate: bool = False

    def deal(self, shards: Shards, rank: int, world: int) -> None:
        """Say how the training examples fall to the workers; "shuffled" where it is not called.

        "shuffled": every epoch's examples are shuffled as one, and each worker takes its part of each global batch.
        "fixed": the seed deals the examples once, a worker keeps its own, and every epoch shows them in another order.
        "by_label": like "fixed", in the order of their labels, so that workers hold as unlike examples as can be.

        Where they are dealt, `train_examples` becomes the number dealt, equal shares without the remainder, and
        `train_batch` gives this worker's own examples, as many as `part` has; it refuses batches that the workers do
        not share equally.

        Raises:
            ValueError: the task cannot be dealt so, there is no such worker, or there are fewer examples than workers.
        """
        if shards != "shuffled":
            raise ValueError(f"the examples of the task {self.name} can only be shuffled, not dealt as {shards}")

    def to(self, device: torch.device) -> None:
        """Keep the data on `device`, so that batches are put together there; said once, before the first batch.

        A task that does not override it gives its batches on the CPU, and the loop moves each. Batches are the same
        numbers on any device.
        """

    @abstractmethod
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch of `size` that starts at example `cursor` of `epoch`.

        A pure function of its arguments, the task's seed and how the examples are dealt; where they are "shuffled", any
        number of workers sees the same global batch.
        """

    @abstractmethod
    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set `split`, in batches."""

    @abstractmethod
    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the metric over the batch (0-dim, float64), and how many items were summed.

        Args:
            output: (T or 1, B, O), the network's outputs over the whole sequence.
            batch: the sequences.
        """

    def window_metric(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The metric of one window of a training batch (0-dim), where one can be read off; else None.

        Args:
            output: (S, B, O), the window's outputs.
            target: as the loss takes it.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that belong to the run and not to its configuration alone, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back what `state_dict` gave."""

    def input_description(self) -> dict[str, Any]:
        """How inputs are prepared, as plain JSON values, for who uses an exported network; {} where they are raw."""
        return {}

    def value(self, mean: float) -> float:
        """The metric from its mean over all items (the identity; a perplexity would exponentiate)."""
        return mean
