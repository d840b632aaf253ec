"""Keys of the antisymmetric RNN."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, MOST_UNITS, OneStack


class AntisymmetricRNN(OneStack):
    """A network whose transition is a small step along a stable differential equation (Chang et al. 2019)."""

    layer: Literal["antisymmetric"] = Field(default="antisymmetric", description=LAYER)
    hidden: int = Field(default=128, ge=2, le=MOST_UNITS, description="units of a layer")
    gated: bool = Field(default=True, description="whether an input gate scales each step")
    diffusion: float = Field(default=0.01, ge=0, description="strength of the damping")
    step_size: float = Field(default=0.1, gt=0, description="length of a step along the differential equation")
