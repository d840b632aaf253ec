"""Every network of the package, small, and what goes into it."""

from typing import Any, cast

import torch
from torch import Tensor

from fptt_dist.models import AwdLstm, Carried, CellName, Network, recurrent_layer
from fptt_dist.models.recurrent import LAYERS

INPUTS, HIDDEN, OUTPUTS, SYMBOLS = 3, 5, 2, 7
SPIKING = ["lif", "alif", "ltc"]
NUMBERS = ["antisymmetric-plain", *LAYERS]
IDS = ["words", "awd", "awd-experts", "awd-window"]
ALL = NUMBERS + IDS
DROPPED: dict[str, Any] = {
    "weight_drop": 0.4,
    "dropout_embedding": 0.2,
    "dropout_input": 0.2,
    "dropout_hidden": 0.3,
    "dropout_output": 0.3,
}
NOT_DROPPED: dict[str, Any] = dict.fromkeys(DROPPED, 0.0)


def awd(**keys: Any) -> AwdLstm:
    """Seven symbols, embedded in 4 numbers, two layers of 5 and 4 units."""
    values = {"embedding": 4, "hidden": 5, "last_hidden": None, "layers": 2, **DROPPED, **keys}
    return AwdLstm(SYMBOLS, **values)


def network(name: str, layers: int = 1, **keys: Any) -> Network | AwdLstm:
    """The network of that name, always with the same weights."""
    torch.manual_seed(0)
    match name:
        case "antisymmetric-plain":
            layer = recurrent_layer("antisymmetric", INPUTS, HIDDEN, layers=layers, gated=False, step_size=0.3)
            return Network(layer, HIDDEN, OUTPUTS, **keys)
        case "words":
            layer = recurrent_layer("lstm", INPUTS, HIDDEN, layers=layers)
            return Network(layer, HIDDEN, SYMBOLS, symbols=SYMBOLS, embedding=INPUTS, **keys)
        case "awd":
            return awd(layers=layers, activation_penalty=2.0, temporal_penalty=1.0, **keys)
        case "awd-experts":
            more = {"experts": 3, "last_hidden": 6, "dropout_latent": 0.2, "tied": False}
            return awd(layers=layers, **{**more, **keys})
        case "awd-window":
            return awd(layers=layers, masks="window", activation_penalty=2.0, **keys)
    return Network(recurrent_layer(cast(CellName, name), INPUTS, HIDDEN, layers=layers), HIDDEN, OUTPUTS, **keys)


def some_inputs(name: str, steps: int, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers (S, B, 3) or ids (S, B)."""
    if name in NUMBERS:
        return torch.randn(steps, batch, INPUTS, dtype=dtype)
    return torch.randint(SYMBOLS, (steps, batch))


def tensors(state: Any) -> list[Tensor]:
    """Every tensor of a state."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state
    return [tensor for part in parts for tensor in tensors(part)]


def carried(state: Any) -> Carried:
    """A state that must be a `Carried`."""
    assert isinstance(state, Carried)
    return state
