"""Schedulers of the learning rate, on torch's own, and of α, which follows it."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from fptt_dist import config as settings
from fptt_dist.algorithm.schedules import AlphaSchedule
from fptt_dist.config import Config


class Scheduler:
    """A hyper-parameter of an optimizer's groups that changes during a run; this one never does."""

    @property
    def needs_validation(self) -> bool:
        """True if each epoch must end with a validation."""
        return False

    def before_batch(self, batch: int) -> None:
        """Set the value for a batch; `batch`: number of batches trained so far."""

    def after_batch(self) -> None:
        """Move to the next batch's value."""

    def after_epoch(self, value: float) -> None:
        """Move after an epoch whose validation gave `value`."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class AlphaScheduler(Scheduler):
    """Sets α before each batch, from the run's progress and the learning rate of that batch.

    Args:
        schedule: α from both.
        optimizer: whose groups it sets.
        first_lr: the configured learning rate, of which the schedule sees the fraction that is left.
        total_batches: batches of the run.
    """

    def __init__(self, schedule: AlphaSchedule, optimizer: Optimizer, *, first_lr: float, total_batches: int) -> None:
        self._schedule = schedule
        self._optimizer = optimizer
        self._first_lr = first_lr
        self._last_batch = max(1, total_batches - 1)

    def before_batch(self, batch: int) -> None:
        """Set α of each group; see `Scheduler.before_batch`."""
        for group in self._optimizer.param_groups:
            group["alpha"] = self._schedule(batch / self._last_batch, group["lr"] / self._first_lr)


class LrScheduler(Scheduler):
    """Moves the learning rate after each batch, or after each epoch's validation.

    Args:
        config: the run.
        optimizer: whose groups it moves.
        batches_per_epoch: batches per epoch.
        total_batches: batches of the run.
        higher_is_better: the validation metric's direction.
    """

    def __init__(
        self,
        config: Config,
        optimizer: Optimizer,
        *,
        batches_per_epoch: int,
        total_batches: int,
        higher_is_better: bool,
    ) -> None:
        self._by_batch: LambdaLR | None = None
        self._by_epoch: ReduceLROnPlateau | None = None
        match config.schedule:
            case settings.StepLr(milestones=milestones, factor=factor):
                self._by_batch = LambdaLR(
                    optimizer, lambda batch: factor ** bisect_right(milestones, batch // batches_per_epoch)
                )
            case settings.CosineLr(warmup_batches=warmup, final_lr_ratio=final):
                self._by_batch = LambdaLR(optimizer, cosine_factor(warmup, final, total_batches))
            case settings.PlateauLr(factor=factor, patience=patience):
                mode = "max" if higher_is_better else "min"
                self._by_epoch = ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)
            case settings.ConstantLr():
                pass

    @property
    def needs_validation(self) -> bool:
        """True if each epoch must end with a validation."""
        return self._by_epoch is not None

    def after_batch(self) -> None:
        """Move to the next batch's learning rate."""
        if self._by_batch is not None:
            self._by_batch.step()

    def after_epoch(self, value: float) -> None:
        """Move after an epoch whose validation gave `value`."""
        if self._by_epoch is not None:
            self._by_epoch.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        scheduler = self._by_batch or self._by_epoch
        if scheduler is None:
            return {}
        return {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if self._by_batch is not None:
            self._by_batch.load_state_dict({**state, "lr_lambdas": [None]})
        elif self._by_epoch is not None:
            self._by_epoch.load_state_dict(state)


def cosine_factor(warmup: int, final: float, total: int) -> Callable[[int], float]:
    """Return the learning rate's factor by batch: linear over `warmup` batches, then half a cosine to `final`."""

    def factor(batch: int) -> float:
        if batch < warmup:
            return (batch + 1) / (warmup + 1)
        progress = min(1.0, (batch - warmup) / max(1, total - 1 - warmup))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


@contextmanager
def scaled_lr(optimizer: Optimizer, steps: int, length: int) -> Iterator[None]:
    """Multiply the learning rate by steps / length within the context."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * steps / length
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
