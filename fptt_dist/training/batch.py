"""One batch: the K windows of its sequences, for FPTT and every baseline."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT, Procedure, Window, detach
from fptt_dist.algorithm.windows import Remainder
from fptt_dist.models import again, penalty_of
from fptt_dist.parallel import Strategy
from fptt_dist.tasks import Batch, Task, share


@dataclass
class BatchResult:
    """What one batch left behind.

    Attributes:
        window_losses: (K,) ℓ_k of this worker's share, unweighted.
        window_metrics: (K,) the task's metric of this worker's share at each window; empty where it has none.
        states: the state after the last window, detached, one a micro-batch.
    """

    window_losses: Tensor
    window_metrics: Tensor
    states: list[Any]


class WindowLoop:
    """Trains one batch: forward, loss and backward a pass, an update a window (or one at the end), as `procedure` says.

    Args:
        model: `(x (S, B, I), state) → (y, state)`.
        task: gives the loss.
        strategy: differentiates and updates.
        optimizer: the update.
        procedure: FPTT or a baseline.
        windows: K.
        remainder: what becomes of steps left over, see `sequence_windows`.
        micro_batches: backward passes a worker's share of the batch is cut into.
        precision: "fp32", or "bf16" for autocast.

    Attributes:
        updates: parameter updates a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        strategy: Strategy,
        optimizer: FPTT,
        procedure: Procedure,
        *,
        windows: int,
        remainder: Remainder = "spread",
        micro_batches: int = 1,
        precision: str = "fp32",
    ) -> None:
        self.model = model
        self.task = task
        self.strategy = strategy
        self.optimizer = optimizer
        self.procedure = procedure
        self.windows = windows
        self.remainder: Remainder = remainder
        self.micro_batches = micro_batches
        self.precision = precision
        self.updates = len(self.passes(task.length)) if procedure.update_each_window else 1

    def passes(self, length: int) -> list[list[Window]]:
        """The windows of each forward-and-backward pass over sequences of `length` steps."""
        return self.procedure.passes(length, self.windows, self.remainder)

    def run(self, batch: Batch, states: list[Any] | None = None, *, measure: bool = False) -> tuple[BatchResult, dict]:
        """Train on one batch.

        Args:
            batch: this worker's share, on the model's device.
            states: the incoming state of each micro-batch (what `hidden_of` gives where a stream goes on); None: zeros.
            measure: whether to read the optimizer's norms before the last update.

        Returns:
            The result, and the norms by name (empty unless `measure`).
        """
        parts = [batch.select(share(batch.size, m, self.micro_batches)) for m in range(self.micro_batches)]
        incoming = [None] * len(parts) if states is None else states
        losses: list[Tensor] = []
        metrics: list[Tensor] = []
        norms: dict[str, Tensor] = {}
        passes = self.passes(len(batch.inputs))
        for number, windows in enumerate(passes, 1):
            is_last = number == len(passes)
            update = is_last or self.procedure.update_each_window
            outgoing: list[Any] = []
            window_losses, window_metrics = self._pass(parts, windows, incoming, outgoing, update=update)
            losses.extend(window_losses)
            metrics.extend(window_metrics)
            if update:
                closure = self._closure(parts, windows, list(map(again, incoming, outgoing)))
                norms = self.strategy.step(closure, measure=measure and is_last)
                self.strategy.after_window()
            incoming = outgoing
        measured = torch.stack(metrics) if metrics else torch.empty(0, device=batch.inputs.device)
        return BatchResult(torch.stack(losses), measured, incoming), norms

    def _pass(
        self, parts: list[Batch], windows: list[Window], incoming: list[Any], outgoing: list[Any], *, update: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Forward and backward over the windows of one graph, for every micro-batch.

        Returns ℓ_k and the metric of each window (0-dim, means over the micro-batches; no metrics where the task has
        none).
        """
        weights = [self.procedure.weight(window, terminal=self.task.loss.terminal) for window in windows]
        total = sum(part.size for part in parts)
        losses, metrics = ([torch.zeros((), device=parts[0].inputs.device) for _ in windows] for _ in range(2))
        has_metric = False
        for m, part in enumerate(parts):
            fraction = part.size / total
            with torch.set_grad_enabled(any(weights)):
                values, scores, state, penalties = self._forward(part, windows, incoming[m], observe=True)
            if any(weights):
                terms = zip(weights, _with(penalties, values), strict=True)
                objective = torch.stack([w * term for w, term in terms]).sum()
                self.strategy.backward(objective * fraction, last=update and m == len(parts) - 1)
            for k, value in enumerate(values):
                losses[k] += value.detach() * fraction
            for k, score in enumerate(scores):
                metrics[k] += score * fraction
            outgoing.append(detach(state))
            has_metric = bool(scores)
        return losses, metrics if has_metric else []

    def _forward(
        self, part: Batch, windows: list[Window], state: Any, *, observe: bool
    ) -> tuple[list[Tensor], list[Tensor], Any, list[Tensor | None]]:
        """Of the windows of one graph: ℓ_k, the metric where the task has one, the state after the last, and what the
        network adds to each ℓ_k in the objective."""
        values, scores, penalties = [], [], []
        autocast = (
            torch.autocast(part.inputs.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        )
        for window in windows:
            with autocast:
                output, state = self.model(part.inputs[window.part], state)
            penalties.append(penalty_of(state))
            value = self.task.loss(
                output.float() if self.precision == "bf16" else output,
                part.target(window.part),
                window,
                examples=part.examples,
                observe=observe,
            )
            values.append(value)
            score = self.task.window_metric(output.detach(), part.target(window.part)) if observe else None
            if score is not None:
                scores.append(score)
        return values, scores, state, penalties

    def _closure(self, parts: list[Batch], windows: list[Window], incoming: list[Any]) -> Any:
        """For update="algorithm2": the first call finds the gradients ready, the second computes them at W'."""
        if self.optimizer.update != "algorithm2":
            return None
        calls = 0

        def closure() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                return
            total = sum(part.size for part in parts)
            for m, part in enumerate(parts):
                values, _, _, penalties = self._forward(part, windows, incoming[m], observe=False)
                objective = torch.stack(_with(penalties, values)).sum() * (part.size / total)
                self.strategy.backward(objective, last=m == len(parts) - 1)

        return closure


def _with(penalties: list[Tensor | None], values: list[Tensor]) -> list[Tensor]:
    """ℓ_k and what the network adds to it."""
    return [value if penalty is None else value + penalty for penalty, value in zip(penalties, values, strict=True)]
