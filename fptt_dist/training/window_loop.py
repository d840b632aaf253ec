"""One batch: the K windows of its sequences, for FPTT and every baseline."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT, TrainingScheme, Window, detach
from fptt_dist.algorithm.diagnostics import norms as optimizer_norms
from fptt_dist.models import penalty_of, replay_state
from fptt_dist.parallel import Engine
from fptt_dist.tasks import Batch, Task, rank_slice
from fptt_dist.types import State

PUT_TOGETHER = 64  # scalars


@dataclass
class BatchResult:
    """Result of training on one batch.

    Attributes:
        window_losses: (K,) ℓ_k of this worker's share, unweighted.
        window_metrics: (K,) the task's metric of this worker's share at each window; empty where it has none, or the
            batch was not measured.
        states: the state after the last window, detached, one per micro-batch.
    """

    window_losses: Tensor
    window_metrics: Tensor
    states: list[State]


class ScalarBuffer:
    """Scalars of a batch's windows at a few bytes each: a tensor of its own for each would take 600."""

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
    """Trains one batch: forward, loss and backward per pass, an update per window or one at the end.

    Args:
        model: `(x (S, B, I), state) → (y, state)`.
        task: gives the loss.
        engine: differentiates and updates.
        optimizer: the update.
        procedure: FPTT or a baseline; says what is one pass and when to update.
        windows: K.
        window_size: of all but the last, see `sequence_windows`.
        micro_batches: number of parts into which a worker's share of the batch is split.
        precision: "fp32", or "bf16" for autocast.

    Attributes:
        updates: parameter updates per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        engine: Engine,
        optimizer: FPTT,
        procedure: TrainingScheme,
        *,
        windows: int,
        window_size: int | None = None,
        micro_batches: int = 1,
        precision: str = "fp32",
    ) -> None:
        self.model = model
        self.task = task
        self.engine = engine
        self.optimizer = optimizer
        self.procedure = procedure
        self.windows = windows
        self.window_size = window_size
        self.micro_batches = micro_batches
        self.precision = precision
        self.updates = sum(1 for _ in self.passes(task.length)) if procedure.update_each_window else 1

    def passes(self, length: int) -> Iterator[list[Window]]:
        """The windows of each forward-and-backward pass over sequences of `length` steps."""
        return self.procedure.passes(length, self.windows, self.window_size)

    def run(
        self, batch: Batch, states: list[State] | None = None, *, measure: bool = False
    ) -> tuple[BatchResult, dict]:
        """Train on one batch.

        Args:
            batch: this worker's share, on the model's device.
            states: the incoming state of each micro-batch (from `hidden_of`, where a stream continues);
                None: zeros.
            measure: whether to read the task's metric at each window, and the optimizer's norms before the last update.

        Returns:
            The result, and the norms by name (empty unless `measure`).
        """
        parts = [batch.select(rank_slice(batch.size, m, self.micro_batches)) for m in range(self.micro_batches)]
        incoming = [None] * len(parts) if states is None else states
        losses, metrics = ScalarBuffer(), ScalarBuffer()  # metrics of every window, or of none
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
                closure = self._closure(parts, windows, list(map(replay_state, incoming, outgoing)))
                measurement = partial(optimizer_norms, self.optimizer) if measure and is_last else None
                norms = self.engine.step(closure, measure=measurement)
                self.engine.after_update()
            incoming = outgoing
        device = batch.inputs.device
        return BatchResult(losses.values(device), metrics.values(device), incoming), norms

    def _pass(
        self,
        parts: list[Batch],
        windows: list[Window],
        incoming: list[State],
        outgoing: list[Any],
        *,
        update: bool,
        measure: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run forward and backward over the windows of one graph, for every micro-batch.

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
                self.engine.backward(_times(fraction, objective), last=update and m == len(parts) - 1)
            losses = _added(losses, [_times(fraction, value.detach()) for value in values])
            metrics = _added(metrics, [_times(fraction, score) for score in scores])
            outgoing.append(detach(state))
        return losses, metrics

    def _forward(
        self, part: Batch, windows: list[Window], state: State, *, observe: bool, measure: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Any, list[Tensor | None]]:
        """Run the windows of one graph.

        Returns ℓ_k, the metric where it is asked for and the task has one, the state after the last window, and the
        penalty that the network adds to each ℓ_k in the objective.
        """
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

    def _closure(self, parts: list[Batch], windows: list[Window], incoming: list[State]) -> Any:
        """Return a closure for a second gradient: the first call finds the gradients, the second computes them."""
        if self.optimizer.constants.update_rule != "second_gradient":
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
                self.engine.backward(objective, last=m == len(parts) - 1)

        return closure


def _with(penalties: list[Tensor | None], values: list[Tensor]) -> list[Tensor]:
    """Return ℓ_k plus the penalty that the network adds to it."""
    return [value if penalty is None else value + penalty for penalty, value in zip(penalties, values, strict=True)]


def _times(factor: float, value: Tensor) -> Tensor:
    """Return the product; no operation where the factor is 1."""
    return value if factor == 1.0 else factor * value


def _sum(values: list[Tensor]) -> Tensor:
    """Sum 0-dim tensors; no operation where there is one."""
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _added(sums: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Add each of `values` to its sum; there are no sums before the first micro-batch."""
    return [one + other for one, other in zip(sums, values, strict=True)] if sums else values
