"""The keys of a network: of every stack of layers, of a layer of the user's, of AWD-LSTM. `cells` has each layer's."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.options import option_conflicts
from fptt_dist.config.schema.pretrained import Pretrained
from fptt_dist.config.schema.section import Conflict, refuse
from fptt_dist.config.schema.user_class import ANY, GIVEN, ClassPath, NetworkClass, UserClass
from fptt_dist.config.values import show

# More is a slip of the keyboard, which would build for hours or ask for memory that no machine has.
MOST_UNITS, MOST_LAYERS = 2**20, 1000
_Hidden = Annotated[int, Field(ge=1, le=MOST_UNITS, description="units of a layer")]
_Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS, description="recurrent layers on top of each other")]
_Dropout = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="probability of dropping a unit between layers; for a text, also of the embedding and of the "
        "output layer's input",
    ),
]
_Embedding = Annotated[
    int | None, Field(ge=1, description="size of the embedding of a word or character of a text, null = model.hidden")
]
_LogitDropout = Annotated[float, Field(ge=0, lt=1, description="probability of dropping an output, in training")]
_Probability = Annotated[float, Field(ge=0, lt=1)]
LAYER = "the recurrent layer"
OPTIONS = "further keyword arguments of the class: plain values"
GIVEN_BY_TASK = "the class is given the task's: leave it out"


class OneStack(Pretrained):
    """Keys of every stack of layers of one kind."""

    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0
    embedding: _Embedding = None
    output_dropout: _LogitDropout = 0.0

    def layer_arguments(self, length: int) -> dict[str, Any]:
        """The arguments of the layer's class that not every stack has, for sequences of `length` steps."""
        return self.model_dump(exclude={"layer", *OneStack.model_fields, *ChronoStack.model_fields})


class ChronoStack(OneStack):
    """Keys of a stack of layers whose gates know chrono initialization."""

    init: Literal["default", "chrono"] = Field(
        default="default", description="chrono: gate biases for the sequence's length (Tallec & Ollivier 2018)"
    )


class UserLayer(Pretrained):
    """A network of a layer of your own: a class in a file (`docs/own-cell.md`)."""

    layer: ClassPath = Field(default=ANY, description=LAYER)
    hidden: _Hidden = 128
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="for a text, probability of dropping a unit before and after the layer"
    )
    embedding: _Embedding = None
    output_dropout: _LogitDropout = 0.0
    options: dict[str, Any] = Field(default={}, description=OPTIONS)

    @model_validator(mode="after")
    def _options_are_keyword_arguments(self) -> Self:
        """Refuse names that no argument can have, those given anyway, and values that no file could hold."""
        taken = {
            "inputs": "the class is given the features of a step: leave it out",
            "hidden": f"the class is given model.hidden: type model.hidden={show(self.options.get('hidden'))}",
        }
        refuse([*option_conflicts("model", self.options, taken)])
        return self

    @property
    def user_class(self) -> UserClass:
        """The layer's class."""
        return UserClass.of("model.layer", self.layer)


class WholeNetwork(Pretrained):
    """A whole network of your own: a class in a file (`docs/own-network.md`), or an object that `fit` was given."""

    network: NetworkClass = Field(
        description="the whole network, in place of model.layer: PATH.py:CLASS of an nn.Module, made with the task's "
        "inputs and outputs"
    )
    options: dict[str, Any] = Field(default={}, description=OPTIONS)

    @model_validator(mode="after")
    def _options_are_keyword_arguments(self) -> Self:
        """Refuse names that no argument can have, those given anyway, and values that no file could hold."""
        conflicts = [*option_conflicts("model", self.options, dict.fromkeys(("inputs", "outputs"), GIVEN_BY_TASK))]
        if self.options and self.user_class is None:
            text = f"model.options has no effect on model.network={self.network}, an object: leave it out"
            conflicts.append(Conflict(text, ("model.options", "model.network")))
        refuse(conflicts)
        return self

    @property
    def user_class(self) -> UserClass | None:
        """The network's class; None of an object that `fit` was given."""
        return None if self.network.startswith(GIVEN) else UserClass.of("model.network", self.network)


class AwdLSTM(Pretrained):
    """The regularized language model of Merity et al. (2018), with a mixture of softmaxes (Yang et al. 2018)."""

    layer: Literal["awd_lstm"] = Field(default="awd_lstm", description=LAYER)
    embedding: int = Field(default=400, ge=1, description="size of the embedding of a word or character")
    hidden: _Hidden = 1150
    last_hidden: int | None = Field(default=None, ge=1, description="units of the last layer, null = model.embedding")
    layers: _Layers = 3
    num_experts: int = Field(default=1, ge=1, description="softmaxes that are mixed")
    tie_weights: bool = Field(default=True, description="whether the output layer shares the embedding's weights")
    weight_drop: _Probability = Field(default=0.5, description="probability of dropping a recurrent weight")
    dropout_embedding: _Probability = Field(default=0.1, description="probability of dropping a word everywhere")
    dropout_input: _Probability = Field(default=0.4, description="probability of dropping a unit of the embedding")
    dropout_hidden: _Probability = Field(default=0.25, description="probability of dropping a unit between layers")
    dropout_output: _Probability = Field(default=0.4, description="probability of dropping a unit of the last layer")
    dropout_latent: _Probability = Field(
        default=0.0, description="the same for the softmaxes' input, if there are several"
    )
    dropout_mask_scope: Literal["sequence", "window"] = Field(
        default="sequence", description="whether the dropout masks are drawn once per sequence, or once per window"
    )
    activation_penalty: float = Field(default=2.0, ge=0, description="factor of the last layer's mean square (AR)")
    temporal_penalty: float = Field(default=1.0, ge=0, description="factor of its change's mean square (TAR)")

    @model_validator(mode="after")
    def _tied_sizes_agree(self) -> Self:
        """Refuse an output layer tied to an embedding of another size."""
        last = self.last_hidden
        if self.tie_weights and self.num_experts == 1 and last is not None and last != self.embedding:
            text = (
                f"model.tie_weights=true needs as many units in the last layer as the embedding has numbers, not "
                f"model.last_hidden={last} with model.embedding={self.embedding}: type model.last_hidden=null, or "
                "model.tie_weights=false"
            )
            refuse([Conflict(text, ("model.tie_weights", "model.last_hidden", "model.embedding"))])
        return self
