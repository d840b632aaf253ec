"""Evaluation of the task's metric over a fixed set, which changes no weight and no random stream."""

import torch
from torch import nn

from fptt_dist.algorithm import window_slices
from fptt_dist.parallel import Communicator
from fptt_dist.tasks import Batch, Split, Task
from fptt_dist.types import State

STEPS = 256  # of one window, at most


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, everyone: Communicator, split: Split, device: torch.device) -> float:
    """Return the metric of `split` with the model's weights as they are, over all workers' shares of it, in float32.

    Args:
        model: `(x, state) → (y, state)`.
        task: gives the sequences and the metric.
        everyone: all workers.
        split: "validation" or "test".
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # sum of the metric, items
    try:
        _accumulate(model, task, everyone, split, totals, device)
    finally:
        model.train(was_training)
    total, items = everyone.all_reduce(totals, name="metrics").tolist()
    return task.value(total / items)


def _outputs(model: nn.Module, task: Task, batch: Batch, state: State) -> tuple[torch.Tensor, State]:
    """Return the outputs that the task scores, (T or 1, B, O), and the state.

    Run window by window, so that memory stays flat in the sequence's length.
    """
    outputs, length = [], len(batch.inputs)
    for part in window_slices(length, -(-length // STEPS)):
        output, state = model(batch.inputs[part], state)
        outputs = [*outputs, output] if task.output_steps == "all" else [output]
    return torch.cat(outputs), state


def _accumulate(
    model: nn.Module, task: Task, everyone: Communicator, split: Split, totals: torch.Tensor, device: torch.device
) -> None:
    state = None
    for batch in task.evaluation_batches(split, everyone.rank, everyone.world):
        batch = batch.to(device).without_padding()
        output, after = _outputs(model, task, batch, state)
        state = after if task.stateful else None
        total, items = task.score(output, batch)
        totals[0] += total
        totals[1] += items
