"""The independently recurrent network (Li et al. 2018, "Independently recurrent neural network (IndRNN): Building a
longer and deeper RNN"): a unit sees its own past alone, and layers are stacked to mix them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll
from fptt_dist.types import State

SLOPE = 8.0  # of the authors' code: small weights, since what a unit sums up grows with the sequence


class IndRNN(RecurrentStack):
    """A stack of independently recurrent layers `(x (S, B, I), state (L, B, H)) → (y (S, B, H), state)`, time-major.

        h' = relu(W n(x) + u ∘ h + b),   |u| ≤ 2^{1/T}

    n is the identity in the first layer, and normalizes the units of a step in those above it, where the paper
    normalizes over the batch and the steps of a whole sequence, which windows do not see. A u past its bound counts as
    the bound, with the gradient it has there: the paper cuts it off after each update.

    `weight_ih_l0`, `weight_hh_l0` and `bias_l0` hold W, u and b. Drawn as in the paper: u ~ U(0, 2^{1/T}), in the last
    layer U(2^{−1/T}, 2^{1/T}), which keeps half at least of what it saw at a sequence's beginning; W as
    He et al. (2015) do for a slope of 8, b = 0.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked; the paper's have 2 to 6.
        length: T, steps of the whole sequence (not of a window); None: sequences have no end, and |u| ≤ 1.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("length",)

    def __init__(
        self, inputs: int, hidden: int, *, layers: int = 1, length: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.length = length
        self.make_parameters()

    @property
    def bound(self) -> float:
        """The largest |u|: what a state grows by in a whole sequence is at most its double."""
        return 1.0 if self.length is None else 2 ** (1 / self.length)

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """W, u and b."""
        hidden = self.hidden_size
        return {"weight_ih": (hidden, inputs), "weight_hh": (hidden,), "bias": (hidden,)}

    def reset_parameters(self) -> None:
        """Draw the weights as the paper does."""
        for layer in range(self.num_layers):
            inward, recurrent, bias = self.parameters_of(layer)
            nn.init.kaiming_uniform_(inward, a=SLOPE)
            last = layer == self.num_layers - 1 and self.length is not None
            nn.init.uniform_(recurrent, 1 / self.bound if last else 0.0, self.bound)
            nn.init.zeros_(bias)

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`."""
        inward, recurrent, bias = self.parameters_of(layer)
        if layer > 0:
            x = functional.layer_norm(x, (self.hidden_size,))
        recurrent = recurrent.to(state.dtype)
        kept = recurrent.clamp(-self.bound, self.bound).detach() + (recurrent - recurrent.detach())
        return unroll(_step, functional.linear(x, inward, bias), state, kept, compiled=self.compiled)


def _step(h: Tensor, drive: Tensor, recurrent: Tensor) -> Tensor:
    return torch.relu(torch.addcmul(drive.to(h.dtype), recurrent, h))
