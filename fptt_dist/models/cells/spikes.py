"""Common parts of layers of spiking neurons: the spike with its surrogate gradient, and the outputs of a layer."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State

Readout = Literal["membrane", "trace", "rate"]
WIDTH, SURROUND, SCALE, DAMPING = 0.5, 0.15, 6.0, 0.5  # σ, h, s and γ of the surrogate
TRACE = 3.0  # logit of the κ that a trace begins with: 0.95, or e^(−1/20)


class SpikingStack(RecurrentStack):
    """A stack of layers of spiking neurons. A layer outputs its spikes s, 0 or 1; the last one outputs, by `readout`,

        membrane   its neurons' membranes u
        trace      its spikes, integrated: y' = κ y + (1 − κ) s', κ = σ(`trace`) learned unit by unit. A linear output
                   layer on it amounts to leaky neurons that do not spike.
        rate       the mean of its spikes since the sequence began

    The state is (s, u, the neurons' further tensors, the memory of a trace or rate).

    Attributes:
        readout: one of these.
        tensors: number of tensors in the neurons' state.
    """

    options: ClassVar[tuple[str, ...]] = ("readout",)
    tensors: ClassVar[int]

    def __init__(self, inputs: int, hidden: int, *, layers: int, dropout: float, readout: Readout) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.readout = readout
        if readout == "trace":
            self.trace = nn.Parameter(torch.empty(hidden))
        self.make_parameters()

    @abstractmethod
    def run_neurons(self, layer: int, x: Tensor, state: tuple[Tensor, ...], membranes: bool) -> Any:
        """The spikes of a layer at every step (S, B, H), or its membranes, and the neurons' state after the last."""

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        if self.readout == "trace":
            nn.init.constant_(self.trace, TRACE)

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> State:
        """See `RecurrentStack`."""
        zeros = super().initial_state(x, dtype)
        neurons = (zeros,) * self.tensors
        match self.readout:
            case "membrane":
                return neurons
            case "trace":
                return (*neurons, zeros)
            case "rate":  # the spikes' sum, and the steps' number
                return (*neurons, zeros.new_zeros(len(zeros), self.hidden_size + 1))

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        last = layer == self.num_layers - 1
        neurons, memory = state[: self.tensors], state[self.tensors :]
        output, neurons = self.run_neurons(layer, x, neurons, last and self.readout == "membrane")
        if not last or self.readout == "membrane":
            return output, (*neurons, *memory)
        if self.readout == "trace":
            kept = torch.sigmoid(self.trace).to(output.dtype)
            output, end = unroll(_trace_step, output, *memory, kept, compiled=self.compiled)
        else:
            output, end = _rate(output, *memory)
        return output, (*neurons, end)


def spike(excess: Tensor) -> Tensor:
    """1 where the membrane exceeds its threshold (excess > 0) and 0 elsewhere.

    Its derivative is replaced by the multi-Gaussian of Yin, Corradi & Bohte (2021), N the normal density:

        γ [(1 + h) N(v; 0, σ²) − h N(v; σ, (sσ)²) − h N(v; −σ, (sσ)²)]
    """
    return _Spike.apply(excess)  # pyright: ignore[reportReturnType]


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return (excess > 0).to(excess.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (excess,) = ctx.saved_tensors
        return grads[0] * surrogate(excess)


def surrogate(excess: Tensor) -> Tensor:
    """The multi-Gaussian that stands for the derivative of `spike`."""
    center = DAMPING * (1 + SURROUND) / (WIDTH * math.sqrt(2 * math.pi))
    side = -DAMPING * SURROUND / (SCALE * WIDTH * math.sqrt(2 * math.pi))
    narrow, wide = -0.5 / WIDTH**2, -0.5 / (SCALE * WIDTH) ** 2
    sides = torch.exp((excess - WIDTH).square_().mul_(wide)) + torch.exp((excess + WIDTH).square_().mul_(wide))
    return torch.exp(excess.square().mul_(narrow)).mul_(center).add_(sides, alpha=side)


def _trace_step(trace: Tensor, spikes: Tensor, kept: Tensor) -> Tensor:
    return torch.lerp(spikes, trace, kept)


def _rate(spikes: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the spikes since the sequence began (S, B, H), and what to remember (B, H + 1)."""
    sums = memory[:, :-1] + spikes.cumsum(0)
    steps = torch.arange(1, len(spikes) + 1, dtype=sums.dtype, device=sums.device).view(-1, 1, 1) + memory[:, -1:]
    return sums / steps, torch.cat([sums[-1], steps[-1]], dim=-1)
