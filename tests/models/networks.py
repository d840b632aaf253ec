"""Every network of the package, small, and what goes into it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fptt_dist.models import AwdLstm, Network, WindowState, recurrent_layer
from fptt_dist.models.cells.spikes import SpikingStack
from fptt_dist.models.recurrent import LAYERS

INPUTS, HIDDEN, OUTPUTS, SYMBOLS = 3, 5, 2, 7
SPIKING = [name for name, kind in LAYERS.items() if issubclass(kind, SpikingStack)]
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
            more = {"num_experts": 3, "last_hidden": 6, "dropout_latent": 0.2, "tie_weights": False}
            return awd(layers=layers, **{**more, **keys})
        case "awd-window":
            return awd(layers=layers, dropout_mask_scope="window", activation_penalty=2.0, **keys)
    return Network(recurrent_layer(name, INPUTS, HIDDEN, layers=layers), HIDDEN, OUTPUTS, **keys)


def some_inputs(name: str, steps: int, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers (S, B, 3) or ids (S, B)."""
    if name in NUMBERS:
        return torch.randn(steps, batch, INPUTS, dtype=dtype)
    return torch.randint(SYMBOLS, (steps, batch))


def tensors(state: Any) -> list[Tensor]:
    """Every tensor of a state."""
    return [leaf for leaf in tree_leaves(state) if leaf is not None]


def carried(state: Any) -> WindowState:
    """A state that must be a `WindowState`."""
    assert isinstance(state, WindowState)
    return state
