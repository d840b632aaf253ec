"""An LSTM with uniform gate initialization and refine gates (Gu et al. 2020, "Improving the gating mechanism of
recurrent neural networks"): its units forget at all speeds from the start, and gates near 0 and 1 still learn.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State


class URLSTM(RecurrentStack):
    """A stack of UR-LSTM layers `(x (S, B, I), (h, c) (L, B, H) each) → (y (S, B, H), state)`, time-major.

        f, r, o = σ(W x + U h + b)                    forget, refine and output gates
        g = r ∘ (1 − (1 − f)²) + (1 − r) ∘ f²
        c' = g ∘ c + (1 − g) ∘ tanh(W_c x + U_c h + b_c)
        h' = o ∘ tanh(c')

    `weight_ih_l0`, `weight_hh_l0` and `bias_l0` hold the rows of f, r, the candidate and o, in this order. The weights
    and the last two biases are drawn from U(−1/√H, 1/√H); b_f = −log(1/v − 1) with v ~ U(1/H, 1 − 1/H), so that f
    begins uniform, and b_r = −b_f.

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
            raise ValueError(f"gates uniform between 1/hidden and 1 - 1/hidden need hidden >= 2, not hidden={hidden}")
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, U and b."""
        hidden = self.hidden_size
        return {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch draws an LSTM's, and the gates' biases as the paper does."""
        size = self.hidden_size
        for layer in range(self.num_layers):
            for parameter in self.parameters_of(layer):
                nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))
            bias = self.parameters_of(layer)[2]
            bias[:size] = torch.logit(torch.empty(size).uniform_(1 / size, 1 - 1 / size))
            bias[size : 2 * size] = -bias[:size]

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zeros, h and c (B, H)."""
        zeros = super().initial_state(x, dtype)
        return zeros, torch.zeros_like(zeros)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, recurrent, bias = self.parameters_of(layer)
        return unroll(_step, functional.linear(x, inward, bias), state, recurrent, compiled=self.compiled)


def _step(state: tuple[Tensor, ...], drive: Tensor, recurrent: Tensor) -> tuple[Tensor, ...]:
    h, c = state
    sums = drive + functional.linear(h.to(recurrent.dtype), recurrent)
    forget, refine, candidate, output = sums.to(c.dtype).chunk(4, dim=-1)
    f = torch.sigmoid(forget)
    kept = f * f + 2 * torch.sigmoid(refine) * f * (1 - f)
    c = torch.lerp(torch.tanh(candidate), c, kept)
    return torch.sigmoid(output) * torch.tanh(c), c
