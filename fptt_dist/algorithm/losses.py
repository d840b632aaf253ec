"""Window losses, the paper's "instantaneous losses": the objective of each window of a sequence.

    sequence      ℓ_k = mean over the window's steps of CE(P̂, y)
    terminal      ℓ_k = β_k CE(P̂, y) + (1 − β_k) · (− Σ_c Q(c) log P̂(c))        β_k = k/K
    regression    ℓ_k = β_k MSE(ŷ, y)

Each is averaged over the batch. Outputs are time-major: S steps read, B sequences, C classes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm.target_estimates import LabelEstimate
from fptt_dist.algorithm.windows import Window

IGNORED = -100  # the target of a step that has none


class WindowLoss:
    """The loss ℓ_k of window k; subclasses compute it.

    Attributes:
        terminal: one target per sequence (so `tbptt_accumulated` trains the last window only), or one per step.
        loss_steps: "last" if only the output of the window's last step is needed, "all" if all are.
    """

    terminal: bool = True
    loss_steps: Literal["last", "all"] = "last"

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k as a 0-dim tensor.

        Args:
            output: (S, B, C), S the window's steps or 1, as `loss_steps` says.
            target: (B, …) for terminal losses, (S, B) for sequences.
            window: which window this is.
            examples: global ids of the examples (B,), where an estimate is kept by example.
            observe: whether this pass counts for the estimate of the next epoch.
            lengths: (B,) steps of each sequence, where they differ. Then the mean is over the sequences (or steps) that
                have a step in this window, and `output` has all its steps.
        """
        raise NotImplementedError

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Called after an epoch's last update; `reduce` sums a tensor over the workers."""

    def to(self, device: torch.device) -> None:
        """Move the loss's own tensors to where outputs and targets live."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back what `state_dict` gave."""

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """Return one worker's state for a run that resumes with another number of workers.

        Args:
            states: of all workers of the saved run.
            first: whether the state is rank 0's.

        Raises:
            ValueError: the states belong to the workers that made them.
        """
        if any(states):
            raise ValueError(f"{type(self).__name__} cannot be redistributed over another number of workers")
        return {}


def in_sequence(window: Window, lengths: Tensor) -> Tensor:
    """Return which of a window's steps are no padding (S, B), given the sequences' lengths (B,)."""
    steps = torch.arange(window.steps, device=lengths.device).unsqueeze(1)
    return steps < window.real_steps(lengths)


def at_last_step(output: Tensor, window: Window, lengths: Tensor) -> Tensor:
    """Return the outputs (B, C) at each sequence's last step in the window, from all of them (S, B, C).

    Of a sequence that has none there, the first step's, which is not to be used.
    """
    last = (window.real_steps(lengths) - 1).clamp(min=0)
    return output[last, torch.arange(output.shape[1], device=output.device)]


def progress(window: Window, lengths: Tensor) -> Tensor:
    """Return the part of each sequence (B,) that has been read at the window's end, in (0, 1]."""
    return lengths.clamp(max=window.part.stop) / lengths.clamp(min=1)


def _mean_of_present(values: Tensor, window: Window, lengths: Tensor) -> Tensor:
    """Return the mean of `values` (B,) over the sequences that have a step in the window; 0 if none has."""
    present = window.real_steps(lengths) > 0
    return values.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)


class SequenceLoss(WindowLoss):
    """A class per step: the mean cross-entropy over the window's steps and the batch.

    Steps whose target is −100 are padding and left out; a window of nothing else has the loss 0, and no gradient.

    Args:
        class_weights: (C,) factor of the loss of a step by its class; None: 1.
    """

    terminal = False
    loss_steps = "all"

    def __init__(self, *, class_weights: Tensor | None = None) -> None:
        self.class_weights = class_weights

    def to(self, device: torch.device) -> None:
        """Move the weights of the classes."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k from logits (S, B, C) and classes (S, B), −100 for padding."""
        if lengths is not None:
            target = target.masked_fill(~in_sequence(window, lengths), IGNORED)
        logits, flat = output.flatten(0, 1), target.flatten(0, 1)
        if self.class_weights is None:
            loss = functional.cross_entropy(logits, flat, ignore_index=IGNORED)
        else:  # torch's mean would divide by the weights: another objective in each window, and on each worker
            each = functional.cross_entropy(
                logits, flat, weight=self.class_weights, ignore_index=IGNORED, reduction="sum"
            )
            loss = each / (flat != IGNORED).sum()
        return torch.where((target == IGNORED).all(), 0.0, loss)  # the mean over nothing is NaN


class RegressionLoss(WindowLoss):
    """A value per sequence: β_k times the mean squared error at the window's last step."""

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k from outputs (S, B, D) and values (B, D)."""
        if lengths is None:
            return functional.mse_loss(output[-1], target) * (window.index / window.count)
        error = (at_last_step(output, window, lengths) - target).square().flatten(1).mean(1)
        return _mean_of_present(error * progress(window, lengths), window, lengths)


class StepRegressionLoss(WindowLoss):
    """A value, or several, per step: the mean squared error over the window's steps and the batch."""

    terminal = False
    loss_steps = "all"

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k from outputs (S, B, D) and values (S, B, D)."""
        if lengths is None:
            return functional.mse_loss(output, target)
        present = in_sequence(window, lengths)
        error = (output - target).square().mean(-1).masked_fill(~present, 0.0)
        return error.sum() / present.sum().clamp(min=1)


class MultiLabelLoss(WindowLoss):
    """Several labels per sequence: β_k times the mean binary cross-entropy at the window's last step."""

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k from logits (S, B, C) and labels (B, C), each 0 or 1."""
        if lengths is None:
            value = functional.binary_cross_entropy_with_logits(output[-1], target)
            return value * (window.index / window.count)
        last = at_last_step(output, window, lengths)
        error = functional.binary_cross_entropy_with_logits(last, target, reduction="none").mean(1)
        return _mean_of_present(error * progress(window, lengths), window, lengths)


class TerminalLoss(WindowLoss):
    """A label per sequence, approached through the estimate Q.

    Both terms are one cross-entropy with the soft target t = β onehot(y) + (1 − β) Q:

        ℓ = − Σ_c t(c) log P̂(c)        with kl_reduction "mean", Q/C stands for Q

    In the last window (β = 1) t is the label alone, and ℓ is torch's cross-entropy, bit for bit.

    Args:
        estimate: Q.
        loss_steps: "last": at the window's last step with β_k = k/K; "all": at every step τ with β_τ = τ/T, mean over
            the window (the paper's own form).
        kl_reduction: "sum" over the classes, or their "mean" (as the authors' code: weaker by the number of classes).
        class_weights: (C,) factor of a sequence's loss by its label; None: 1.
    """

    def __init__(
        self,
        estimate: LabelEstimate,
        *,
        loss_steps: Literal["last", "all"] = "last",
        kl_reduction: Literal["sum", "mean"] = "sum",
        class_weights: Tensor | None = None,
    ) -> None:
        self.estimate = estimate
        self.loss_steps = loss_steps
        self.kl_reduction = kl_reduction
        self.class_weights = class_weights

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        *,
        examples: Tensor | None = None,
        observe: bool = True,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ℓ_k from logits (S, B, C) and labels (B,)."""
        if lengths is not None:
            return self._of_lengths(output, target, window, examples, observe, lengths)
        logits = output if self.loss_steps == "all" or len(output) == 1 else output[-1:]  # (S, B, C)
        if observe and self.estimate.learns:
            seen = functional.softmax(logits.detach(), dim=-1).mean(0)
            self.estimate.observe(window.index, target, examples, seen)
        if self.loss_steps == "last" and window.index == window.count and self.class_weights is None:
            return functional.cross_entropy(logits.squeeze(0), target)
        weights = self._soft_target(target, window, examples).mul_(-1.0 / logits[..., 0].numel())
        return (functional.log_softmax(logits, dim=-1) * weights).sum()

    def _of_lengths(
        self,
        output: Tensor,
        target: Tensor,
        window: Window,
        examples: Tensor | None,
        observe: bool,
        lengths: Tensor,
    ) -> Tensor:
        """ℓ_k where the sequences' lengths differ: β is the part of each that was read, and Q that of the same part."""
        present = window.real_steps(lengths) > 0
        read = progress(window, lengths)
        position = torch.ceil(read * self.estimate.windows).long().clamp(min=1)  # of the same relative position
        trusted, label = self._estimate_and_label(position, target, examples)
        if self.loss_steps == "last":
            logits = at_last_step(output, window, lengths).unsqueeze(0)
            mask, beta = present.unsqueeze(0), read.view(1, -1, 1)
        else:
            logits, mask = output, in_sequence(window, lengths)
            steps = torch.arange(window.part.start + 1, window.part.stop + 1, device=lengths.device)
            beta = (steps.unsqueeze(1) / lengths.clamp(min=1)).clamp(max=1.0).unsqueeze(-1)
        if observe and self.estimate.learns:
            weights = mask.unsqueeze(-1) / mask.sum(0).clamp(min=1).unsqueeze(-1)
            seen = (functional.softmax(logits.detach(), dim=-1) * weights).sum(0)
            ids = None if examples is None else examples[present]
            self.estimate.observe(position[present], target[present], ids, seen[present])
        soft = torch.lerp(trusted, label, beta.to(trusted.dtype))
        values = -(functional.log_softmax(logits, dim=-1) * soft).sum(-1).masked_fill(~mask, 0.0)  # (S or 1, B)
        return _mean_of_present(values.sum(0) / mask.sum(0).clamp(min=1), window, lengths)

    def _soft_target(self, target: Tensor, window: Window, examples: Tensor | None) -> Tensor:
        """t, (B, C) with one β for the window, or (S, B, C) with one for each of its steps."""
        trusted, label = self._estimate_and_label(window.index, target, examples)
        if self.loss_steps == "last":
            return torch.lerp(trusted, label, window.index / window.count)
        steps = torch.arange(window.part.start + 1, window.part.stop + 1, dtype=trusted.dtype, device=trusted.device)
        return torch.lerp(trusted, label, (steps / window.length).view(-1, 1, 1))

    def _estimate_and_label(
        self, window: int | Tensor, target: Tensor, examples: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return Q, or Q/C as `kl_reduction` says, and onehot(y), both (B, C) and times the label's weight."""
        trusted = self.estimate(window, target, examples).detach()
        if self.kl_reduction == "mean":
            trusted = trusted / trusted.shape[-1]
        label = torch.zeros_like(trusted).scatter_(-1, target.unsqueeze(-1), 1.0)
        if self.class_weights is None:
            return trusted, label
        factor = self.class_weights[target].unsqueeze(-1)  # ℓ is linear in both
        return trusted * factor, label * factor

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Update Q from this epoch's observations."""
        self.estimate.end_epoch(reduce)

    def to(self, device: torch.device) -> None:
        """Move Q's tables, and the weights of the classes."""
        self.estimate.to(device)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Q's tables."""
        return self.estimate.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring Q's tables back."""
        self.estimate.load_state_dict(state)

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """Return Q's state, redistributed; see `WindowLoss.repartitioned`."""
        return self.estimate.repartitioned(states, first=first)
