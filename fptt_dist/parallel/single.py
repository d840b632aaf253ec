"""One process holds everything; nothing travels."""

from torch import Tensor

from fptt_dist.parallel.collectives import Communicator
from fptt_dist.parallel.strategy import Strategy


class Single(Strategy):
    """A single process."""

    def __init__(self) -> None:
        super().__init__(Communicator())

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; see `Strategy.backward`."""
        loss.backward()
        if last:
            self._look(loss)

    def healthy(self) -> bool:
        """Whether loss and gradients were finite."""
        return bool(self._watch.finite())
