"""torch's GRU (Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder")."""

from torch.nn import GRU

__all__ = ["GRU"]
