"""The antisymmetric RNN (Chang et al. 2019, "AntisymmetricRNN: A dynamical system view on recurrent neural networks").

It is the forward Euler method on an ordinary differential equation whose Jacobian has eigenvalues near the imaginary
axis: signals neither explode nor die out over a long sequence.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State

INPUT_DEVIATION, RECURRENT_DEVIATION = 1.0, 1.0  # σ_v, σ_w of the paper's appendix C, times 1/√inputs and 1/√hidden


def skew_symmetric(upper: Tensor, size: int) -> Tensor:
    """A = −Aᵀ (size, size) from the size(size−1)/2 numbers above its diagonal, row by row."""
    flat = upper.new_zeros(size * size).index_copy(0, _upper_triangle(size, upper.device), upper)
    return flat.view(size, size) - flat.view(size, size).T


class AntisymmetricRNN(RecurrentStack):
    """A stack of antisymmetric layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

    With M = W − Wᵀ − γI, one M per layer:

        plain   h' = h + ε tanh(M h + V x + b)
        gated   z = σ(M h + V_z x + b_z),   h' = h + ε z ∘ tanh(M h + V_h x + b_h)

    W is strictly upper triangular: `weight_hh_l0` holds its n(n−1)/2 numbers row by row. `weight_ih_l0` and `bias_l0`
    hold V and b, the gate's rows first. Drawn as in the paper: V ~ N(0, 1/inputs), W ~ N(0, 1/hidden), b = 0. The paper
    searched ε in {0.01, 0.1, 1}.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer, at least 2.
        layers: L, how many are stacked.
        gated: whether there is a gate z.
        diffusion: γ, what the step of size ε loses of stability.
        step_size: ε.
        dropout: probability of dropping an element between layers; without effect on a single one.

    Raises:
        ValueError: fewer than 2 units.
    """

    options = ("gated", "diffusion", "step_size")

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
        if hidden < 2:
            raise ValueError(f"an antisymmetric matrix of hidden={hidden} units is 0: it needs at least 2")
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.gated = gated
        self.diffusion = diffusion
        self.step_size = step_size
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """V, W and b."""
        hidden = self.hidden_size
        rows = (2 if self.gated else 1) * hidden
        return {"weight_ih": (rows, inputs), "weight_hh": (hidden * (hidden - 1) // 2,), "bias": (rows,)}

    def reset_parameters(self) -> None:
        """Draw the weights as the paper does."""
        for layer in range(self.num_layers):
            inward, recurrent, bias = self.parameters_of(layer)
            nn.init.normal_(inward, std=INPUT_DEVIATION / math.sqrt(inward.shape[1]))
            nn.init.normal_(recurrent, std=RECURRENT_DEVIATION / math.sqrt(self.hidden_size))
            nn.init.zeros_(bias)

    def transition(self, layer: int = 0) -> Tensor:
        """M = W − Wᵀ − γI (H, H) of a layer; its eigenvalues all have the real part −γ."""
        weight = self.parameters_of(layer)[1]
        damping = self.diffusion * torch.eye(self.hidden_size, dtype=weight.dtype, device=weight.device)
        return skew_symmetric(weight, self.hidden_size) - damping

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, _, bias = self.parameters_of(layer)
        drive, step = functional.linear(x, inward, bias), _gated_step if self.gated else _plain_step
        return unroll(step, drive, state, self.transition(layer), self.step_size, compiled=self.compiled)


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
