"""Keys of the coupled oscillators."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class CoRNN(OneStack):
    """Coupled, damped and driven oscillators (Rusch & Mishra 2021)."""

    layer: Literal["cornn"] = Field(default="cornn", description=LAYER)
    step_size: float = Field(default=0.042, gt=0, description="length of a step along the differential equation")
    frequency: float = Field(default=2.7, gt=0, description="factor of an oscillator's place in its acceleration")
    damping: float = Field(default=4.7, ge=0, description="factor of its velocity")
