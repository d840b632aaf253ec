"""An LSTM whose recurrent weights can be dropped."""

from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.types import State


class WeightDropLSTM(nn.LSTM):
    """One layer of LSTM that computes with `mask ∘ W_hh` where a mask is given (Merity et al. 2018, section 2).

    The mask is an argument of the forward pass: the module holds the plain parameters, by the plain names, and the
    gradient reaches W_hh itself.

    Args:
        inputs: I.
        hidden: H.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - no packed sequences
        self, input: Tensor, hx: Any = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """h at every step (S, B, H) and the state (h, c), each (1, B, H); the mask has W_hh's shape."""
        if mask is None:
            return super().forward(input, hx)
        if hx is None:
            hx = (input.new_zeros(1, input.shape[1], self.hidden_size),) * 2
        weights = (self.weight_ih_l0, self.weight_hh_l0 * mask, self.bias_ih_l0, self.bias_hh_l0)
        # In one piece and in this order, as cuDNN reads them; what nn.LSTM does for it would move the parameters' data.
        pieces = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
        flat = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
        output, h, c = torch.lstm(input, hx, flat, True, 1, 0.0, self.training, False, False)
        return output, (h, c)
