"""FastGRNN (Kusupati et al. 2018, "FastGRNN: A fast, accurate, stable and tiny kilobyte sized gated recurrent neural
network"): a gate that costs a vector more than no gate.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State

DEVIATION, GATES_ZETA, GATES_NU = 0.1, 1.0, -4.0  # of the paper's own code, EdgeML


class FastGRNN(RecurrentStack):
    """A stack of FastGRNN layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        a = W x + U h
        z = σ(a + b_z)
        h' = (σ(ζ)(1 − z) + σ(ν)) ∘ tanh(a + b_h) + z ∘ h

    `weight_ih_l0` and `weight_hh_l0` hold W and U, of full rank, `bias_l0` b_z before b_h, and `scale_l0` ζ and ν.
    Drawn as in the paper's code: W, U ~ N(0, 0.01), b = 1, ζ = 1, ν = −4.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    def __init__(self, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, U, b, and ζ with ν."""
        hidden = self.hidden_size
        return {"weight_ih": (hidden, inputs), "weight_hh": (hidden, hidden), "bias": (2 * hidden,), "scale": (2,)}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as the paper's code does."""
        for layer in range(self.num_layers):
            inward, recurrent, bias, scale = self.parameters_of(layer)
            nn.init.normal_(inward, std=DEVIATION)
            nn.init.normal_(recurrent, std=DEVIATION)
            nn.init.ones_(bias)
            scale.copy_(torch.tensor([GATES_ZETA, GATES_NU]))

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, recurrent, bias, scale = self.parameters_of(layer)
        zeta, nu = torch.sigmoid(scale.to(state.dtype))
        return unroll(_step, functional.linear(x, inward), state, recurrent, bias, zeta, nu, compiled=self.compiled)


def _step(h: Tensor, drive: Tensor, recurrent: Tensor, bias: Tensor, zeta: Tensor, nu: Tensor) -> Tensor:
    both = drive + functional.linear(h.to(recurrent.dtype), recurrent)
    of_gate, of_candidate = bias.chunk(2)
    gate = torch.sigmoid((both + of_gate).to(h.dtype))
    return (zeta * (1 - gate) + nu) * torch.tanh(both + of_candidate) + gate * h
