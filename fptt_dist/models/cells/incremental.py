"""The incremental RNN (Kag, Zhang & Saligrama 2020, "RNNs incrementally evolving on an equilibrium manifold"): at every
step the state moves towards the equilibrium of a differential equation that state and input set.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State


class IncrementalRNN(RecurrentStack):
    """A stack of incremental layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        g_0 = 0
        g_i = g_{i−1} + η_i (tanh(U (g_{i−1} + h) + W x + b) − α (g_{i−1} + h)),   i = 1 … K
        h' = g_K

    `weight_ih_l0`, `weight_hh_l0` and `bias_l0` hold W, U and b, drawn from U(−1/√H, 1/√H); `rates_l0` holds η (K)
    and `leak_l0` α, which are learned and all begin at 1: where the iterations end near the equilibrium, ∂h'/∂h is near
    −1 beside what U gives, and gradients do not vanish. A smaller η forgets: 0.2 does not learn to add 8 numbers.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        iterations: K, the paper's from 1 to 5; each costs what a step of another cell does.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("iterations",)

    def __init__(self, inputs: int, hidden: int, *, layers: int = 1, iterations: int = 5, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.iterations = iterations
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, U, b, η and α."""
        hidden = self.hidden_size
        return {
            "weight_ih": (hidden, inputs),
            "weight_hh": (hidden, hidden),
            "bias": (hidden,),
            "rates": (self.iterations,),
            "leak": (1,),
        }

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch draws an RNN's."""
        bound = 1 / math.sqrt(self.hidden_size)
        for layer in range(self.num_layers):
            *weights, rates, leak = self.parameters_of(layer)
            for weight in weights:
                nn.init.uniform_(weight, -bound, bound)
            nn.init.ones_(rates)
            nn.init.ones_(leak)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, recurrent, bias, rates, leak = self.parameters_of(layer)
        weights = recurrent, leak.to(state.dtype), *rates.to(state.dtype)
        return unroll(_step, functional.linear(x, inward, bias), state, *weights, compiled=self.compiled)


def _step(h: Tensor, drive: Tensor, recurrent: Tensor, leak: Tensor, *rates: Tensor) -> Tensor:
    moved = torch.zeros_like(h)
    for rate in rates:
        place = moved + h
        target = torch.tanh(functional.linear(place.to(recurrent.dtype), recurrent) + drive)
        moved = moved + rate * (target - leak * place)
    return moved
