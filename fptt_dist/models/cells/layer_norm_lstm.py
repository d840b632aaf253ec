"""An LSTM with layer normalization (Ba, Kiros & Hinton 2016, "Layer normalization", its equations 20 to 22)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State


class LayerNormLSTM(RecurrentStack):
    """A stack of normalized LSTM layers `(x (S, B, I), (h, c) (L, B, H) each) → (y (S, B, H), state)`, time-major.

        i, f, g, o = α_1 ∘ n(U h) + α_2 ∘ n(W x) + b         in PyTorch's order
        c' = σ(f) ∘ c + σ(i) ∘ tanh(g)
        h' = σ(o) ∘ tanh(α_3 ∘ n(c') + β)

    n subtracts the mean of a vector and divides by its standard deviation. `weight_ih_l0`, `weight_hh_l0` and `bias_l0`
    hold W, U and b, `scale_hh_l0`, `scale_ih_l0` and `scale_c_l0` α_1, α_2 and α_3, and `bias_c_l0` β. The weights are
    drawn from U(−1/√H, 1/√H); α = 1, b = β = 0.

    n(W x) of a single number x is its sign: a first layer needs several features per step.

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
        """W, U, b, and what scales and shifts after the normalizations."""
        hidden = self.hidden_size
        return {
            "weight_ih": (4 * hidden, inputs),
            "weight_hh": (4 * hidden, hidden),
            "bias": (4 * hidden,),
            "scale_hh": (4 * hidden,),
            "scale_ih": (4 * hidden,),
            "scale_c": (hidden,),
            "bias_c": (hidden,),
        }

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch draws an LSTM's; scale by 1, shift by 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for layer in range(self.num_layers):
            inward, recurrent, bias, *scales, bias_c = self.parameters_of(layer)
            for weight in (inward, recurrent):
                nn.init.uniform_(weight, -bound, bound)
            for scale in scales:
                nn.init.ones_(scale)
            for shift in (bias, bias_c):
                nn.init.zeros_(shift)

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zeros, h and c (B, H)."""
        zeros = super().initial_state(x, dtype)
        return zeros, torch.zeros_like(zeros)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, recurrent, bias, scale_hh, scale_ih, scale_c, bias_c = self.parameters_of(layer)
        drive = functional.layer_norm(functional.linear(x, inward), bias.shape, scale_ih, bias)
        return unroll(_step, drive, state, recurrent, scale_hh, scale_c, bias_c, compiled=self.compiled)


def _step(
    state: tuple[Tensor, ...], drive: Tensor, recurrent: Tensor, scale: Tensor, scale_c: Tensor, bias_c: Tensor
) -> tuple[Tensor, ...]:
    h, c = state
    sums = drive + functional.layer_norm(functional.linear(h.to(recurrent.dtype), recurrent), scale.shape, scale)
    enter, forget, candidate, output = sums.to(c.dtype).chunk(4, dim=-1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(candidate)
    read = functional.layer_norm(c, scale_c.shape, scale_c.to(c.dtype), bias_c.to(c.dtype))
    return torch.sigmoid(output) * torch.tanh(read), c
