"""Hierarchical: gradients are averaged inside a machine, where links are fast, and the machines agree.

    machine 0   worker 0  worker 1    g averaged at every update, so W, W̄ and u are equal on both
                   │         │
                 part 0    part 1     each worker sends its part of the flat buffer to its like on the other machines
                   │         │
    machine 1   worker 2  worker 3

It is `Consensus` with one voice a machine; what is here is how that voice is shared out over the machine's workers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fptt_dist.parallel.collectives import Communicator


class MachinesCommunicator(Communicator):
    """The machines as workers: sums tensors that are equal on the workers of one machine over the machines.

    Each of a machine's workers sums one part over the machines, then the parts are put together inside.

    Args:
        inside: the workers of this machine.
        across: the workers with the same local rank, one a machine.
    """

    def __init__(self, inside: Communicator, across: Communicator) -> None:
        super().__init__(across.rank, across.world)
        self.inside = inside
        self.across = across

    def parts(self) -> list[Communicator]:
        """Across the machines, and inside this one."""
        return [self.across, self.inside]

    def cost(self, count: int, width: int) -> tuple[int, int]:
        """This worker's part across the machines, and all of it inside."""
        if self.world == 1:
            return 0, 0
        size = self.inside.world
        mine = count // size + (self.inside.rank < count % size)
        across, inside = self.across.cost(mine, width), self.inside.cost(count, width)
        return across[0] + inside[0], across[1] + inside[1]

    @property
    def device(self) -> torch.device:
        """That of its parts."""
        return self.across.device

    def _start_sum(self, tensor: Tensor, name: str) -> Callable[[], None]:
        chunks = tensor.tensor_split(self.inside.world)
        pending = self.across.start_sum(chunks[self.inside.rank], name=name)

        def wait() -> None:
            pending.wait()
            if self.inside.world > 1:
                for rank, chunk in enumerate(chunks):
                    if rank != self.inside.rank:
                        chunk.zero_()
                self.inside.sum(tensor, name=f"{name} inside")

        return wait
