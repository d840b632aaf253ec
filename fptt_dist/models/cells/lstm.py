"""torch's LSTM, with windows of one step (K = T) run as a cell on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_SEQUENCES = 64  # above it, what oneDNN prepares for a whole sequence pays for a single step too


class LSTM(nn.LSTM):
    """`torch.nn.LSTM`, time-major and in one direction; the same numbers to rounding.

    On a CPU torch hands a window to oneDNN, which prepares a whole sequence: for one step of a small batch that takes
    longer than the step.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - no packed sequences
        self, input: Tensor, hx: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (S, B, H) of the last layer, and h and c of all layers after the last step (L, B, H) each."""
        alone = len(input) == 1 and input.shape[1] <= MOST_SEQUENCES and input.device.type == "cpu"
        if not alone or torch.is_autocast_enabled("cpu"):
            return super().forward(input, hx)
        x, ends = input[0], []
        for layer, weights in enumerate(self.all_weights):
            zeros = x.new_zeros(len(x), self.hidden_size) if hx is None else x
            state = (zeros, zeros) if hx is None else (hx[0][layer], hx[1][layer])
            if layer > 0 and self.dropout > 0:
                x = functional.dropout(x, self.dropout, self.training)
            x, cell = torch.lstm_cell(x, state, *weights)
            ends.append((x, cell))
        h, c = zip(*ends, strict=True)
        return x.unsqueeze(0), (torch.stack(h), torch.stack(c))
