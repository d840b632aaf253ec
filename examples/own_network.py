"""A whole network of your own, trained on any task of the package by every algorithm and launcher.

    fptt-dist train add_task task.length=20 model.network=examples/own_network.py:ConvGRU model.options.width=64

A causal convolution over the last few steps comes in front of a GRU, and a head of two layers behind it. A text is
embedded first: then x holds ids, and the package passes the size of the vocabulary as `inputs`.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ConvGRU(nn.Module):
    """Convolution over `kernel` steps, GRU of `width` units, and a head of two layers.

    The state holds all that a window needs to know of the steps before it: the inputs that the convolution still reads,
    and the GRU's state. So two windows give what one window over both gives.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, kernel: int = 4, text: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs, width) if text else nn.Identity()
        self.kernel, self.features = kernel, width if text else inputs
        self.convolution = nn.Conv1d(self.features, width, kernel)
        self.gru = nn.GRU(width, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Read a window x (S, B, inputs), or ids (S, B); return y (S, B, outputs) and the state after it."""
        x = self.embedding(x)
        if state is None:
            state = {"before": x.new_zeros(self.kernel - 1, x.shape[1], self.features), "gru": None}
        x = torch.cat((state["before"], x))  # (kernel − 1 + S, B, features)
        convolved = torch.relu(self.convolution(x.permute(1, 2, 0))).permute(2, 0, 1)  # (S, B, width)
        hidden, last = self.gru(convolved, state["gru"])
        return self.head(hidden), {"before": x[len(x) - self.kernel + 1 :], "gru": last}
