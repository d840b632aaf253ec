"""The recurrent networks a configuration can name."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.paths import LocalPath
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


class OneStack(Section):
    """What a stack of layers of one kind has."""

    hidden: _Hidden = 128
    layers: _Layers = 1
    dropout: _Dropout = 0.0
    embedding: _Embedding = None
    logit_dropout: _LogitDropout = 0.0


class LSTM(OneStack):
    """A network of long short-term memory cells."""

    cell: Literal["lstm"] = Field(default="lstm", description=_CELL)
    initialisation: _Initialisation = "default"


class GRU(OneStack):
    """A network of gated recurrent units."""

    cell: Literal["gru"] = Field(default="gru", description=_CELL)
    initialisation: _Initialisation = "default"


class TanhRNN(OneStack):
    """A plain recurrent network with tanh units."""

    cell: Literal["rnn"] = Field(default="rnn", description=_CELL)


class Antisymmetric(OneStack):
    """A network whose transition is a small step along a stable differential equation (Chang et al. 2019)."""

    cell: Literal["antisymmetric"] = Field(default="antisymmetric", description=_CELL)
    hidden: int = Field(default=128, ge=2, description="units of a layer")
    gated: bool = Field(default=True, description="whether an input gate scales each step")
    diffusion: float = Field(default=0.01, ge=0, description="strength of the damping")
    step_size: float = Field(default=0.1, gt=0, description="length of a step along the differential equation")


class FastGRNN(OneStack):
    """A gated network with one matrix for gate and candidate (Kusupati et al. 2018)."""

    cell: Literal["fastgrnn"] = Field(default="fastgrnn", description=_CELL)


class IncrementalRNN(OneStack):
    """A network that moves towards the equilibrium of a differential equation at each step (Kag et al. 2020)."""

    cell: Literal["incremental"] = Field(default="incremental", description=_CELL)
    iterations: int = Field(default=5, ge=1, description="small steps towards the equilibrium at each step")


class IndRNN(OneStack):
    """A network whose units see their own past alone (Li et al. 2018)."""

    cell: Literal["indrnn"] = Field(default="indrnn", description=_CELL)


class OrthogonalRNN(OneStack):
    """A network with an orthogonal recurrent matrix (Lezcano-Casado & Martínez-Rubio 2019)."""

    cell: Literal["orthogonal"] = Field(default="orthogonal", description=_CELL)
    hidden: int = Field(default=128, ge=2, description="units of a layer")


class TrellisNet(OneStack):
    """A temporal convolution with the gates of an LSTM, the same weights in every layer (Bai et al. 2019)."""

    cell: Literal["trellis"] = Field(default="trellis", description=_CELL)
    layers: int = Field(default=8, ge=1, description="convolutions on top of each other, all with the same weights")


class ReconstructingLSTM(OneStack):
    """An LSTM that also learns to reconstruct its inputs from its state (r-LSTM, Trinh et al. 2018)."""

    cell: Literal["rlstm"] = Field(default="rlstm", description=_CELL)
    reconstruction: float = Field(default=1.0, ge=0, description="factor of the reconstruction's mean square error")
    reconstruction_steps: int = Field(default=16, ge=1, description="inputs that are reconstructed from a state")


class URLSTM(OneStack):
    """An LSTM with uniform gate initialisation and refine gates (Gu et al. 2020)."""

    cell: Literal["ur_lstm"] = Field(default="ur_lstm", description=_CELL)
    hidden: int = Field(default=128, ge=2, description="units of a layer")


class LayerNormLSTM(OneStack):
    """An LSTM with layer normalisation (Ba et al. 2016)."""

    cell: Literal["layer_norm_lstm"] = Field(default="layer_norm_lstm", description=_CELL)


class LEM(OneStack):
    """Long expressive memory: two differential equations with time scales of their own (Rusch et al. 2022)."""

    cell: Literal["lem"] = Field(default="lem", description=_CELL)
    step_size: float = Field(default=1.0, gt=0, description="longest step along the differential equations")


class CoRNN(OneStack):
    """Coupled, damped and driven oscillators (Rusch & Mishra 2021)."""

    cell: Literal["cornn"] = Field(default="cornn", description=_CELL)
    step_size: float = Field(default=0.042, gt=0, description="length of a step along the differential equation")
    frequency: float = Field(default=2.7, gt=0, description="factor of an oscillator's place in its acceleration")
    damping: float = Field(default=4.7, ge=0, description="factor of its velocity")


class MinGRU(OneStack):
    """A GRU whose gate does not see the state, so that a window is one parallel scan (Feng et al. 2024)."""

    cell: Literal["mingru"] = Field(default="mingru", description=_CELL)


class MinLSTM(OneStack):
    """An LSTM whose gates do not see the state, so that a window is one parallel scan (Feng et al. 2024)."""

    cell: Literal["minlstm"] = Field(default="minlstm", description=_CELL)


class LRU(OneStack):
    """Linear recurrent units: complex, diagonal, stable (Orvieto et al. 2023)."""

    cell: Literal["lru"] = Field(default="lru", description=_CELL)
    smallest_radius: float = Field(default=0.9, ge=0, lt=1, description="smallest eigenvalue that is drawn, in modulus")
    largest_radius: float = Field(default=0.999, gt=0, lt=1, description="largest eigenvalue that is drawn, in modulus")

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        """Refuse a ring turned inside out."""
        if self.smallest_radius >= self.largest_radius:
            text = (
                f"model.smallest_radius={self.smallest_radius} is not below model.largest_radius="
                f"{self.largest_radius}: type a model.smallest_radius below it, or a larger model.largest_radius"
            )
            refuse([Conflict(text, ("model.smallest_radius", "model.largest_radius"))])
        return self


_READOUT = (
    "what of the last layer is read. membrane: the neurons' membranes; trace: their spikes, integrated with a leak "
    "that is learnt unit by unit; rate: the spikes' mean since the sequence began"
)
_Adaptation = Annotated[float, Field(ge=0, description="how far the threshold rises at most")]


class _Spiking(OneStack):
    """What spiking cells have."""

    readout: Literal["membrane", "trace", "rate"] = Field(default="trace", description=_READOUT)
    threshold: float = Field(default=0.1, ge=0, description="above which a membrane spikes")


class LIF(_Spiking):
    """Leaky integrate-and-fire neurons with recurrent connections."""

    cell: Literal["lif"] = Field(default="lif", description=_CELL)


class ALIF(_Spiking):
    """Leaky integrate-and-fire neurons whose threshold rises with each spike (Bellec et al. 2018)."""

    cell: Literal["alif"] = Field(default="alif", description=_CELL)
    adaptation: _Adaptation = 1.8


class LTC(_Spiking):
    """Spiking neurons whose input sets how fast membrane and threshold forget (Yin et al. 2023)."""

    cell: Literal["ltc"] = Field(default="ltc", description=_CELL)
    readout: Literal["membrane", "trace", "rate"] = Field(default="membrane", description=_READOUT)
    adaptation: _Adaptation = 1.8


class OwnCell(Section):
    """A network of a cell of your own: a class in a file (`docs/own-cell.md`)."""

    cell: LocalPath = Field(default="PATH.py:CLASS", pattern=r"^.+\.py:[A-Za-z_]\w*$", description=_CELL)
    hidden: _Hidden = 128
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="of a text, probability of dropping a unit before and after the cell"
    )
    embedding: _Embedding = None
    logit_dropout: _LogitDropout = 0.0

    @property
    def file(self) -> Path:
        """Where the class is."""
        return Path(self.cell.rpartition(":")[0])

    @property
    def name(self) -> str:
        """The class's."""
        return self.cell.rpartition(":")[2]


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


Model = Annotated[
    LSTM
    | GRU
    | TanhRNN
    | Antisymmetric
    | FastGRNN
    | IncrementalRNN
    | IndRNN
    | OrthogonalRNN
    | TrellisNet
    | ReconstructingLSTM
    | URLSTM
    | LayerNormLSTM
    | LEM
    | CoRNN
    | MinGRU
    | MinLSTM
    | LRU
    | LIF
    | ALIF
    | LTC
    | AwdLSTM
    | OwnCell,
    Variants("cell"),
]
