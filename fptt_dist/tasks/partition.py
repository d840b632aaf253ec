"""Partition of the training examples over the workers, where each worker keeps its own."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.tasks.epoch_cache import EpochCache

Shards = Literal["shuffled", "fixed", "by_label"]
ASSIGNMENT, ORDER = 0, 1  # streams of the seed, apart from those that the shuffled orders are drawn from


class Partition:
    """The examples of one worker, the same at every epoch, in another order at each.

    All workers get equally many, so that all train the same number of windows; the remainder is left out.

    Attributes:
        num_examples: number of examples in the partition, over all workers.

    Args:
        examples: N, how many there are to partition; their ids are 0 to N − 1.
        rank: this worker.
        world: number of workers.
        seed: of the assignment to workers, and of the orders.
        labels: (N,) worker after worker gets the next of the examples in the order of their labels; None: any.

    Raises:
        ValueError: no such worker, or fewer examples than workers.
    """

    def __init__(self, examples: int, rank: int, world: int, *, seed: int, labels: Tensor | None = None) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"there is no worker {rank} among {world}, only 0 to {world - 1}")
        if examples < world:
            raise ValueError(f"{examples} training examples are too few for {world} workers")
        self.num_examples = examples - examples % world
        self._seed, self._rank, self._world = seed, rank, world
        order = self._permutation(examples, ASSIGNMENT)[: self.num_examples]
        if labels is not None:
            order = order[np.argsort(labels.numpy()[order], kind="stable")]
        self._own = order.reshape(world, -1)[rank]
        self._device = torch.device("cpu")
        self._order = EpochCache(self._epoch_order)

    def to(self, device: torch.device) -> "Partition":
        """Return this partition, with its ids on `device`."""
        self._device = device
        return self

    def batch(self, epoch: int, cursor: int, size: int, part: slice) -> Tensor:
        """Ids of this worker's examples of the global batch, a pure function of the arguments.

        Args:
            epoch: from 0.
            cursor: examples of the epoch before this batch, over all workers.
            size: of the global batch.
            part: this worker's part of the global batch; only its length counts.

        Raises:
            ValueError: `cursor`, `size` or `part` does not split equally over workers, or the batch exceeds the epoch.
        """
        world, own = self._world, len(range(size)[part])
        if size % world or cursor % world or own * world != size:
            raise ValueError(
                f"examples partitioned over {world} workers need global batches of equal shares, not {own} sequences "
                f"of a batch of {size} at example {cursor}: the batch size must be a multiple of {world}"
            )
        if cursor + size > self.num_examples:
            raise ValueError(
                f"a batch of {size} at example {cursor} is beyond the {self.num_examples} examples of an epoch"
            )
        first = cursor // world
        return self._order(epoch, self._device)[first : first + own]

    def _epoch_order(self, epoch: int, device: torch.device) -> Tensor:
        order = self._own[self._permutation(len(self._own), ORDER, self._rank, epoch)]
        return torch.from_numpy(order).to(device)

    def _permutation(self, size: int, *stream: int) -> NDArray:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=stream)).permutation(size)
