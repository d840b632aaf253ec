"""Keys of the incremental RNN."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class IncrementalRNN(OneStack):
    """A network that moves towards the equilibrium of a differential equation at each step (Kag et al. 2020)."""

    layer: Literal["incremental"] = Field(default="incremental", description=LAYER)
    iterations: int = Field(default=5, ge=1, description="small steps towards the equilibrium at each step")
