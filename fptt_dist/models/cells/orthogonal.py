"""A network with an orthogonal recurrent matrix (Lezcano-Casado & Martínez-Rubio 2019, "Cheap orthogonal constraints in
neural networks: a simple parametrization of the orthogonal and unitary group", expRNN): its state
is rotated, and neither explodes nor vanishes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.cells.antisymmetric import skew_symmetric
from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State

LARGEST_BIAS = 0.01  # of the paper's code


class OrthogonalRNN(RecurrentStack):
    """A stack of orthogonal layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        a = Q h + W x,   Q = exp(A),   A antisymmetric
        h' = sign(a) ∘ relu(|a| + b)                   modReLU of Arjovsky et al. (2016)

    `weight_hh_l0` holds the n(n−1)/2 numbers above A's diagonal row by row; Q is computed once per window.
    `weight_ih_l0` and `bias_l0` hold W and b. Drawn as in the paper's code: A of rotations in planes (Helfrich et al.
    2018), by tan(½φ) with φ ~ U(0, π/2); W as He et al. (2015) do, b ~ U(−0.01, 0.01).

    Args:
        inputs: I, features per step.
        hidden: H, units per layer, at least 2.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.

    Raises:
        ValueError: fewer than 2 units.
    """

    def __init__(self, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> None:
        if hidden < 2:
            raise ValueError(f"an orthogonal matrix of hidden={hidden} units turns nothing: it needs at least 2")
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, A and b."""
        hidden = self.hidden_size
        return {"weight_ih": (hidden, inputs), "weight_hh": (hidden * (hidden - 1) // 2,), "bias": (hidden,)}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as the paper's code does."""
        for layer in range(self.num_layers):
            inward, rotation, bias = self.parameters_of(layer)
            nn.init.kaiming_normal_(inward)
            upper = torch.zeros(self.hidden_size, self.hidden_size)
            first = torch.arange(0, self.hidden_size - 1, 2)
            upper[first, first + 1] = -torch.tan(0.5 * torch.empty(len(first)).uniform_(0, math.pi / 2))
            row, column = torch.triu_indices(self.hidden_size, self.hidden_size, offset=1)
            rotation.copy_(upper[row, column])
            nn.init.uniform_(bias, -LARGEST_BIAS, LARGEST_BIAS)

    def transition(self, layer: int = 0) -> Tensor:
        """Q (H, H) of a layer, computed in float32 at least."""
        rotation = self.parameters_of(layer)[1]
        wide = rotation.to(torch.promote_types(rotation.dtype, torch.float32))
        return torch.linalg.matrix_exp(skew_symmetric(wide, self.hidden_size)).to(rotation.dtype)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, _, bias = self.parameters_of(layer)
        drive, weights = functional.linear(x, inward), (self.transition(layer), bias)
        return unroll(_step, drive, state, *weights, compiled=self.compiled)


def _step(h: Tensor, drive: Tensor, transition: Tensor, bias: Tensor) -> Tensor:
    turned = (drive + functional.linear(h.to(transition.dtype), transition)).to(h.dtype)
    return torch.sign(turned) * torch.relu(turned.abs() + bias)
