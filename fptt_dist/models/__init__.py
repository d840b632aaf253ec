"""What is trained: modules `(x, state) → (y, state)`."""

from fptt_dist.models.network import Network
from fptt_dist.models.recurrent import CellName, chrono_initialisation, recurrent_layer
from fptt_dist.models.saved import load_network, save_network

__all__ = ["CellName", "Network", "chrono_initialisation", "load_network", "recurrent_layer", "save_network"]
