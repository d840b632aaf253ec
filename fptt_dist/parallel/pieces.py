"""Which part of the model a worker holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """What a worker holds of one of the model's parameters: a run of its elements, in the order of memory.

    Attributes:
        name: the parameter's.
        shape: of the whole parameter.
        start: the first element's place in it.
        tensor: the optimizer's own, which these elements are in; its state has the same shape.
        at: where in it, flat.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensor: Tensor
    at: slice

    @property
    def stop(self) -> int:
        """The place after the last element."""
        return self.start + self.at.stop - self.at.start

    def of(self, tensor: Tensor) -> Tensor:
        """The same elements of a tensor shaped like `self.tensor`, a view: flat, but where that tensor is all of it."""
        if tensor.shape == self.shape and self.stop - self.start == tensor.numel():
            return tensor
        return tensor.reshape(-1)[self.at]


def whole(name: str, tensor: Tensor) -> Piece:
    """The piece of a worker that holds all of a parameter."""
    return Piece(name, tuple(tensor.shape), 0, tensor, slice(0, tensor.numel()))
