"""The antisymmetric RNN (Chang et al. 2019, "AntisymmetricRNN: A dynamical system view on recurrent neural networks").

It is the forward Euler method on an ordinary differential equation whose Jacobian has eigenvalues near the imaginary
axis: signals neither explode nor die out over a long sequence.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.unroll import Stepped, unroll

INPUT_DEVIATION, RECURRENT_DEVIATION = 1.0, 1.0  # σ_v, σ_w of the paper's appendix C, times 1/√inputs and 1/√hidden


class AntisymmetricRNN(Stepped):
    """A stack of antisymmetric layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

    With M = W − Wᵀ − γI, one M a layer:

        plain   h' = h + ε tanh(M h + V x + b)
        gated   z = σ(M h + V_z x + b_z),   h' = h + ε z ∘ tanh(M h + V_h x + b_h)

    W is strictly upper triangular: `weight_hh_l0` holds its n(n−1)/2 numbers row by row. `weight_ih_l0` and `bias_l0`
    hold V and b, the gate's rows first. Drawn as in the paper: V ~ N(0, 1/inputs), W ~ N(0, 1/hidden), b = 0. The paper
    searched ε in {0.01, 0.1, 1}.

    Args:
        inputs: I, numbers a step.
        hidden: H, units a layer, at least 2.
        layers: L, how many are stacked.
        gated: whether there is a gate z.
        diffusion: γ, what the step of size ε loses of stability.
        step_size: ε.
        dropout: probability of dropping an element between layers; without effect on a single one.

    Raises:
        ValueError: fewer than 2 units.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        gated: bool = True,
        diffusion: float = 0.01,
        step_size: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden < 2:
            raise ValueError(f"an antisymmetric matrix of hidden={hidden} units is 0: it needs at least 2")
        self.input_size = inputs
        self.hidden_size = hidden
        self.num_layers = layers
        self.gated = gated
        self.diffusion = diffusion
        self.step_size = step_size
        self.dropout = dropout
        rows = (2 if gated else 1) * hidden
        for layer in range(layers):
            width = inputs if layer == 0 else hidden
            self.register_parameter(f"weight_ih_l{layer}", nn.Parameter(torch.empty(rows, width)))
            self.register_parameter(f"weight_hh_l{layer}", nn.Parameter(torch.empty(hidden * (hidden - 1) // 2)))
            self.register_parameter(f"bias_l{layer}", nn.Parameter(torch.empty(rows)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the paper does."""
        for layer in range(self.num_layers):
            inward, recurrent, bias = self._parameters_of(layer)
            nn.init.normal_(inward, std=INPUT_DEVIATION / math.sqrt(inward.shape[1]))
            nn.init.normal_(recurrent, std=RECURRENT_DEVIATION / math.sqrt(self.hidden_size))
            nn.init.zeros_(bias)

    def transition(self, layer: int = 0) -> Tensor:
        """M = W − Wᵀ − γI (H, H) of a layer; its eigenvalues all have the real part −γ."""
        weight = self._parameters_of(layer)[1]
        size = self.hidden_size
        upper = weight.new_zeros(size * size).index_copy(0, _upper_triangle(size, weight.device), weight)
        upper = upper.view(size, size)
        return upper - upper.T - self.diffusion * torch.eye(size, dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last layer's h at every step (S, B, H), and h of all layers after the last step."""
        ends = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = functional.dropout(x, self.dropout, self.training)
            x, end = self._layer(layer, x, None if state is None else state[layer])
            ends.append(end)
        return x, torch.stack(ends)

    def _layer(self, layer: int, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        inward, _, bias = self._parameters_of(layer)
        transition = self.transition(layer)
        # h grows by ε at a step, which half precision would round away.
        wide = torch.promote_types(transition.dtype, torch.float32)
        h = torch.zeros(x.shape[1], self.hidden_size, dtype=wide, device=x.device) if h is None else h.to(wide)
        drive, step = functional.linear(x, inward, bias), _gated_step if self.gated else _plain_step
        output, h = unroll(step, drive, h, transition, self.step_size, compiled=self.compiled)
        return output.to(transition.dtype), h

    def _parameters_of(self, layer: int) -> tuple[Any, Any, Any]:
        return tuple(getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias"))


def _gated_step(h: Tensor, drive: Tensor, transition: Tensor, step_size: float) -> Tensor:
    recurrent = functional.linear(h.to(transition.dtype), transition)
    gate, candidate = drive.chunk(2, dim=-1)
    return torch.addcmul(h, torch.sigmoid(recurrent + gate), torch.tanh(recurrent + candidate), value=step_size)


def _plain_step(h: Tensor, drive: Tensor, transition: Tensor, step_size: float) -> Tensor:
    recurrent = functional.linear(h.to(transition.dtype), transition)
    return torch.add(h, torch.tanh(recurrent + drive), alpha=step_size)


@lru_cache(maxsize=8)
def _upper_triangle(size: int, device: torch.device) -> Tensor:
    """Where the strictly upper triangle's numbers lie in a matrix row by row, of int64."""
    with torch.inference_mode(False):  # autograd may keep it
        row, column = torch.triu_indices(size, size, offset=1, device=device)
        return row * size + column
