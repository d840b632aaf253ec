"""Keys of the orthogonal RNN."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, MOST_UNITS, OneStack


class OrthogonalRNN(OneStack):
    """A network with an orthogonal recurrent matrix (Lezcano-Casado & Martínez-Rubio 2019)."""

    layer: Literal["orthogonal"] = Field(default="orthogonal", description=LAYER)
    hidden: int = Field(default=128, ge=2, le=MOST_UNITS, description="units of a layer")
