"""The recurrent networks a configuration can name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.section import Conflict, Section, Variants, refuse

_Hidden = Annotated[int, Field(ge=1, description="units of a layer")]
_Layers = Annotated[int, Field(ge=1, description="recurrent layers on top of each other")]
_Dropout = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="probability of dropping a unit between layers; of a text also of the embedding and of what the "
        "read-out reads",
    ),
]
_Embedding = Annotated[
    int | None, Field(ge=1, description="numbers that stand for a word or character of a text, null = model.hidden")
]
_LogitDropout = Annotated[float, Field(ge=0, lt=1, description="probability of dropping an output, in training")]
_Initialisation = Annotated[
    Literal["default", "chrono"],
    Field(description="chrono: gate biases for the sequence's length (Tallec & Ollivier 2018)"),
]
_Probability = Annotated[float, Field(ge=0, lt=1)]
_CELL = "the recurrent cell"


class _OneStack(Section):
    """What a stack of layers of one kind has."""

    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0
    embedding: _Embedding = None
    logit_dropout: _LogitDropout = 0.0


class LSTM(_OneStack):
    """A network of long short-term memory cells."""

    cell: Literal["lstm"] = Field(default="lstm", description=_CELL)
    initialisation: _Initialisation = "default"


class GRU(_OneStack):
    """A network of gated recurrent units."""

    cell: Literal["gru"] = Field(default="gru", description=_CELL)
    initialisation: _Initialisation = "default"


class TanhRNN(_OneStack):
    """A plain recurrent network with tanh units."""

    cell: Literal["rnn"] = Field(default="rnn", description=_CELL)


class Antisymmetric(_OneStack):
    """A network whose transition is a small step along a stable differential equation (Chang et al. 2019)."""

    cell: Literal["antisymmetric"] = Field(default="antisymmetric", description=_CELL)
    hidden: int = Field(default=128, ge=2, description="units of a layer")
    gated: bool = Field(default=True, description="whether an input gate scales each step")
    diffusion: float = Field(default=0.01, ge=0, description="strength of the damping")
    step_size: float = Field(default=0.1, gt=0, description="length of a step along the differential equation")


class AwdLSTM(Section):
    """The regularised language model of Merity et al. (2018), with a mixture of softmaxes (Yang et al. 2018)."""

    cell: Literal["awd_lstm"] = Field(default="awd_lstm", description=_CELL)
    embedding: int = Field(default=400, ge=1, description="numbers that stand for a word or character")
    hidden: _Hidden = 1150
    last_hidden: int | None = Field(default=None, ge=1, description="units of the last layer, null = model.embedding")
    layers: _Layers = 3
    experts: int = Field(default=1, ge=1, description="softmaxes that are mixed")
    tied: bool = Field(default=True, description="whether the read-out's weights are the embedding's")
    weight_drop: _Probability = Field(default=0.5, description="probability of dropping a recurrent weight")
    dropout_embedding: _Probability = Field(default=0.1, description="probability of dropping a word everywhere")
    dropout_input: _Probability = Field(default=0.4, description="probability of dropping a unit of the embedding")
    dropout_hidden: _Probability = Field(default=0.25, description="probability of dropping a unit between layers")
    dropout_output: _Probability = Field(default=0.4, description="probability of dropping a unit of the last layer")
    dropout_latent: _Probability = Field(default=0.0, description="the same of what the softmaxes read, with experts")
    masks: Literal["sequence", "window"] = Field(
        default="sequence", description="whether what is dropped is drawn once a sequence, or once a window"
    )
    activation_penalty: float = Field(default=2.0, ge=0, description="factor of the last layer's mean square (AR)")
    temporal_penalty: float = Field(default=1.0, ge=0, description="factor of its change's mean square (TAR)")

    @model_validator(mode="after")
    def _tied_sizes_agree(self) -> Self:
        """Refuse a read-out tied to an embedding of another size."""
        last = self.last_hidden
        if self.tied and self.experts == 1 and last is not None and last != self.embedding:
            text = (
                f"model.tied=true needs as many units in the last layer as the embedding has numbers, not "
                f"model.last_hidden={last} with model.embedding={self.embedding}: type model.last_hidden=null, or "
                "model.tied=false"
            )
            refuse([Conflict(text, ("model.tied", "model.last_hidden", "model.embedding"))])
        return self


Model = Annotated[LSTM | GRU | TanhRNN | Antisymmetric | AwdLSTM, Variants("cell")]
