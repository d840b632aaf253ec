"""What is trained: modules `(x, state) → (y, state)`."""

from fptt_dist.models.network import Network
from fptt_dist.models.recurrent import CellName, chrono_initialisation, recurrent_layer

__all__ = ["CellName", "Network", "chrono_initialisation", "recurrent_layer"]
