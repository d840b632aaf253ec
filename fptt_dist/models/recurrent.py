"""Recurrent layers `(x, state) → (y, state)`, time-major: x (S, B, I), y (S, B, H). They run on cuDNN on a GPU.

A state of None is zeros. The state that comes out is attached to the graph; whoever cuts the sequence detaches it.
"""

from typing import Literal

import torch
from torch import nn

CellName = Literal["lstm", "gru", "rnn"]
LAYERS: dict[str, type[nn.LSTM | nn.GRU | nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def recurrent_layer(cell: CellName, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> nn.RNNBase:
    """An LSTM, GRU or tanh-RNN of `layers` layers with `hidden` units each.

    Args:
        cell: "lstm", "gru" or "rnn".
        inputs: I, numbers a step.
        hidden: H, units a layer.
        layers: how many are stacked.
        dropout: probability between layers; without effect on a single one.
    """
    return LAYERS[cell](inputs, hidden, num_layers=layers, dropout=dropout if layers > 1 else 0.0)


@torch.no_grad()
def chrono_initialisation(layer: nn.RNNBase, length: int) -> None:
    """Biases that make the gates remember up to `length` steps (Tallec & Ollivier 2018, "Can recurrent neural networks
    warp time?"): forget bias ~ log U(1, T−1), input bias its negative; for a GRU the update gate's bias.

    Args:
        layer: an LSTM or GRU.
        length: T, steps of the whole sequence (not of a window), at least 3.

    Raises:
        ValueError: a layer without gates, or a sequence too short.
    """
    if not isinstance(layer, nn.LSTM | nn.GRU):
        raise ValueError(f"chrono initialisation is for gates, and {type(layer).__name__} has none")
    if length < 3:
        raise ValueError(f"chrono initialisation needs a sequence of at least 3 steps, not length={length}")
    hidden = layer.hidden_size
    for index in range(layer.num_layers):
        inward, recurrent = getattr(layer, f"bias_ih_l{index}"), getattr(layer, f"bias_hh_l{index}")
        memory = torch.empty(hidden).uniform_(1.0, length - 1.0).log_()
        inward.zero_()
        recurrent.zero_()
        # torch's order of the gates: input, forget, cell, output for LSTM; reset, update, new for GRU.
        inward[hidden : 2 * hidden] = memory
        if isinstance(layer, nn.LSTM):
            inward[:hidden] = -memory
