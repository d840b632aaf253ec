"""Leaky integrate-and-fire neurons with recurrent connections, with a fixed and with an adaptive threshold (Bellec et
al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons").

Their decay rates are learned unit by unit (Yin, Corradi & Bohte 2021, "Accurate and efficient time-domain
classification with adaptive spiking recurrent neural networks").
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.cells.spikes import Readout, SpikingStack, spike
from fptt_dist.models.unroll import unroll

MEMBRANE, ADAPTATION = 2.0, 4.0  # the logits of α and ρ are drawn around these: 0.88 and 0.98


class LIF(SpikingStack):
    """A stack of layers of leaky integrate-and-fire neurons with recurrent connections, time-major.

        c  = W_i x + W_h s + b
        u' = α u + (1 − α) c − θ s
        s' = 1 where u' > θ, else 0              see `spikes` for its derivative, which goes through the reset too

    `weight_ih_l0` ~ N(0, 1/I), `weight_hh_l0` ~ N(0, 1/H) and `bias_l0` = 0 hold W_i, W_h and b; α is σ(`membrane_l0`),
    with `membrane_l0` ~ N(2, 1).

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        readout: output of the last layer; see `SpikingStack`.
        threshold: θ.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options: ClassVar[tuple[str, ...]] = ("readout", "threshold")
    tensors: ClassVar[int] = 2

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        readout: Readout = "trace",
        threshold: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout, readout=readout)
        self.threshold = threshold

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W_i, W_h, b and what α is the σ of."""
        hidden = self.hidden_size
        return {
            "weight_ih": (hidden, inputs),
            "weight_hh": (hidden, hidden),
            "bias": (hidden,),
            "membrane": (hidden,),
        }

    def reset_parameters(self) -> None:
        """Draw the weights and each unit's decay rate."""
        super().reset_parameters()
        for layer in range(self.num_layers):
            inward, recurrent, bias, membrane, *_ = self.parameters_of(layer)
            for weight in (inward, recurrent):
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
            nn.init.zeros_(bias)
            nn.init.normal_(membrane, MEMBRANE)

    def run_neurons(self, layer: int, x: Tensor, state: tuple[Tensor, ...], membranes: bool) -> Any:
        """See `SpikingStack`."""
        inward, recurrent, bias, membrane = self.parameters_of(layer)
        drive, kept = functional.linear(x, inward, bias), torch.sigmoid(membrane).to(state[0].dtype)
        if not membranes:
            return unroll(_step, drive, state, recurrent.t(), kept, self.threshold, compiled=self.compiled)
        s, u = state
        weights = recurrent.t(), kept, self.threshold
        output, (u, s) = unroll(_membrane_step, drive, (u, s), *weights, compiled=self.compiled)
        return output, (s, u)


class ALIF(LIF):
    """LIF neurons whose threshold rises with each of their spikes, and falls again slowly: B = θ + β a.

        a' = ρ a + (1 − ρ) s
        u' = α u + (1 − α) c − B' s
        s' = 1 where u' > B', else 0

    ρ is σ(`adaptation_l0`), with `adaptation_l0` ~ N(4, 1).

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        readout: output of the last layer; see `SpikingStack`.
        threshold: θ.
        adaptation: β.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options: ClassVar[tuple[str, ...]] = ("readout", "threshold", "adaptation")
    tensors: ClassVar[int] = 3

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        readout: Readout = "trace",
        threshold: float = 0.1,
        adaptation: float = 1.8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, readout=readout, threshold=threshold, dropout=dropout)
        self.adaptation = adaptation

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """LIF's, and what ρ is the σ of."""
        return {**super().shapes(inputs), "adaptation": (self.hidden_size,)}

    def reset_parameters(self) -> None:
        """See `LIF`."""
        super().reset_parameters()
        for layer in range(self.num_layers):
            nn.init.normal_(self.parameters_of(layer)[4], ADAPTATION)

    def run_neurons(self, layer: int, x: Tensor, state: tuple[Tensor, ...], membranes: bool) -> Any:
        """See `SpikingStack`."""
        inward, recurrent, bias, membrane, adaptation = self.parameters_of(layer)
        drive, (s, u, a) = functional.linear(x, inward, bias), state
        kept, risen = (torch.sigmoid(logit).to(u.dtype) for logit in (membrane, adaptation))
        weights = recurrent.t(), kept, risen, self.threshold, self.adaptation
        if not membranes:
            return unroll(_adaptive_step, drive, (s, u, a), *weights, compiled=self.compiled)
        output, (u, s, a) = unroll(_adaptive_membrane_step, drive, (u, s, a), *weights, compiled=self.compiled)
        return output, (s, u, a)


def _step(state: tuple[Tensor, ...], drive: Tensor, recurrent: Tensor, kept: Tensor, threshold: float) -> Any:
    s, u = state
    current = torch.addmm(drive, s.to(recurrent.dtype), recurrent)
    u = torch.sub(torch.lerp(current.to(u.dtype), u, kept), s, alpha=threshold)
    return spike(u - threshold), u


def _membrane_step(state: tuple[Tensor, ...], drive: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    s, u = _step(state[::-1], drive, *weights)
    return u, s


def _adaptive_step(state: tuple[Tensor, ...], drive: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    recurrent, kept, risen, threshold, adaptation = weights
    s, u, a = state
    current = torch.addmm(drive, s.to(recurrent.dtype), recurrent)
    a = torch.lerp(s, a, risen)
    level = torch.add(threshold, a, alpha=adaptation)
    u = torch.addcmul(torch.lerp(current.to(u.dtype), u, kept), s, level, value=-1)
    return spike(u - level), u, a


def _adaptive_membrane_step(state: tuple[Tensor, ...], drive: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    u, s, a = state
    s, u, a = _adaptive_step((s, u, a), drive, *weights)
    return u, s, a
