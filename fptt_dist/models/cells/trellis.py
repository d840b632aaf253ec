"""Trellis networks (Bai, Kolter & Koltun 2019, "Trellis networks for sequence modeling"): a convolution along the steps
with the weights and the gates of an LSTM, the same in every layer, and the inputs fed to each.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.types import State


class TrellisNet(RecurrentStack):
    """Convolutions on top of each other `(x (S, B, I), state) → (y (S, B, H), state)`, time-major.

    In layer i, with z⁰ = c⁰ = 0:

        i, f, g, o = W_1 x_{t−1} + W_2 x_t + U_1 zⁱ_{t−1} + U_2 zⁱ_t + b       in PyTorch's order
        cⁱ⁺¹_t = σ(f) ∘ cⁱ_{t−1} + σ(i) ∘ tanh(g)
        zⁱ⁺¹_t = σ(o) ∘ tanh(cⁱ⁺¹_t)

    A window is one convolution per layer, whatever its length. An output sees the inputs of its own step and of the L
    steps before it, and nothing older: what is farther in the past than L steps a trellis network cannot learn, by
    whatever algorithm. Windows therefore change what is computed not at all, and save memory alone.

    The state holds the last step's input (1, B, I) and every layer's z and c (L, B, H). `weight_ih_l0` (4H, 2I) holds
    W_1 beside W_2, `weight_hh_l0` (4H, 2H) U_1 beside U_2, and `bias_l0` b. All are drawn as nn.Linear's, from
    U(−1/√(2I + 2H), 1/√(2I + 2H)).

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    stepped = False

    def __init__(self, inputs: int, hidden: int, *, layers: int = 8, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, U and b of all layers."""
        hidden = self.hidden_size
        return {"weight_ih": (4 * hidden, 2 * inputs), "weight_hh": (4 * hidden, 2 * hidden), "bias": (4 * hidden,)}

    def make_parameters(self) -> None:
        """Register the parameters, once for all layers, and draw them."""
        for name, shape in self.shapes(self.input_size).items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch draws a convolution's."""
        bound = 1 / math.sqrt(2 * self.input_size + 2 * self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """The last layer's outputs at every step (S, B, H), and x, z and c of the last step."""
        inward, _, bias = self.parameters_of(0)
        wide = torch.promote_types(inward.dtype, torch.float32)
        if state is None:
            zeros = x.new_zeros((self.num_layers, x.shape[1], self.hidden_size), dtype=wide)
            state = x.new_zeros((1, *x.shape[1:])), zeros, zeros
        before, *ends = state
        drive = functional.linear(torch.cat((_earlier(x, before[0]), x), dim=-1), inward, bias)
        y, c = (torch.zeros(*x.shape[:2], self.hidden_size, dtype=wide, device=x.device) for _ in range(2))
        kept = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                y = functional.dropout(y, self.dropout, self.training)
            below = [end[layer - 1].to(wide) if layer > 0 else torch.zeros_like(end[0], dtype=wide) for end in ends]
            y, (_, c) = self.run_layer(layer, drive, (below, (y, c)))
            kept.append((y[-1], c[-1]))
        z_end, c_end = (torch.stack(parts) for parts in zip(*kept, strict=True))
        return y.to(inward.dtype), (x[-1:].clone(), z_end, c_end)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One convolution, of a drive x (S, B, 4H) and what the layer below put out: before the window, and in it."""
        (z_before, c_before), (z, c) = state
        recurrent = self.parameters_of(layer)[1]
        sums = x
        if layer > 0:
            sums = x + functional.linear(torch.cat((_earlier(z, z_before), z), dim=-1).to(x.dtype), recurrent)
        enter, forget, candidate, output = sums.to(c.dtype).chunk(4, dim=-1)
        c = torch.sigmoid(forget) * _earlier(c, c_before) + torch.sigmoid(enter) * torch.tanh(candidate)
        z = torch.sigmoid(output) * torch.tanh(c)
        return z, (z, c)

    def parameters_of(self, layer: int) -> tuple[Any, ...]:
        """W, U and b: the same for every layer."""
        return super().parameters_of(0)


def _earlier(values: Tensor, before: Tensor) -> Tensor:
    """Values (S, B, ·) a step later than they are: the first is the one from before the window."""
    return torch.cat((before[None].to(values.dtype), values[:-1]))
