"""Which recurrent layers there are, one a file: `(x, state) → (y, state)`."""

from fptt_dist.models.cells.antisymmetric import AntisymmetricRNN
from fptt_dist.models.cells.cornn import CoRNN
from fptt_dist.models.cells.fast_grnn import FastGRNN
from fptt_dist.models.cells.incremental import IncrementalRNN
from fptt_dist.models.cells.indrnn import IndRNN
from fptt_dist.models.cells.layer_norm_lstm import LayerNormLSTM
from fptt_dist.models.cells.lem import LEM
from fptt_dist.models.cells.lru import LRU
from fptt_dist.models.cells.lstm import LSTM
from fptt_dist.models.cells.ltc import LTC
from fptt_dist.models.cells.min_rnn import MinGRU, MinLSTM
from fptt_dist.models.cells.orthogonal import OrthogonalRNN
from fptt_dist.models.cells.rlstm import ReconstructingLSTM
from fptt_dist.models.cells.spiking import ALIF, LIF
from fptt_dist.models.cells.trellis import TrellisNet
from fptt_dist.models.cells.ur_lstm import URLSTM

__all__ = [
    "ALIF",
    "LEM",
    "LIF",
    "LRU",
    "LSTM",
    "LTC",
    "URLSTM",
    "AntisymmetricRNN",
    "CoRNN",
    "FastGRNN",
    "IncrementalRNN",
    "IndRNN",
    "LayerNormLSTM",
    "MinGRU",
    "MinLSTM",
    "OrthogonalRNN",
    "ReconstructingLSTM",
    "TrellisNet",
]
