"""minGRU and minLSTM (Feng et al. 2024, "Were RNNs all we needed?").

Their gates and candidates see the inputs alone, so that the state follows a linear recurrence: a window is one `scan`.

    g(v) = v + 0.5 where v ≥ 0, else σ(v)        candidates are positive, and so is the state

The paper computes in logarithms, and its first state is g(h_0): 0.5 where h_0 is 0. Here no logarithm is needed, and a
state of None is h = 0; the paper's sequences begin at `state = torch.full((L, B, H), 0.5)`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.scan import scan
from fptt_dist.types import State


class _Minimal(RecurrentStack):
    """Base class of both: one matrix and one bias of all gates, drawn as nn.Linear's, from U(−1/√inputs, 1/√inputs)."""

    stepped = False
    rows: int

    def __init__(self, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W and b."""
        return {"weight_ih": (self.rows * self.hidden_size, inputs), "bias": (self.rows * self.hidden_size,)}

    def reset_parameters(self) -> None:
        """Draw weights and biases."""
        for layer in range(self.num_layers):
            weight, bias = self.parameters_of(layer)
            for parameter in (weight, bias):
                nn.init.uniform_(parameter, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))

    def gates(self, layer: int, x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """W x + b in as many parts (S, B, H), in the state's type: 1 − z of a slow unit is 1 in half precision."""
        return functional.linear(x, *self.parameters_of(layer)).to(state.dtype).chunk(self.rows, dim=-1)


class MinGRU(_Minimal):
    """A stack of minGRU layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        z = σ(W_z x + b_z),   h' = (1 − z) ∘ h + z ∘ g(W_h x + b_h)

    `weight_ih_l0` and `bias_l0` hold the gate's rows first.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    rows = 2

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        gate, candidate = self.gates(layer, x, state)
        h = scan(torch.sigmoid(-gate), torch.sigmoid(gate) * _positive(candidate), state)
        return h, h[-1]


class MinLSTM(_Minimal):
    """A stack of minLSTM layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        f = σ(W_f x + b_f),   i = σ(W_i x + b_i),   h' = f/(f + i) ∘ h + i/(f + i) ∘ g(W_h x + b_h)

    `weight_ih_l0` and `bias_l0` hold the rows of f, i and the candidate in this order.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    rows = 3

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        forget, enter, candidate = self.gates(layer, x, state)
        share = functional.logsigmoid(forget) - functional.logsigmoid(enter)  # f/(f + i) = σ(log f − log i), never 0/0
        h = scan(torch.sigmoid(share), torch.sigmoid(-share) * _positive(candidate), state)
        return h, h[-1]


def _positive(candidate: Tensor) -> Tensor:
    return torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
