"""Train recurrent networks on long sequences with forward propagation through time (FPTT)."""

from typing import TYPE_CHECKING

from fptt_dist.lazy import lazily
from fptt_dist.version import __version__

__all__ = ["FPTT", "__version__", "train", "window_slices"]

if TYPE_CHECKING:
    from fptt_dist.algorithm import FPTT, window_slices
    from fptt_dist.training.run import train
else:
    # The command starts without torch, and FPTT without the framework around it.
    __getattr__, __dir__ = lazily(
        __name__, {"FPTT": "algorithm", "train": "training.run", "window_slices": "algorithm"}
    )
