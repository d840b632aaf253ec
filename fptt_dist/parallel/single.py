"""One process holds everything; nothing travels."""

import torch
from torch import Tensor

from fptt_dist.parallel.collectives import Communicator
from fptt_dist.parallel.strategy import OptimizerView, Strategy


class Single(Strategy):
    """A single process."""

    def __init__(self) -> None:
        super().__init__(Communicator())

    def attach(self, optimizer: OptimizerView) -> None:
        """See `Strategy.attach`."""
        super().attach(optimizer)
        self._finite = torch.ones((), dtype=torch.bool, device=self._parameters()[0].device)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; see `Strategy.backward`."""
        loss.backward()
        if last:
            self._finite = self._finite & self._note(loss)

    def healthy(self) -> bool:
        """Whether loss and gradients were finite."""
        return bool(self._finite)
