"""Long expressive memory (Rusch et al. 2022, "Long expressive memory for sequence modeling"): two states, each of which
learns how fast it moves.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State


class LEM(RecurrentStack):
    """A stack of LEM layers `(x (S, B, I), (y, z) (L, B, H) each) → (y (S, B, H), state)`, time-major.

        Δ_1 = Δt σ(W_1 y + V_1 x + b_1)
        Δ_2 = Δt σ(W_2 y + V_2 x + b_2)
        z' = (1 − Δ_1) ∘ z + Δ_1 ∘ tanh(W_z y + V_z x + b_z)
        y' = (1 − Δ_2) ∘ y + Δ_2 ∘ tanh(W_y z' + V_y x + b_y)

    `weight_ih_l0` and `bias_l0` hold V and b of Δ_1, Δ_2, z and y, `weight_hh_l0` W_1, W_2 and W_z, and `weight_zh_l0`
    W_y. All are drawn from U(−1/√H, 1/√H), as in the paper's code.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        step_size: Δt, the longest step along the differential equations.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("step_size",)

    def __init__(
        self, inputs: int, hidden: int, *, layers: int = 1, step_size: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.step_size = step_size
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """V, b, W_1 with W_2 and W_z, W_y."""
        hidden = self.hidden_size
        return {
            "weight_ih": (4 * hidden, inputs),
            "bias": (4 * hidden,),
            "weight_hh": (3 * hidden, hidden),
            "weight_zh": (hidden, hidden),
        }

    def reset_parameters(self) -> None:
        """Draw the weights as the paper's code does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zeros, y and z (B, H)."""
        zeros = super().initial_state(x, dtype)
        return zeros, torch.zeros_like(zeros)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, bias, recurrent, fast = self.parameters_of(layer)
        weights = recurrent, fast, self.step_size
        return unroll(_step, functional.linear(x, inward, bias), state, *weights, compiled=self.compiled)


def _step(
    state: tuple[Tensor, ...], drive: Tensor, recurrent: Tensor, fast: Tensor, step_size: float
) -> tuple[Tensor, ...]:
    y, z = state
    size = 3 * y.shape[-1]
    of_hidden = functional.linear(y.to(recurrent.dtype), recurrent) + drive[:, :size]
    of_first, of_second, of_z = of_hidden.to(y.dtype).chunk(3, dim=-1)
    z = torch.lerp(z, torch.tanh(of_z), step_size * torch.sigmoid(of_first))
    of_y = functional.linear(z.to(fast.dtype), fast) + drive[:, size:]
    return torch.lerp(y, torch.tanh(of_y.to(y.dtype)), step_size * torch.sigmoid(of_second)), z
