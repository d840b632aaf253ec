"""Replicated: each worker holds everything, and `backward` communicates nothing."""

from torch import Tensor

from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.placement.placement import Placement


class Replicated(Placement):
    """All parameters and their optimizer state on each worker, which is a replica by itself."""

    def __init__(self) -> None:
        super().__init__(Communicator())

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; see `Placement.backward`."""
        loss.backward()
