"""Keys of the GRU."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, ChronoStack


class GRU(ChronoStack):
    """A network of gated recurrent units."""

    layer: Literal["gru"] = Field(default="gru", description=LAYER)
