"""The shard of a parameter that a worker holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ParameterShard:
    """A worker's shard of one of the model's parameters: consecutive elements, in memory order.

    Attributes:
        name: name of the parameter.
        shape: shape of the full parameter.
        start: index of the first element in the flattened parameter.
        tensor: the optimizer's own tensor, which contains these elements; its optimizer state has the same shape.
        local_slice: their place in the flattened `tensor`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensor: Tensor
    local_slice: slice

    @property
    def stop(self) -> int:
        """Index after the last element in the flattened parameter."""
        return self.start + self.local_slice.stop - self.local_slice.start

    def view(self, tensor: Tensor) -> Tensor:
        """Return the same elements of a tensor shaped like `self.tensor`, as a view: flat, unless it is all of them."""
        if tensor.shape == self.shape and self.stop - self.start == tensor.numel():
            return tensor
        return tensor.reshape(-1)[self.local_slice]


def full_shard(name: str, tensor: Tensor) -> ParameterShard:
    """Return the shard of a worker that holds all of a parameter."""
    return ParameterShard(name, tuple(tensor.shape), 0, tensor, slice(0, tensor.numel()))
