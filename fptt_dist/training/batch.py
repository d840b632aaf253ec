"""One batch: the K windows of its sequences, for FPTT and every baseline."""

from collections.abc import Iterator
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

PUT_TOGETHER = 64  # numbers of windows


@dataclass
class BatchResult:
    """What one batch left behind.

    Attributes:
        window_losses: (K,) ℓ_k of this worker's share, unweighted.
        window_metrics: (K,) the task's metric of this worker's share at each window; empty where it has none, or the
            batch was not measured.
        states: the state after the last window, detached, one a micro-batch.
    """

    window_losses: Tensor
    window_metrics: Tensor
    states: list[Any]


class Record:
    """Numbers of a batch's windows, a few bytes each: a tensor of its own for each would be 600."""

    def __init__(self) -> None:
        self._whole: list[Tensor] = []
        self._single: list[Tensor] = []

    def extend(self, values: list[Tensor]) -> None:
        """Add 0-dim tensors."""
        self._single += values
        if len(self._single) >= PUT_TOGETHER:
            self._whole.append(torch.stack(self._single))
            self._single.clear()

    def values(self, device: torch.device) -> Tensor:
        """All of them, (K,)."""
        found = [*self._whole, torch.stack(self._single)] if self._single else self._whole
        return torch.cat(found) if found else torch.empty(0, device=device)


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
        self.updates = sum(1 for _ in self.passes(task.length)) if procedure.update_each_window else 1

    def passes(self, length: int) -> Iterator[list[Window]]:
        """The windows of each forward-and-backward pass over sequences of `length` steps."""
        return self.procedure.passes(length, self.windows, self.remainder)

    def run(self, batch: Batch, states: list[Any] | None = None, *, measure: bool = False) -> tuple[BatchResult, dict]:
        """Train on one batch.

        Args:
            batch: this worker's share, on the model's device.
            states: the incoming state of each micro-batch (what `hidden_of` gives where a stream goes on); None: zeros.
            measure: whether to read the task's metric at each window, and the optimizer's norms before the last update.

        Returns:
            The result, and the norms by name (empty unless `measure`).
        """
        parts = [batch.select(share(batch.size, m, self.micro_batches)) for m in range(self.micro_batches)]
        incoming = [None] * len(parts) if states is None else states
        losses, metrics = Record(), Record()  # metrics of every window, or of none
        norms: dict[str, Tensor] = {}
        for windows in self.passes(len(batch.inputs)):
            is_last = windows[-1].is_last
            update = is_last or self.procedure.update_each_window
            outgoing: list[Any] = []
            window_losses, window_metrics = self._pass(
                parts, windows, incoming, outgoing, update=update, measure=measure
            )
            losses.extend(window_losses)
            metrics.extend(window_metrics)
            if update:
                closure = self._closure(parts, windows, list(map(again, incoming, outgoing)))
                norms = self.strategy.step(closure, measure=measure and is_last)
                self.strategy.after_window()
            incoming = outgoing
        device = batch.inputs.device
        return BatchResult(losses.values(device), metrics.values(device), incoming), norms

    def _pass(
        self,
        parts: list[Batch],
        windows: list[Window],
        incoming: list[Any],
        outgoing: list[Any],
        *,
        update: bool,
        measure: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Forward and backward over the windows of one graph, for every micro-batch.

        Returns ℓ_k and the metric of each window (0-dim, means over the micro-batches; no metrics where the task has
        none, or none is asked for).
        """
        weights = [self.procedure.weight(window, terminal=self.task.loss.terminal) for window in windows]
        total = sum(part.size for part in parts)
        losses: list[Tensor] = []
        metrics: list[Tensor] = []
        for m, part in enumerate(parts):
            fraction = part.size / total
            with torch.set_grad_enabled(any(weights)):
                values, scores, state, penalties = self._forward(
                    part, windows, incoming[m], observe=True, measure=measure
                )
            if any(weights):
                terms = zip(weights, _with(penalties, values), strict=True)
                objective = _sum([_times(w, term) for w, term in terms])
                self.strategy.backward(_times(fraction, objective), last=update and m == len(parts) - 1)
            losses = _added(losses, [_times(fraction, value.detach()) for value in values])
            metrics = _added(metrics, [_times(fraction, score) for score in scores])
            outgoing.append(detach(state))
        return losses, metrics

    def _forward(
        self, part: Batch, windows: list[Window], state: Any, *, observe: bool, measure: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Any, list[Tensor | None]]:
        """Of the windows of one graph: ℓ_k, the metric where it is asked for and the task has one, the state after the
        last, and what the network adds to each ℓ_k in the objective."""
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
            score = self.task.window_metric(output.detach(), part.target(window.part)) if measure else None
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
                objective = _times(part.size / total, _sum(_with(penalties, values)))
                self.strategy.backward(objective, last=m == len(parts) - 1)

        return closure


def _with(penalties: list[Tensor | None], values: list[Tensor]) -> list[Tensor]:
    """ℓ_k and what the network adds to it."""
    return [value if penalty is None else value + penalty for penalty, value in zip(penalties, values, strict=True)]


def _times(factor: float, value: Tensor) -> Tensor:
    """The product; no operation where the factor is 1."""
    return value if factor == 1.0 else factor * value


def _sum(values: list[Tensor]) -> Tensor:
    """Of 0-dim tensors; no operation where there is one."""
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _added(sums: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Each of `values` added to its sum; there are none before the first micro-batch."""
    return [one + other for one, other in zip(sums, values, strict=True)] if sums else values
