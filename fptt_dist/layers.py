"""The registry of recurrent layers."""

from importlib import import_module
from typing import Any

PLACES = {
    "lstm": "lstm.LSTM",
    "gru": "gru.GRU",
    "rnn": "rnn.TanhRNN",
    "layer_norm_lstm": "layer_norm_lstm.LayerNormLSTM",
    "ur_lstm": "ur_lstm.URLSTM",
    "rlstm": "rlstm.ReconstructingLSTM",
    "antisymmetric": "antisymmetric.AntisymmetricRNN",
    "fastgrnn": "fast_grnn.FastGRNN",
    "incremental": "incremental.IncrementalRNN",
    "indrnn": "indrnn.IndRNN",
    "orthogonal": "orthogonal.OrthogonalRNN",
    "lem": "lem.LEM",
    "cornn": "cornn.CoRNN",
    "mingru": "min_rnn.MinGRU",
    "minlstm": "min_rnn.MinLSTM",
    "lru": "lru.LRU",
    "lif": "spiking.LIF",
    "alif": "spiking.ALIF",
    "ltc": "ltc.LTC",
    "trellis": "trellis.TrellisNet",
}
"""File and class of each value of `model.layer`: of the layer in `models/cells`, and of its keys in
`config/schema/cells`. A page, a table or a test of all layers has them in this order."""


def class_of(layer: str, package: str) -> Any:
    """Return the class of that layer in a package: the layer's, or that of its keys."""
    file, name = PLACES[layer].split(".")
    return getattr(import_module(f"{package}.{file}"), name)
