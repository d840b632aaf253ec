"""Recurrent layers `(x, state) → (y, state)`, time-major: x (S, B, I), y (S, B, H).

A state of None is zeros. The state that comes out is attached to the graph; whoever cuts the sequence detaches it.
LSTM, GRU and tanh-RNN run on cuDNN on a GPU; most others are loops over the steps, which `compile_steps` compiles.
"""

from typing import Any

import torch
from torch import nn

from fptt_dist.layers import PLACES, class_of
from fptt_dist.models.recurrent_stack import RecurrentStack

LAYERS: dict[str, type[nn.LSTM | nn.GRU | nn.RNN | RecurrentStack]] = {
    name: class_of(name, "fptt_dist.models.cells") for name in PLACES
}


def recurrent_layer(
    cell: str, inputs: int, hidden: int, *, layers: int = 1, dropout: float = 0.0, **options: Any
) -> nn.RNNBase | RecurrentStack:
    """Return a stack of recurrent layers of one kind, with `hidden` units each.

    Args:
        cell: name of the kind.
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: how many are stacked.
        dropout: probability between layers; without effect on a single one.
        options: further arguments of the layer's class.

    Raises:
        ValueError: no such kind.
        TypeError: an option that the layer does not have.
    """
    if cell not in LAYERS:
        raise ValueError(f"cell={cell!r}: a recurrent layer is one of {', '.join(LAYERS)}")
    kind, dropout = LAYERS[cell], dropout if layers > 1 else 0.0
    others = [name for name in options if name not in getattr(kind, "options", ())]
    if others:
        has = [name for name, other in LAYERS.items() if set(others) <= set(getattr(other, "options", ()))]
        raise TypeError(f"{', '.join(others)}: for {' or '.join(has) or 'no cell'}, not for cell={cell!r}")
    more: dict[str, Any] = {"num_layers" if issubclass(kind, nn.RNNBase) else "layers": layers, "dropout": dropout}
    return kind(inputs, hidden, **more, **options)


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """Return the arguments (plain JSON values) with which `recurrent_layer` makes a layer like this one.

    Raises:
        TypeError: a layer that `recurrent_layer` does not make.
    """
    cell = next((name for name, kind in LAYERS.items() if type(layer) is kind), None)
    if cell is None:
        raise TypeError(f"a recurrent layer of {' | '.join(LAYERS)}, not {type(layer).__name__}")
    shape = {"inputs": "input_size", "hidden": "hidden_size", "layers": "num_layers", "dropout": "dropout"}
    options = {name: getattr(layer, name) for name in getattr(layer, "options", ())}
    return {"cell": cell, **{name: getattr(layer, attribute) for name, attribute in shape.items()}, **options}


@torch.no_grad()
def chrono_init(layer: nn.Module, length: int) -> None:
    """Set biases that make the gates remember up to `length` steps (Tallec & Ollivier 2018, "Can recurrent neural
    networks warp time?"): forget bias ~ log U(1, T−1), input bias its negative; for a GRU the update gate's bias.

    Args:
        layer: an LSTM or GRU.
        length: T, steps of the whole sequence (not of a window), at least 3.

    Raises:
        ValueError: a layer without such gates, or a sequence too short.
    """
    if not isinstance(layer, nn.LSTM | nn.GRU):
        raise ValueError(f"chrono initialization is for an LSTM's or GRU's gates, and {type(layer).__name__} has none")
    if length < 3:
        raise ValueError(f"chrono initialization needs a sequence of at least 3 steps, not length={length}")
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
