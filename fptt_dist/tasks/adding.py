"""The adding task (Hochreiter & Schmidhuber 1997): add the two marked numbers of a long sequence."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fptt_dist.algorithm.losses import RegressionLoss
from fptt_dist.tasks.base import Batch
from fptt_dist.tasks.synthetic import SyntheticTask


class Adding(SyntheticTask):
    """Step t shows a number in [0, 1) and a marker; the target is the sum of the two marked numbers.

    Predicting 1 always has a mean squared error of 1/6 = 0.167, the baseline of a network that has learned nothing.

    Args:
        length: T ≥ 2 steps.
        markers: "halves": one marker in each half (Kag & Saligrama 2021); "anywhere": two distinct steps.
        examples: training sequences per epoch.
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
        super().__init__(examples=examples, validation=validation, test=test, seed=seed)
        self.length = length
        self.markers = markers
        self.loss = RegressionLoss()

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Sum of squared errors at the sequence's last step, and the number of sequences."""
        return (output[-1].double() - batch.targets.double()).square().sum(), batch.size

    def generate(self, seed: list[int], size: int) -> Batch:
        """`size` sequences, a pure function of `seed`."""
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
