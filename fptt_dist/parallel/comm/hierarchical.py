"""Hierarchical: gradients are averaged inside a node, where links are fast, and the nodes synchronize.

    node 0   worker 0  worker 1    g averaged at every update, so W, W̄ and u are equal on both
                │         │
             shard 0   shard 1     each worker all-reduces its shard of the flat buffer with its peers on other nodes
                │         │
    node 1   worker 2  worker 3

It is `Consensus` with one replica per node; this file shards a replica's communication over the node's workers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fptt_dist.parallel.comm.communicator import Communicator


class NodesCommunicator(Communicator):
    """The nodes as workers: all-reduces tensors that are equal on the workers of one node over the nodes.

    Each of a node's workers all-reduces one shard over the nodes; then the shards are gathered inside the node.

    Args:
        inside: the workers of this node.
        across: the workers with the same local rank, one per node.
    """

    def __init__(self, inside: Communicator, across: Communicator) -> None:
        super().__init__(across.rank, across.world)
        self.inside = inside
        self.across = across

    def subcommunicators(self) -> list[Communicator]:
        """Return the communicators across the nodes and inside this one."""
        return [self.across, self.inside]

    def comm_volume(self, count: int, width: int) -> tuple[int, int]:
        """Return this worker's shard across the nodes, plus the whole tensor inside the node."""
        if self.world == 1:
            return 0, 0
        size = self.inside.world
        mine = count // size + (self.inside.rank < count % size)
        across, inside = self.across.comm_volume(mine, width), self.inside.comm_volume(count, width)
        return across[0] + inside[0], across[1] + inside[1]

    @property
    def device(self) -> torch.device:
        """Device of the communicators that it is made of."""
        return self.across.device

    def _all_reduce_async(self, tensor: Tensor, name: str) -> Callable[[], None]:
        chunks = tensor.tensor_split(self.inside.world)
        pending = self.across.all_reduce_async(chunks[self.inside.rank], name=name)

        def wait() -> None:
            pending.wait()
            if self.inside.world > 1:
                for rank, chunk in enumerate(chunks):
                    if rank != self.inside.rank:
                        chunk.zero_()
                self.inside.all_reduce(tensor, name=f"{name} inside")

        return wait
