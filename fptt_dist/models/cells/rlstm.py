"""r-LSTM (Trinh et al. 2018, "Learning longer-term dependencies in RNNs with auxiliary losses"): an LSTM that has to
remember its inputs, because a second LSTM must reconstruct them from its state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.models.cells.lstm import LSTM
from fptt_dist.models.window_state import WindowState, hidden_of
from fptt_dist.types import State


class ReconstructingLSTM(LSTM):
    """`LSTM`, which in training adds an auxiliary loss to each window's objective: see `WindowState.penalty`.

    The window is cut into segments of R steps, the last perhaps shorter. At the end of each a decoder begins from the
    last layer's h and c and goes through the segment again, first step first: it reads the input of the step before, a
    zero at the first, and a linear layer outputs its guess at this one's.

        penalty = ρ · mean over steps, sequences and inputs of (guess − x)²

    The paper draws the points of reconstruction anew for each sequence, mostly one. Here every segment has one, so that
    nothing is drawn, and every window has one. In evaluation it is the LSTM bit for bit; the decoder's parameters are
    not used then, but counted.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        num_layers: L, how many are stacked.
        reconstruction: ρ.
        reconstruction_steps: R.
        dropout: probability of dropping an element between layers; without effect on a single one.
    """

    options = ("reconstruction", "reconstruction_steps")

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        num_layers: int = 1,
        reconstruction: float = 1.0,
        reconstruction_steps: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, hidden, num_layers=num_layers, dropout=dropout)
        self.reconstruction = reconstruction
        self.reconstruction_steps = reconstruction_steps
        self.decoder = LSTM(inputs, hidden)
        self.guess = nn.Linear(hidden, inputs)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - no packed sequences
        self, input: Tensor, hx: Any = None
    ) -> tuple[Tensor, State]:
        """Outputs (S, B, H) of the last layer; h and c of all layers (L, B, H), in training with the penalty."""
        state = hidden_of(hx)
        if not self.training:
            return super().forward(input, state)
        outputs, errors = [], []
        for piece in input.split(self.reconstruction_steps):
            output, state = super().forward(piece, state)
            outputs.append(output)
            shifted = torch.cat((torch.zeros_like(piece[:1]), piece[:-1]))
            guess = self.guess(self.decoder(shifted, (state[0][-1:], state[1][-1:]))[0])
            errors.append((guess - piece).square().sum())
        penalty = self.reconstruction * torch.stack(errors).sum() / input.numel()
        return torch.cat(outputs), WindowState(state, None, penalty)
