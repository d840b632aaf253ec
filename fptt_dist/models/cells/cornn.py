"""Coupled oscillators (Rusch & Mishra 2021, "Coupled oscillatory recurrent neural network (coRNN): An accurate and
(gradient) stable architecture for learning long time dependencies").
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State


class CoRNN(RecurrentStack):
    """A stack of oscillators' layers `(x (S, B, I), (y, z) (L, B, H) each) → (y (S, B, H), state)`, time-major.

        z' = z + Δt (tanh(W y + 𝒲 z + V x + b) − γ y − ε z)          velocity
        y' = y + Δt z'                                              place

    `weight_ih_l0` and `bias_l0` hold V and b, `weight_hh_l0` (H, 2H) W beside 𝒲. All are drawn as nn.Linear's, from
    U(−1/√(I + 2H), 1/√(I + 2H)). The defaults are the paper's for sequential MNIST.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        step_size: Δt.
        frequency: γ, the square of an oscillator's frequency.
        damping: ε.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("step_size", "frequency", "damping")

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        step_size: float = 0.042,
        frequency: float = 2.7,
        damping: float = 4.7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.step_size = step_size
        self.frequency = frequency
        self.damping = damping
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """V, b, and W beside 𝒲."""
        hidden = self.hidden_size
        return {"weight_ih": (hidden, inputs), "bias": (hidden,), "weight_hh": (hidden, 2 * hidden)}

    def reset_parameters(self) -> None:
        """Draw the weights as the paper's code does."""
        for layer in range(self.num_layers):
            weights = self.parameters_of(layer)
            bound = 1 / math.sqrt(weights[0].shape[1] + 2 * self.hidden_size)
            for weight in weights:
                nn.init.uniform_(weight, -bound, bound)

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zeros, places and velocities (B, H)."""
        zeros = super().initial_state(x, dtype)
        return zeros, torch.zeros_like(zeros)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, bias, recurrent = self.parameters_of(layer)
        weights = recurrent, self.step_size, self.frequency, self.damping
        return unroll(_step, functional.linear(x, inward, bias), state, *weights, compiled=self.compiled)


def _step(
    state: tuple[Tensor, ...], drive: Tensor, recurrent: Tensor, step_size: float, frequency: float, damping: float
) -> tuple[Tensor, ...]:
    y, z = state
    driven = torch.tanh(functional.linear(torch.cat((y, z), dim=-1).to(recurrent.dtype), recurrent) + drive)
    z = z + step_size * (driven - frequency * y - damping * z)
    return y + step_size * z, z
