"""Keys of the spiking neurons with liquid time constants."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.cells.spikes import READOUT, Adaptation, Readout, Spiking
from fptt_dist.config.schema.models import LAYER


class LTC(Spiking):
    """Spiking neurons whose input sets how fast membrane and threshold forget (Yin et al. 2023)."""

    layer: Literal["ltc"] = Field(default="ltc", description=LAYER)
    readout: Readout = Field(default="membrane", description=READOUT)
    adaptation: Adaptation = 1.8
