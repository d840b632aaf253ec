"""The task's metric over a fixed set, which changes no weight and no random stream."""

from typing import Any

import torch
from torch import nn

from fptt_dist.algorithm import window_slices
from fptt_dist.parallel import Strategy
from fptt_dist.tasks import Batch, Split, Task

STEPS = 256  # run at once


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, strategy: Strategy, split: Split, device: torch.device) -> float:
    """The metric of `split` with the model's weights as they are, over all workers' shares of it, in float32.

    Args:
        model: `(x, state) → (y, state)`.
        task: gives the sequences and the metric.
        strategy: knows the other workers.
        split: "validation" or "test".
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # sum of the metric, items
    try:
        _accumulate(model, task, strategy, split, totals, device)
    finally:
        model.train(was_training)
    total, items = strategy.sum(totals).tolist()
    return task.value(total / items)


def _outputs(model: nn.Module, task: Task, batch: Batch, state: Any) -> tuple[torch.Tensor, Any]:
    """What the task scores, (T or 1, B, O), a window at a time: memory stays flat in the sequence's length."""
    outputs, length = [], len(batch.inputs)
    for part in window_slices(length, -(-length // STEPS)):
        output, state = model(batch.inputs[part], state)
        outputs = [*outputs, output] if task.loss.reads == "every" else [output]
    return torch.cat(outputs), state


def _accumulate(
    model: nn.Module, task: Task, strategy: Strategy, split: Split, totals: torch.Tensor, device: torch.device
) -> None:
    state = None
    for batch in task.evaluation_batches(split, strategy.rank, strategy.world):
        batch = batch.to(device)
        output, after = _outputs(model, task, batch, state)
        state = after if task.carries_state else None
        total, items = task.score(output, batch)
        totals[0] += total
        totals[1] += items
