"""The variants of `model`: a stack of one of the package's layers, AWD-LSTM, the user's layer or network."""

from typing import TYPE_CHECKING, Annotated, Union

from fptt_dist.config.schema.cells.gru import GRU
from fptt_dist.config.schema.cells.lstm import LSTM
from fptt_dist.config.schema.models import AwdLSTM, UserLayer, WholeNetwork
from fptt_dist.config.schema.section import Variants
from fptt_dist.layers import PLACES, class_of

if TYPE_CHECKING:  # no checker can follow the registry: these stand for all
    Model = LSTM | GRU | AwdLSTM | UserLayer | WholeNetwork
else:
    _STACKS = tuple(class_of(layer, "fptt_dist.config.schema.cells") for layer in PLACES)
    Model = Annotated[Union[(*_STACKS, AwdLSTM, UserLayer, WholeNetwork)], Variants("layer", instead="network")]
