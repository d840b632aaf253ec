"""The adding task (Hochreiter & Schmidhuber 1997): add the two marked numbers of a long sequence."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fptt_dist.algorithm.losses import RegressionLoss
from fptt_dist.tasks.task import Batch, Split, Task, share

STREAMS = {"train": 0, "validation": 1, "test": 2}
EVALUATION_BATCH = 500


class Adding(Task):
    """Step t shows a number in [0, 1) and a marker; the target is the sum of the two marked numbers.

    Predicting 1 always has a mean squared error of 1/6 = 0.167: what a network that has not understood reaches.
    Training sequences are generated afresh at every epoch. The validation and test sets are fixed and do not depend on
    the seed, so that runs with different seeds are compared on the same sequences.

    Args:
        length: T ≥ 2 steps.
        markers: "halves": one marker in each half (Kag & Saligrama 2021); "anywhere": two distinct steps.
        examples: training sequences an epoch.
        validation: sequences of the validation set.
        test: sequences of the test set.
        seed: of the training sequences.
    """

    name = "adding"
    inputs = 2
    outputs = 1
    metric = "mse"
    higher_is_better = False

    def __init__(
        self,
        *,
        length: int = 200,
        markers: Literal["halves", "anywhere"] = "halves",
        examples: int = 12800,
        validation: int = 2000,
        test: int = 2000,
        seed: int = 0,
    ) -> None:
        self.length = length
        self.markers = markers
        self.train_examples = examples
        self.sizes = {"validation": validation, "test": test}
        self.seed = seed
        self.loss = RegressionLoss()

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch: the whole batch is generated, then sliced."""
        return self._generate([STREAMS["train"], self.seed, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set, at most 500 sequences at a time."""
        for start in range(0, self.sizes[split], EVALUATION_BATCH):
            size = min(EVALUATION_BATCH, self.sizes[split] - start)
            batch = self._generate([STREAMS[split], start], size).select(share(size, rank, world))
            if batch.size:
                yield batch

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Sum of squared errors at the sequence's last step, and the number of sequences."""
        return (output[-1].double() - batch.targets.double()).square().sum(), batch.size

    def _generate(self, seed: list[int], size: int) -> Batch:
        rng = np.random.default_rng(seed)
        values = rng.random((self.length, size), dtype=np.float32)
        sequence = np.arange(size)
        if self.markers == "halves":
            first = rng.integers(0, self.length // 2, size)
            second = rng.integers(self.length // 2, self.length, size)
        else:
            first = rng.integers(0, self.length, size)
            second = (first + rng.integers(1, self.length, size)) % self.length
        marks = np.zeros_like(values)
        marks[first, sequence] = 1.0
        marks[second, sequence] = 1.0
        target = values[first, sequence] + values[second, sequence]
        return Batch(torch.from_numpy(np.stack([values, marks], axis=-1)), torch.from_numpy(target).unsqueeze(-1))
