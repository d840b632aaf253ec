"""Keys of the independently recurrent network."""

from typing import Any, Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class IndRNN(OneStack):
    """A network whose units see their own past alone (Li et al. 2018)."""

    layer: Literal["indrnn"] = Field(default="indrnn", description=LAYER)

    def layer_arguments(self, length: int) -> dict[str, Any]:
        """See `OneStack`; the recurrent weights are bounded by the sequence's length."""
        return {**super().layer_arguments(length), "length": length}
