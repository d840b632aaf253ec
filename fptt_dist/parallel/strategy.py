"""What a strategy is: who holds what, and what travels between the workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class OptimizerView(Protocol):
    """What a strategy sees of the optimizer."""

    param_groups: list[dict[str, Any]]

    @property
    def step(self) -> Callable[..., Any]:
        """One update."""
        ...

    def at_center(self) -> AbstractContextManager[None]:
        """The model computes with W̄ within the context."""
        ...


class Strategy(ABC):
    """One way to train with several workers. The loop calls, in this order and the same on every worker:

    `prepare`, `attach`, then for each window `backward`, `step`, `after_window`; `stopping` after each batch.

    Attributes:
        rank: this worker, from 0.
        world: number of workers.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._stop = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """The module to train, called before the optimizer exists."""
        return model

    def attach(self, optimizer: OptimizerView) -> None:
        """Take the optimizer and bring every worker to rank 0's weights."""
        self.optimizer = optimizer

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> Tensor | None:
        """Differentiate one micro-batch's loss.

        Args:
            loss: 0-dim, already weighted by the micro-batch's share.
            last: whether an update follows; then the gradients are made what the update shall use.

        Returns:
            If `last`: whether loss and gradients are finite on all workers (0-dim bool); otherwise None.
        """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the optimizer."""
        return self.optimizer.step(closure)

    def after_window(self) -> None:
        """Called after each window's update; a place to agree with the other workers."""

    def at_center(self) -> AbstractContextManager[None]:
        """Within the context the module computes with the agreed W̄; afterwards what was there is back."""
        return self.optimizer.at_center()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the workers (metrics, estimates)."""
        return tensor

    def request_stop(self) -> None:
        """This worker was asked to stop; `stopping` says when all agree."""
        self._stop = True

    def stopping(self) -> bool:
        """Whether all workers stop after this batch; the same answer everywhere."""
        return self._stop

    def drain(self) -> None:
        """Wait for collectives under way; changes no number."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of this worker that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back what `state_dict` gave."""

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def all_finite(loss: Tensor, tensors: list[Tensor]) -> Tensor:
    """Whether the loss and all elements of `tensors` are finite, as a 0-dim bool tensor on their device."""
    tensors = [t for t in tensors if t.numel()]
    if not tensors:
        return torch.isfinite(loss)
    largest = torch.stack([torch.linalg.vector_norm(t, float("inf")) for t in tensors])
    return torch.isfinite(largest).all() & torch.isfinite(loss)
