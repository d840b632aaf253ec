"""Keys of the leaky integrate-and-fire neurons."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.cells.spikes import Adaptation, Spiking
from fptt_dist.config.schema.models import LAYER


class LIF(Spiking):
    """Leaky integrate-and-fire neurons with recurrent connections."""

    layer: Literal["lif"] = Field(default="lif", description=LAYER)


class ALIF(Spiking):
    """Leaky integrate-and-fire neurons whose threshold rises with each spike (Bellec et al. 2018)."""

    layer: Literal["alif"] = Field(default="alif", description=LAYER)
    adaptation: Adaptation = 1.8
