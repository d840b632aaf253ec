"""Keys of the LSTM with layer normalization."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class LayerNormLSTM(OneStack):
    """An LSTM with layer normalization (Ba et al. 2016)."""

    layer: Literal["layer_norm_lstm"] = Field(default="layer_norm_lstm", description=LAYER)
