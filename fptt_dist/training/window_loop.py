"""One batch: the K windows of its sequences, for FPTT and every baseline."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

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
        updates: number of parameter updates, those that were skipped on this worker included.
    """

    window_losses: Tensor
    window_metrics: Tensor
    states: list[State]
    updates: int


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
        window_length: steps of a window, from which K follows for each batch where sequences have different lengths;
            None: K stays, or is T of a shorter batch.
        micro_batches: number of parts into which a worker's share of the batch is split.
        precision: "fp32", or "bf16" for autocast.

    Attributes:
        updates: parameter updates per batch; of sequences of the usual length, where lengths differ.
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
        window_length: int | None = None,
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
        self.window_length = window_length
        self.micro_batches = micro_batches
        self.precision = precision
        self.updates = sum(1 for _ in self.passes(task.length)) if procedure.update_each_window else 1

    def passes(self, length: int) -> Iterator[list[Window]]:
        """The windows of each forward-and-backward pass over sequences of `length` steps."""
        return self.procedure.passes(length, self.windows, self.window_size)

    def passes_of(self, batch: Batch) -> Iterator[list[Window]]:
        """The same of a batch, whose longest sequence may be shorter than others where lengths differ."""
        length = len(batch.inputs)
        if batch.lengths is None:
            return self.passes(length)
        windows = min(self.windows, length) if self.window_length is None else -(-length // self.window_length)
        return self.procedure.passes(length, windows, self.window_size)

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
        if batch.lengths is not None and batch.global_lengths is None and self.engine.world > 1:
            raise ValueError(
                f"{type(self.task).__name__}.train_batch gave lengths without global_lengths, by which the "
                f"{self.engine.world} workers weigh their sequences: give those of the whole global batch"
            )
        incoming = [None] * len(parts) if states is None else states
        losses, metrics = ScalarBuffer(), ScalarBuffer()  # metrics of every window, or of none
        norms: dict[str, Tensor] = {}
        updates = 0
        for windows in self.passes_of(batch):
            is_last = windows[-1].is_last
            update = is_last or self.procedure.update_each_window
            outgoing: list[Any] = []
            updates += update
            if self.procedure.update_each_window and self._is_padding(batch, windows):
                losses.extend([torch.zeros((), device=batch.inputs.device)] * len(windows))
                self.engine.after_update()
                continue
            with record_function(f"fptt_dist::windows::{windows[0].index}"):
                window_losses, window_metrics = self._pass(
                    batch, parts, windows, incoming, outgoing, update=update, measure=measure
                )
            losses.extend(window_losses)
            metrics.extend(window_metrics)
            if update:
                closure = self._closure(batch, parts, windows, list(map(replay_state, incoming, outgoing)))
                last = is_last or self._is_padding(batch, [_rest(windows[-1])])
                measurement = partial(optimizer_norms, self.optimizer) if measure and last else None
                with record_function("fptt_dist::update"):
                    norms = self.engine.step(closure, measure=measurement) or norms
                self.engine.after_update()
            incoming = outgoing
        device = batch.inputs.device
        return BatchResult(losses.values(device), metrics.values(device), incoming, updates), norms

    def _is_padding(self, batch: Batch, windows: list[Window]) -> bool:
        """Return whether none of the workers that would do this update together has a step in these windows.

        Adam and the regularizer would move W all the same.
        """
        everywhere = batch.all_lengths
        if everywhere is None:
            return False
        size, world = len(everywhere), self.engine.world
        own = [everywhere[rank_slice(size, rank, world)] for rank in self.engine.update_ranks()]
        return not any(bool((lengths > windows[0].part.start).any()) for lengths in own)

    def _weights(self, batch: Batch, part: Batch, windows: list[Window]) -> tuple[float, list[float]]:
        """Return the factor of a micro-batch's objective, and those of each ℓ_k in it; 0 where none needs a gradient.

        Where lengths differ, ℓ_k is a mean over the micro-batch's terms in the window: its steps, or with a target per
        sequence the sequences that have a step there. Its factor is their number over that of the global batch, divided
        by this worker's share of the sequences: so the workers' mean, weighted by the shares, is that of all terms.
        """
        schedule = [self.procedure.weight(window, terminal=self.task.loss.terminal) for window in windows]
        everywhere = batch.all_lengths
        if everywhere is None or part.lengths is None:
            return part.size / batch.size, schedule
        if self.procedure.name != "tbptt_accumulated":
            shares = self._shares(batch, part, windows)
            return 1.0, [w * share for w, share in zip(schedule, shares, strict=True)]
        total = len(everywhere) if self.task.loss.terminal else int(everywhere.sum())
        size = total * batch.size / len(everywhere)
        return 1.0, [self._terms(part.lengths, window) / size for window in windows]

    def _shares(self, batch: Batch, part: Batch, windows: list[Window]) -> list[float]:
        """Return the number of a micro-batch's terms in each ℓ_k over that of the global batch, for `_weights`."""
        everywhere = batch.all_lengths
        assert everywhere is not None
        assert part.lengths is not None
        share = batch.size / len(everywhere)
        counts = [(self._terms(part.lengths, window), self._terms(everywhere, window)) for window in windows]
        return [own / (max(1, total) * share) for own, total in counts]

    def _terms(self, lengths: Tensor, window: Window) -> int:
        """Return the number of terms of ℓ_k: steps in the window, or sequences with a step there."""
        steps = window.real_steps(self._counted(lengths, window))
        return int((steps > 0).sum() if self.task.loss.terminal else steps.sum())

    def _counted(self, lengths: Tensor, window: Window) -> Tensor:
        """Return the lengths for the loss, 0 of a sequence that does not count in the window.

        Of a target per sequence, `tbptt_accumulated` trains the sequence's last window only.
        """
        if self.task.loss.terminal and self.procedure.name == "tbptt_accumulated":
            return lengths.masked_fill(lengths > window.part.stop, 0)
        return lengths

    def _pass(
        self,
        batch: Batch,
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
        losses: list[Tensor] = []
        metrics: list[Tensor] = []
        for m, part in enumerate(parts):
            fraction, weights = self._weights(batch, part, windows)
            needed = update or any(weights)
            with torch.set_grad_enabled(needed):
                values, scores, state, penalties = self._forward(
                    part, windows, incoming[m], observe=True, measure=measure
                )
            if needed:
                terms = zip(weights, _with(penalties, values), strict=True)
                objective = _sum([_times(w, term) for w, term in terms])
                self.engine.backward(_times(fraction, objective), last=update and m == len(parts) - 1)
            shown = [fraction] * len(values) if part.lengths is None else self._shares(batch, part, windows)
            losses = _added(losses, [_times(f, value.detach()) for f, value in zip(shown, values, strict=True)])
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
        lengths = None if part.lengths is None else part.lengths.to(part.inputs.device)
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
                **({} if lengths is None else {"lengths": self._counted(lengths, window)}),
            )
            values.append(value)
            measured = measure and lengths is None
            score = self.task.window_metric(output.detach(), part.target(window.part)) if measured else None
            if score is not None:
                scores.append(score)
        return values, scores, state, penalties

    def _closure(
        self, batch: Batch, parts: list[Batch], windows: list[Window], incoming: list[State]
    ) -> Callable[[], None] | None:
        """Return a closure for a second gradient: the first call finds the gradients, the second computes them."""
        if self.optimizer.constants.update_rule != "second_gradient":
            return None
        calls = 0

        def closure() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                return
            for m, part in enumerate(parts):
                fraction, weights = self._weights(batch, part, windows)
                values, _, _, penalties = self._forward(part, windows, incoming[m], observe=False)
                terms = zip(weights, _with(penalties, values), strict=True)
                self.engine.backward(_times(fraction, _sum([_times(w, t) for w, t in terms])), last=m == len(parts) - 1)

        return closure


def _rest(window: Window) -> Window:
    """Return the rest of the sequence behind a window, as one window."""
    return Window(window.index + 1, window.count, slice(window.part.stop, window.length), window.length)


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
