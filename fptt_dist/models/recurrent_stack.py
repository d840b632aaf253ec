"""The base class of recurrent layers that PyTorch does not have."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from fptt_dist.models.unroll import Stepped
from fptt_dist.types import State


class RecurrentStack(Stepped):
    """A stack of layers of one kind: `(x (S, B, I), state) → (y (S, B, H), state)`, time-major.

    A subclass declares a layer's parameters (`shapes`), initializes them (`reset_parameters`), and runs one layer over
    a window (`run_layer`). Parameters are named as PyTorch's: `weight_ih_l0`. The state is a tensor (L, B, ·), or a
    tuple of such; it is float32 at least, since small increments per step would be rounded away in half precision.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.

    Attributes:
        options: names of the subclass's further arguments, which are its attributes too.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.input_size = inputs
        self.hidden_size = hidden
        self.num_layers = layers
        self.dropout = dropout

    @abstractmethod
    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of a layer with `inputs` features per step, by its name without `_l0`."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialize the parameters."""

    @abstractmethod
    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs of a layer at every step (S, B, H), and its state after the last: (B, ·), or a tuple of such."""

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> State:
        """The state of a layer before a sequence: zeros (B, H)."""
        return torch.zeros(x.shape[1], self.hidden_size, dtype=dtype, device=x.device)

    def make_parameters(self) -> None:
        """Register and initialize the parameters of all layers: the last line of a subclass's constructor."""
        for layer in range(self.num_layers):
            for name, shape in self.shapes(self.input_size if layer == 0 else self.hidden_size).items():
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def parameters_of(self, layer: int) -> tuple[Any, ...]:
        """The parameters of a layer, in the order of `shapes`."""
        return tuple(getattr(self, f"{name}_l{layer}") for name in self.shapes(self.input_size))

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """The last layer's outputs at every step (S, B, H), and the state of all layers after the last step."""
        narrow = self.parameters_of(0)[0].dtype
        wide = torch.promote_types(narrow, torch.float32)
        ends = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = functional.dropout(x, self.dropout, self.training)
            start = self.initial_state(x, wide) if state is None else _of_layer(state, layer, wide)
            x, end = self.run_layer(layer, x, start)
            x = x.to(narrow)
            ends.append(end)
        return x, tree_map(lambda *parts: torch.stack(parts), *ends)


def _of_layer(state: State, layer: int, dtype: torch.dtype) -> State:
    return tree_map(lambda part: part[layer].to(dtype), state)
