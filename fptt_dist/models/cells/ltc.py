"""Spiking neurons with liquid time constants (Yin, Corradi & Bohte 2023, "Accurate online training of dynamical spiking
neural networks through Forward Propagation Through Time"): the layer with which FPTT was applied to spiking networks.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.cells.spikes import Readout, SpikingStack, spike
from fptt_dist.models.unroll import unroll


class LTC(SpikingStack):
    """A stack of layers of liquid time-constant neurons, time-major.

    A neuron's membrane u and threshold forget at speeds that its input c sets at every step:

        c = W_i x + W_h s + b                    the input, with the layer's spikes of the step before
        τ_u = σ(W_uc c + W_uu u + b_u)
        τ_a = σ(W_ac c + W_aa a + b_a)
        a' = τ_a a + (1 − τ_a) s                 the threshold is θ + β a'
        v  = u + τ_u (c − u)
        s' = 1 where v > θ + β a', else 0        see `spikes` for its derivative
        u' = (1 − s') v

    `weight_ih_l0`, `weight_hh_l0` and `bias_l0` hold W_i, W_h and b; `weight_ch_l0` W_uc above W_ac, `weight_uh_l0`
    W_uu, `weight_ah_l0` W_aa, and `bias_tau_l0` b_u before b_a. All are drawn from U(−1/√n, 1/√n), n the numbers that
    enter a sum: I + H in c, 2H in τ.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        readout: output of the last layer; see `SpikingStack`.
        threshold: θ.
        adaptation: β.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("readout", "threshold", "adaptation")
    tensors: ClassVar[int] = 3

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        readout: Readout = "membrane",
        threshold: float = 0.1,
        adaptation: float = 1.8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout, readout=readout)
        self.threshold = threshold
        self.adaptation = adaptation

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The weights of c and of the two τ."""
        hidden = self.hidden_size
        return {
            "weight_ih": (hidden, inputs),
            "weight_hh": (hidden, hidden),
            "bias": (hidden,),
            "weight_ch": (2 * hidden, hidden),
            "weight_uh": (hidden, hidden),
            "weight_ah": (hidden, hidden),
            "bias_tau": (2 * hidden,),
        }

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch draws those of linear layers, as the paper's code does."""
        super().reset_parameters()
        for layer in range(self.num_layers):
            weights = self.parameters_of(layer)
            bounds = 1 / math.sqrt(weights[0].shape[1] + self.hidden_size), 1 / math.sqrt(2 * self.hidden_size)
            for index, weight in enumerate(weights):
                bound = bounds[index > 2]
                nn.init.uniform_(weight, -bound, bound)

    def run_neurons(self, layer: int, x: Tensor, state: tuple[Tensor, ...], membranes: bool) -> Any:
        """See `SpikingStack`."""
        inward, recurrent, bias, current_to_tau, membrane_to_tau, threshold_to_tau, tau = self.parameters_of(layer)
        drive, turned = functional.linear(x, inward, bias), (recurrent.t(), membrane_to_tau.t(), threshold_to_tau.t())
        weights = *turned, current_to_tau, tau, self.threshold, self.adaptation
        if not membranes:
            return unroll(_step, drive, state, *weights, compiled=self.compiled)
        s, u, a = state
        output, (u, s, a) = unroll(_membrane_step, drive, (u, s, a), *weights, compiled=self.compiled)
        return output, (s, u, a)


def _step(state: tuple[Tensor, ...], drive: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    recurrent, membrane_to_tau, threshold_to_tau, current_to_tau, bias, threshold, adaptation = weights
    s, u, a = state
    kind = recurrent.dtype
    current = torch.addmm(drive, s.to(kind), recurrent)
    to_membrane, to_threshold = functional.linear(current, current_to_tau, bias).chunk(2, dim=-1)
    moved = torch.sigmoid(torch.addmm(to_membrane, u.to(kind), membrane_to_tau))
    kept = torch.sigmoid(torch.addmm(to_threshold, a.to(kind), threshold_to_tau))
    a = torch.lerp(s, a, kept.to(s.dtype))
    u = torch.lerp(u, current.to(u.dtype), moved.to(u.dtype))
    s = spike(torch.sub(u, a, alpha=adaptation) - threshold)
    return s, u - s * u, a


def _membrane_step(state: tuple[Tensor, ...], drive: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    u, s, a = state
    s, u, a = _step((s, u, a), drive, *weights)
    return u, s, a
