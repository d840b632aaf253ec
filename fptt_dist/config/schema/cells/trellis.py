"""Keys of the trellis network."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, MOST_LAYERS, OneStack


class TrellisNet(OneStack):
    """A temporal convolution with the gates of an LSTM, the same weights in every layer (Bai et al. 2019)."""

    layer: Literal["trellis"] = Field(default="trellis", description=LAYER)
    layers: int = Field(
        default=8, ge=1, le=MOST_LAYERS, description="convolutions on top of each other, all with the same weights"
    )
