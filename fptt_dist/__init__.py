"""Train recurrent networks on long sequences with forward propagation through time (FPTT)."""

from typing import TYPE_CHECKING, Any

from fptt_dist.algorithm import FPTT, window_slices

if TYPE_CHECKING:
    from fptt_dist.training.run import train

__version__ = "0.1.0"
__all__ = ["FPTT", "__version__", "train", "window_slices"]


def __getattr__(name: str) -> Any:
    # The framework around the algorithm is imported when it is asked for: `FPTT` alone stays quick to import.
    if name == "train":
        from fptt_dist.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
