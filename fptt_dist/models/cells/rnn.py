"""torch's plain recurrent network with tanh units (Elman 1990, "Finding structure in time")."""

from torch.nn import RNN as TanhRNN

__all__ = ["TanhRNN"]
