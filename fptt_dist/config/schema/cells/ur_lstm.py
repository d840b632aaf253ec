"""Keys of the UR-LSTM."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, MOST_UNITS, OneStack


class URLSTM(OneStack):
    """An LSTM with uniform gate initialization and refine gates (Gu et al. 2020)."""

    layer: Literal["ur_lstm"] = Field(default="ur_lstm", description=LAYER)
    hidden: int = Field(default=128, ge=2, le=MOST_UNITS, description="units of a layer")
