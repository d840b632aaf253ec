"""Keys of the LSTM."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, ChronoStack


class LSTM(ChronoStack):
    """A network of long short-term memory cells."""

    layer: Literal["lstm"] = Field(default="lstm", description=LAYER)
