"""Keys of the tanh-RNN."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class TanhRNN(OneStack):
    """A plain recurrent network with tanh units."""

    layer: Literal["rnn"] = Field(default="rnn", description=LAYER)
