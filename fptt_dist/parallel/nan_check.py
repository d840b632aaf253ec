"""Detection of non-finite losses and gradients, without waiting for the device at every window."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fptt_dist.parallel.comm.communicator import Communicator

NEVER = 2**62
LOSS = "the loss"
SUM = "the sum over the workers"


@dataclass(frozen=True)
class NonFiniteRecord:
    """The first non-finite loss, gradient or sum of a run.

    Attributes:
        rank: the worker that saw it first.
        window: the update it was in, from 0 at the run's start.
        tensor: "the loss", the parameter whose gradient it was, or "the sum over the workers" of finite numbers.
    """

    rank: int
    window: int
    tensor: str


class NonFiniteTracker:
    """A record on the device of how many windows ago the loss, or a parameter's gradient, was first not finite.

    A window costs a few operations on a vector of two numbers per parameter, in an order that never depends on the
    window, and the host reads nothing: `finite` and `first_of_all` are for the batch's end.

    Args:
        names: of the parameters.
        device: where their gradients are.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self._names = [LOSS, *names]
        numbers = 2 * len(self._names) + 1
        self._zero = torch.zeros((), device=device)
        self._spoilt = torch.zeros(numbers, device=device)  # 0, or NaN forever
        self._sound = torch.zeros(numbers, dtype=torch.int64, device=device)  # windows before NaN; the last: all

    @torch.no_grad()
    def observe(self, loss: Tensor, gradients: list[Tensor | None]) -> None:
        """Record the loss and the gradients (of each parameter) of the window that is under way."""
        loss = loss.detach().to(self._zero.device)
        seen = torch.stack([loss, loss, *extremes(gradients, self._zero), self._zero])
        self._spoilt += seen * 0.0  # NaN where it is NaN or infinite

    def next_window(self) -> None:
        """End the window that is under way."""
        self._sound += self._spoilt == 0.0

    def finite(self) -> Tensor:
        """Return whether loss and gradients have been finite so far (0-dim bool)."""
        return (self._spoilt == 0.0).all()

    def first_of_all(self, everyone: Communicator, window: int) -> NonFiniteRecord:
        """Return the first record of all workers: in the earliest window, a loss rather than a gradient.

        Args:
            everyone: all workers.
            window: the one that is under way, or that comes next, from 0 at the run's start.
        """
        *sound, all_windows = self._sound.tolist()
        spoilt = (self._spoilt != 0.0).tolist()
        first = [window - (all_windows - n) if bad else NEVER for n, bad in zip(sound, spoilt[:-1], strict=True)]
        index = first.index(min(first)) // 2
        mine = [min(first), index > 0, everyone.rank, self._names[index]]
        earliest, _, rank, tensor = min(everyone.all_gather_object(mine, name="first non-finite"))
        return NonFiniteRecord(rank, earliest, tensor)


def extremes(gradients: list[Tensor | None], zero: Tensor) -> list[Tensor]:
    """Return two numbers for each gradient (0-dim), finite where all its elements are; `zero` for one that has none.

    They are the smallest and the largest element, or the largest magnitude twice: both pass NaN and infinity on. On a
    CPU `aminmax` is one pass without a copy, many times faster than a norm; on a GPU a norm is one pass for all.
    """
    if zero.is_cuda:
        held = [g for g in gradients if g is not None and g.numel() > 0]
        sizes = iter(torch._foreach_norm(held, math.inf) if held else [])
        each = [next(sizes) if g is not None and g.numel() > 0 else zero for g in gradients]
        return [size for size in each for _ in range(2)]
    pairs = [torch.aminmax(g) if g is not None and g.numel() > 0 else (zero, zero) for g in gradients]
    return [number for pair in pairs for number in pair]


def all_finite(tensor: Tensor) -> Tensor:
    """Return whether all elements are finite (0-dim bool), without a copy of the tensor, which must not be empty."""
    smallest, largest = torch.aminmax(tensor)
    return torch.isfinite(smallest) & torch.isfinite(largest)
