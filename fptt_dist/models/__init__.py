"""What is trained: modules `(x, state) → (y, state)`."""

from fptt_dist.models.awd_lstm import AwdLstm
from fptt_dist.models.carried import Carried, again, hidden_of, penalty_of
from fptt_dist.models.cells import AntisymmetricRNN
from fptt_dist.models.network import Network
from fptt_dist.models.own_cell import CellError, load_class, make_cell
from fptt_dist.models.recurrent import CellName, chrono_initialisation, recurrent_layer
from fptt_dist.models.saved import load_network, save_network
from fptt_dist.models.unroll import Stepped, compile_steps, unroll

__all__ = [
    "AntisymmetricRNN",
    "AwdLstm",
    "Carried",
    "CellError",
    "CellName",
    "Network",
    "Stepped",
    "again",
    "chrono_initialisation",
    "compile_steps",
    "hidden_of",
    "load_class",
    "load_network",
    "make_cell",
    "penalty_of",
    "recurrent_layer",
    "save_network",
    "unroll",
]
