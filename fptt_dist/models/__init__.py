"""Models: modules `(x, state) → (y, state)`."""

from fptt_dist.models.awd_lstm import AwdLstm
from fptt_dist.models.network import Network
from fptt_dist.models.recurrent import chrono_init, recurrent_layer
from fptt_dist.models.serialization import load_network, save_network
from fptt_dist.models.unroll import Stepped, compile_steps, unroll
from fptt_dist.models.user_module import Sizes, check_module, make_layer, make_network
from fptt_dist.models.user_network import UserNetwork
from fptt_dist.models.window_state import WindowState, hidden_of, penalty_of, replay_state

__all__ = [
    "AwdLstm",
    "Network",
    "Sizes",
    "Stepped",
    "UserNetwork",
    "WindowState",
    "check_module",
    "chrono_init",
    "compile_steps",
    "hidden_of",
    "load_network",
    "make_layer",
    "make_network",
    "penalty_of",
    "recurrent_layer",
    "replay_state",
    "save_network",
    "unroll",
]
