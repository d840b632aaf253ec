"""Tasks as a user would write them, for what the adding task does not need."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm import SequenceLoss, TerminalLoss
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate
from fptt_dist.tasks import Adding, Batch, Split, Task, rank_slice

CLASSES = 3


class Stream(Task):
    """The next class of an endless stream; each sequence of a batch continues where it stopped in the batch before."""

    name = "stream"
    inputs = CLASSES
    outputs = CLASSES
    length = 12
    train_examples = 20
    metric = "perplexity"
    higher_is_better = False

    def __init__(self, *, carries_state: bool = True) -> None:
        self.stateful = carries_state
        self.loss = SequenceLoss()

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        return self._batch([7, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        yield self._batch([8, len(split)], 8).select(rank_slice(8, rank, world))

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        loss = functional.cross_entropy(output.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return loss.double(), batch.targets.numel()

    def value(self, mean: float) -> float:
        return float(np.exp(mean))

    def _batch(self, seed: list[int], size: int) -> Batch:
        classes = torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, (self.length + 1, size)))
        inputs = functional.one_hot(classes[:-1], CLASSES).float()
        return Batch(inputs, classes[1:], per_step_targets=True)


class CountedLoss(TerminalLoss):
    """Counts the epochs' ends."""

    ends = 0

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        self.ends += 1
        super().end_epoch(reduce)


class Majority(Task):
    """Which class a sequence shows most often; trained towards an estimate of the label, scored by accuracy."""

    name = "majority"
    inputs = CLASSES
    outputs = CLASSES
    length = 12
    train_examples = 20
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, windows: int) -> None:
        self.loss = self.counted = CountedLoss(ClassMeanEstimate(CLASSES, windows))

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        return self._batch([9, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        yield self._batch([10, len(split)], 8).select(rank_slice(8, rank, world))

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return (output[-1].argmax(-1) == batch.targets).double().sum(), batch.size

    def _batch(self, seed: list[int], size: int) -> Batch:
        classes = torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, (self.length, size)))
        shown = functional.one_hot(classes, CLASSES)
        return Batch(shown.float(), shown.sum(0).argmax(-1))


class Overflowing(Adding):
    """The adding task, one of whose batches holds infinite numbers in its first sequence."""

    def __init__(self, batch: int, step: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.batch = batch
        self.step = step

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        batch = super().train_batch(epoch, cursor, size, part)
        if epoch * self.train_examples + cursor == (self.batch - 1) * size:
            batch.inputs[self.step, 0, 0] = float("inf")
            batch.inputs[self.step, 0, 1] = float("-inf")
        return batch
