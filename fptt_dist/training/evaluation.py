"""Evaluation of the task's metrics over a fixed set, which changes no weight and no random stream."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import window_slices
from fptt_dist.parallel import Communicator
from fptt_dist.tasks import Batch, DataError, Split, Task
from fptt_dist.types import State

STEPS = 256  # of one window, at most


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, everyone: Communicator, split: Split, device: torch.device
) -> dict[str, float]:
    """Return the metrics of `split` by name, with the model's weights as they are, over all workers' shares of it.

    The network computes in float32. All workers return the same numbers.

    Args:
        model: `(x, state) → (y, state)`.
        task: gives the sequences and the metrics.
        everyone: all workers.
        split: "validation" or "test".
        device: where the model is.

    Raises:
        DataError: the split is empty or holds numbers that are not finite; or the monitored metric is not defined on
            the validation split, such as the AUROC of a single class. The same message on all workers.
    """
    was_training = model.training
    model.eval()
    meter = (Score if task.metrics is None else Measurement)(task, device)
    faults = torch.zeros(2, dtype=torch.float64, device=device)  # numbers of the data, and outputs, that are not finite
    try:
        for batch, output in _outputs_by_batch(model, task, everyone, split, device):
            faults += torch.stack([_non_finite(batch.inputs) + _non_finite(batch.targets), _non_finite(output)])
            meter.update(output, batch)
    finally:
        model.train(was_training)
    counts = everyone.all_reduce(torch.cat([meter.totals, faults]), name="metrics")
    total, items, in_data, in_outputs = counts.tolist()
    if items == 0:
        raise DataError(f"the {split} split is empty: give it at least one sequence, with a step or target that counts")
    if in_data:
        raise DataError(
            f"the {split} split has {in_data:.0f} inputs or targets that are not finite (NaN or infinite), which make "
            "its metric meaningless: correct the data"
        )
    values = meter.values(everyone, total, items)
    undefined = task.metrics is not None and math.isnan(values[task.metric]) and not in_outputs
    if undefined and split == "validation":  # no checkpoint would be the best one
        raise DataError(
            f"the monitored metric {task.metric} is not defined on the {split} split (auroc needs sequences with and "
            "without a class): give it such sequences, or monitor another metric with task.monitor"
        )
    return values


def measured(task: Task, split: Split, metrics: dict[str, float], *, weights: str) -> dict[str, Any]:
    """Return what the record of an evaluation says of it.

    Args:
        task: the task.
        split: what was evaluated.
        metrics: what `evaluate` returned.
        weights: the weights that were evaluated, such as "center".
    """
    return {
        "split": split,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "value": metrics[task.metric],
        "metrics": metrics,
        "weights": weights,
    }


class Score:
    """A task's own metric, a mean over items.

    Attributes:
        totals: the sum of the metric and the number of items (2,), float64.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        """Take in a batch."""
        total, items = self.task.score(output, batch)
        self.totals[0] += total
        self.totals[1] += items

    def values(self, everyone: Communicator, total: float, items: float) -> dict[str, float]:
        """Return the metric by name, from the sums over all workers."""
        return {self.task.metric: self.task.value(total / items)}


class Measurement:
    """A task's torchmetrics.

    Attributes:
        totals: 0 and the number of predictions (2,), float64.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        assert task.metrics is not None
        self.task = task
        self.device = device
        self.metrics = {name: metric.to(device) for name, metric in task.metrics.make().items()}
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        """Take in a batch."""
        predictions, targets = self.task.predictions(output, batch)
        if len(predictions):
            self.totals[1] += len(predictions)
            for metric in self.metrics.values():
                metric.update(predictions, targets)

    def values(self, everyone: Communicator, total: float, items: float) -> dict[str, float]:
        """Return the metrics by name, of the states of all workers together."""

        def gather(state: Tensor, group: object = None) -> list[Tensor]:
            parts = everyone.all_gather(state, name="metrics")
            # A worker without a sequence has a state of another type and shape, which joins with none.
            return [part for part in parts if part.numel()] or [state]

        values = torch.zeros(len(self.metrics), dtype=torch.float64, device=self.device)
        for number, (name, metric) in enumerate(self.metrics.items()):
            metric.sync(dist_sync_fn=gather, distributed_available=lambda: everyone.world > 1)
            # The class's own: the object's one warns on a worker that had no sequence.
            value = torch.as_tensor(type(metric).compute(metric))
            if value.numel() != 1:
                raise DataError(
                    f"the metric {name} gives a tensor of shape {tuple(value.shape)}, not one number: let its compute "
                    "return the mean"
                )
            values[number] = value
        everyone.broadcast([values], name="metrics")  # rounding must not let workers choose other checkpoints
        return dict(zip(self.metrics, values.tolist(), strict=True))


def _outputs_by_batch(
    model: nn.Module, task: Task, everyone: Communicator, split: Split, device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield this worker's batches with the outputs that the task scores, (T or 1, B, O)."""
    state = None
    for batch in task.evaluation_batches(split, everyone.rank, everyone.world):
        batch = batch.to(device).without_padding()
        output, after = _outputs(model, task, batch, state)
        state = after if task.stateful else None
        yield batch, output


def _outputs(model: nn.Module, task: Task, batch: Batch, state: State) -> tuple[Tensor, State]:
    """Return the outputs that the task scores, (T or 1, B, O), and the state.

    Run window by window, so that memory stays flat in the sequence's length.
    """
    outputs, length = [], len(batch.inputs)
    for part in window_slices(length, -(-length // STEPS)):
        output, state = model(batch.inputs[part], state)
        outputs = [*outputs, output] if task.output_steps == "all" else [output]
    return torch.cat(outputs), state


def _non_finite(values: Tensor) -> Tensor:
    """Return how many numbers are NaN or infinite (0-dim, float64)."""
    if not values.is_floating_point():
        return torch.zeros((), dtype=torch.float64, device=values.device)
    return (~values.isfinite()).sum().double()
