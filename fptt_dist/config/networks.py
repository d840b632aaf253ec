"""The recurrent networks a configuration can name."""

from typing import Annotated, Literal

from pydantic import Field

from fptt_dist.config.section import Section, Variants

_Hidden = Annotated[int, Field(ge=1, description="units of a layer")]
_Layers = Annotated[int, Field(ge=1, description="recurrent layers on top of each other")]
_Dropout = Annotated[float, Field(ge=0, lt=1, description="probability of dropping a unit between layers")]
_Initialisation = Annotated[
    Literal["default", "chrono"],
    Field(description="chrono: gate biases for the sequence's length (Tallec & Ollivier 2018)"),
]
_CELL = "the recurrent cell"


class LSTM(Section):
    """A network of long short-term memory cells."""

    cell: Literal["lstm"] = Field(default="lstm", description=_CELL)
    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0
    initialisation: _Initialisation = "default"


class GRU(Section):
    """A network of gated recurrent units."""

    cell: Literal["gru"] = Field(default="gru", description=_CELL)
    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0
    initialisation: _Initialisation = "default"


class TanhRNN(Section):
    """A plain recurrent network with tanh units."""

    cell: Literal["rnn"] = Field(default="rnn", description=_CELL)
    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0


Model = Annotated[LSTM | GRU | TanhRNN, Variants("cell")]
