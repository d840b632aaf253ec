"""A small problem, and FPTT on it in a plain loop: what the frameworks' runs are compared with, bit for bit."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS, BATCH, BATCHES, FEATURES = 6, 3, 4, 5, 2
RATE, ALPHA = 0.05, 0.5

FPTTAdam = FPTT.over(torch.optim.Adam, alpha=ALPHA)  # Lightning's command line finds it here


class Network(nn.Module):
    """An RNN and its output layer: (B, T, 2) and a state to (B, T, 1) and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(FEATURES, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden, after = self.rnn(x, state)
        return self.head(hidden), after


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def sequences(seed: int = 0, batches: int = BATCHES) -> tuple[Tensor, Tensor]:
    """Inputs (B, T, 2) and targets (B, T, 1) of some batches."""
    x = torch.rand(batches * BATCH, STEPS, FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, x.cumsum(1).mean(2, keepdim=True)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(prediction, target)


class Plain:
    """FPTT in a plain loop, with one update per window."""

    def __init__(self, windows: int = WINDOWS) -> None:
        self.model, self.windows = network(), windows
        self.optimizer: FPTT = FPTTAdam(self.model.parameters(), lr=RATE)

    def epochs(self, number: int = 1) -> "Plain":
        """Train on all batches, in order."""
        for _ in range(number):
            self.batches(range(BATCHES))
        return self

    def batches(self, indices: Sequence[int]) -> "Plain":
        x, y = sequences()
        for index in indices:
            batch, state = slice(index * BATCH, (index + 1) * BATCH), None
            for part in window_slices(STEPS, self.windows):
                prediction, after = self.model(x[batch, part], state)
                self.optimizer.zero_grad()
                mse(prediction, y[batch, part]).backward()
                self.optimizer.step()
                state = after.detach()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @property
    def center(self) -> dict[str, Tensor]:
        return {name: self.optimizer.center(p).clone() for name, p in self.model.named_parameters()}

    def validation(self) -> float:
        """The error of W̄ on other sequences, as a batch."""
        x, y = sequences(seed=1)
        with torch.no_grad(), self.optimizer.at_center():
            return mse(self.model(x)[0], y).item()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str = "") -> None:
    """The same names, and tensors that are equal bit for bit."""
    found = {name.removeprefix(prefix): value.detach() for name, value in found.items()}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(math.isfinite(value.sum().item()) for value in found.values())
