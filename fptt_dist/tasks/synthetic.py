"""Synthetic tasks: training sequences are generated anew each epoch or partitioned, validation and test are fixed."""

from abc import abstractmethod
from collections.abc import Iterator

import torch

from fptt_dist.tasks.base import Batch, Split, Task, rank_slice
from fptt_dist.tasks.partition import Partition, Shards

STREAMS = {"train": 0, "validation": 1, "test": 2, "fixed": 3}
EVALUATION_BATCH = 500


class SyntheticTask(Task):
    """A task without data on disk.

    The validation and test sets do not depend on the seed, so that runs with different seeds are compared on the same
    sequences.

    Args:
        examples: training sequences per epoch.
        validation: sequences of the validation set.
        test: sequences of the test set.
        seed: of the training sequences.
    """

    def __init__(self, *, examples: int, validation: int, test: int, seed: int) -> None:
        self.train_examples = self._examples = examples
        self.sizes = {"validation": validation, "test": test}
        self.seed = seed
        self._device = torch.device("cpu")
        self._shard: Partition | None = None

    @abstractmethod
    def generate(self, seed: list[int], size: int) -> Batch:
        """`size` sequences, a pure function of `seed`."""

    def to(self, device: torch.device) -> None:
        """Sequences are generated on the host, whose random numbers are the same everywhere; each batch is moved."""
        self._device = device

    def set_partition(self, shards: Shards, rank: int, world: int) -> None:
        """As for every task; "fixed" makes the sequences a finite set, the same at every epoch.

        Raises:
            ValueError: "by_label", or as for every task.
        """
        if shards == "by_label":
            raise ValueError(
                f"the sequences of the task {self.name} have no labels to partition by: they can be shuffled or fixed"
            )
        self._shard = Partition(self._examples, rank, world, seed=self.seed) if shards == "fixed" else None
        self.train_examples = self._shard.num_examples if self._shard else self._examples

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch: the whole batch is generated, then sliced.

        With a partition, this worker's own: each is generated from its id, anew at every epoch, so none is kept.
        """
        if self._shard is None:
            return self.generate([STREAMS["train"], self.seed, epoch, cursor], size).select(part).to(self._device)
        examples = self._shard.batch(epoch, cursor, size, part)
        sequences = [self.generate([STREAMS["fixed"], self.seed, example], 1) for example in examples.tolist()]
        inputs = torch.cat([sequence.inputs for sequence in sequences], dim=1)
        in_time = sequences[0].per_step_targets
        targets = torch.cat([sequence.targets for sequence in sequences], dim=1 if in_time else 0)
        return Batch(inputs, targets, examples, in_time).to(self._device)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set, at most 500 sequences at a time."""
        for start in range(0, self.sizes[split], EVALUATION_BATCH):
            size = min(EVALUATION_BATCH, self.sizes[split] - start)
            batch = self.generate([STREAMS[split], start], size).select(rank_slice(size, rank, world))
            if batch.size:
                yield batch.to(self._device)
