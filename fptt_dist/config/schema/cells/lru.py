"""Keys of the linear recurrent unit."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.models import LAYER, OneStack
from fptt_dist.config.schema.section import Conflict, refuse


class LRU(OneStack):
    """Linear recurrent units: complex, diagonal, stable (Orvieto et al. 2023)."""

    layer: Literal["lru"] = Field(default="lru", description=LAYER)
    smallest_radius: float = Field(default=0.9, ge=0, lt=1, description="smallest eigenvalue that is drawn, in modulus")
    largest_radius: float = Field(default=0.999, gt=0, lt=1, description="largest eigenvalue that is drawn, in modulus")

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        """Refuse radii that are not in order."""
        if self.smallest_radius >= self.largest_radius:
            text = (
                f"model.smallest_radius={self.smallest_radius} is not below model.largest_radius="
                f"{self.largest_radius}: type a model.smallest_radius below it, or a larger model.largest_radius"
            )
            refuse([Conflict(text, ("model.smallest_radius", "model.largest_radius"))])
        return self
