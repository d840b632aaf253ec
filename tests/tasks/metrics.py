"""Tasks whose outputs a test chooses: the network passes its inputs on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import SequenceLoss
from fptt_dist.tasks import Batch, Split, Task
from fptt_dist.tasks.metrics import Targets, TaskMetrics

SIZES = {"class": 4, "labels": 3, "value": 2, "step_class": 4, "step_value": 2, "forecast": 2}
HORIZON = 3
STEPS = 5
SCALE = torch.tensor([0.5, 2.0])


class Echo(nn.Module):
    """A network whose outputs are its inputs."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, None]:
        return x, None


class Given(Task):
    """Sequences of different lengths, given one by one, of which each worker has as many as `shares` says.

    Args:
        metrics: what it is measured by.
        sequences: pairs of outputs (T_i, O) and targets.
        shares: sequences of each worker.
        per_batch: sequences of a batch.
    """

    name = "given"
    length = STEPS
    train_examples = 1
    lengths_differ = True

    def __init__(
        self, metrics: TaskMetrics, sequences: list[tuple[Tensor, Tensor]], shares: list[int], per_batch: int = 2
    ) -> None:
        self.loss = SequenceLoss()
        self.sequences, self.shares, self.per_batch = sequences, shares, per_batch
        self.measure_by(metrics)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        raise NotImplementedError

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        first = sum(self.shares[:rank])
        own = self.sequences[first : first + self.shares[rank]]
        for start in range(0, len(own), self.per_batch):
            yield self.joined(own[start : start + self.per_batch])

    def joined(self, own: list[tuple[Tensor, Tensor]]) -> Batch:
        """One batch, its padding NaN."""
        assert self.metrics is not None
        per_step = self.metrics.per_step
        inputs = torch.full((STEPS, len(own), own[0][0].shape[1]), float("nan"))
        targets = [target for _, target in own]
        for number, (output, _) in enumerate(own):
            inputs[: len(output), number] = output
        stacked = nn.utils.rnn.pad_sequence(targets) if per_step else torch.stack(targets)
        if per_step and len(stacked) < STEPS:
            more = stacked.new_zeros(STEPS - len(stacked), *stacked.shape[1:])
            stacked = torch.cat([stacked, more])
        lengths = torch.tensor([len(output) for output, _ in own])
        return Batch(inputs, stacked, per_step_targets=per_step, lengths=lengths)


def sequences(kind: Targets, count: int = 11, *, classes: tuple[int, ...] | None = None) -> list[tuple[Tensor, Tensor]]:
    """Outputs (T_i, O) and targets of `count` sequences; of classes only some occur, where `classes` says which."""
    rng = np.random.default_rng(5)
    size = SIZES[kind]
    outputs = size * HORIZON if kind == "forecast" else size
    found = []
    for _ in range(count):
        steps = int(rng.integers(1, STEPS + 1))
        output = torch.from_numpy(rng.normal(size=(steps, outputs)).round(1))  # rounded, so that there are ties
        if kind in ("class", "step_class"):
            target = torch.from_numpy(rng.choice(classes or range(size), size=steps if kind == "step_class" else ()))
        elif kind == "labels":
            target = torch.from_numpy(rng.integers(0, 2, size))
        elif kind == "forecast":
            target = torch.from_numpy(rng.normal(size=(HORIZON, size)))
        else:
            target = torch.from_numpy(rng.normal(size=(steps, size) if kind == "step_value" else size))
        found.append((output, target))
    return found


def measured(kind: Targets, listed: tuple[str, ...], monitor: str | None = None) -> TaskMetrics:
    """The metrics of targets of a kind, with the sizes of `sequences`."""
    return TaskMetrics(kind, listed, monitor, size=SIZES[kind], scale=SCALE)
