"""Common keys of the spiking layers."""

from typing import Annotated, Literal

from pydantic import Field

from fptt_dist.config.schema.models import OneStack

READOUT = (
    "output of the last layer. membrane: the neurons' membranes; trace: their spikes, integrated with a leak that is "
    "learned for each unit; rate: the spikes' mean since the sequence began"
)
Readout = Literal["membrane", "trace", "rate"]
Adaptation = Annotated[float, Field(ge=0, description="how far the threshold rises at most")]


class Spiking(OneStack):
    """Keys of every spiking layer."""

    readout: Readout = Field(default="trace", description=READOUT)
    threshold: float = Field(default=0.1, ge=0, description="above which a membrane spikes")
