"""Watching for numbers that are not finite, without waiting for the device at every window."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fptt_dist.parallel.collectives import Communicator

NEVER = 2**62
LOSS = "the loss"
SUM = "the sum over the workers"


@dataclass(frozen=True)
class Sighting:
    """Where something was first not finite.

    Attributes:
        rank: the worker that saw it first.
        window: the update it was in, from 0 at the run's start.
        tensor: "the loss", the parameter whose gradient it was, or "the sum over the workers" of finite numbers.
    """

    rank: int
    window: int
    tensor: str


class FirstSight:
    """Remembers on the device in which window the loss, or a parameter's gradient, was first not finite.

    Args:
        names: of the parameters.
        device: where their gradients are.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self._names = [LOSS, *names]
        self._first = torch.full((len(self._names),), NEVER, dtype=torch.int64, device=device)

    @torch.no_grad()
    def note(self, loss: Tensor, window: int, gradients: list[Tensor | None]) -> Tensor:
        """Look at the loss and the gradients (of each parameter) of `window`; whether all are finite (0-dim bool)."""
        seen = [i for i, g in enumerate(gradients, 1) if g is not None and g.numel() > 0]
        largest = largest_gradients(gradients)
        finite = torch.isfinite(torch.stack([loss.detach().double().to(self._first.device), *largest]))
        if len(seen) < len(gradients):
            everything = finite.new_ones(len(self._names))
            everything[[0, *seen]] = finite
            finite = everything
        self._first = torch.where(finite, self._first, self._first.clamp(max=window))
        return finite.all()

    def agree(self, everyone: Communicator) -> Sighting:
        """The earliest window of all workers, there a worker whose loss it was rather than a gradient."""
        index = int(self._first.argmin())
        mine = [int(self._first[index]), index > 0, everyone.rank, self._names[index]]
        window, _, rank, tensor = min(everyone.gather(mine, name="first sight"))
        return Sighting(rank, window, tensor)


def largest_gradients(gradients: list[Tensor | None]) -> list[Tensor]:
    """The largest |g| of each gradient that has elements (0-dim, float64).

    NaN and infinity survive a maximum, which is several times faster than a norm.
    """
    found = [g for g in gradients if g is not None and g.numel() > 0]
    return [value.double() for value in torch._foreach_max(torch._foreach_abs(found))] if found else []
