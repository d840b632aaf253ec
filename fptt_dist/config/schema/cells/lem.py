"""Keys of long expressive memory."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class LEM(OneStack):
    """Long expressive memory: two differential equations with time scales of their own (Rusch et al. 2022)."""

    layer: Literal["lem"] = Field(default="lem", description=LAYER)
    step_size: float = Field(default=1.0, gt=0, description="longest step along the differential equations")
