"""Keys of FastGRNN."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class FastGRNN(OneStack):
    """A gated network with one matrix for gate and candidate (Kusupati et al. 2018)."""

    layer: Literal["fastgrnn"] = Field(default="fastgrnn", description=LAYER)
