"""Train recurrent networks on long sequences with forward propagation through time (FPTT)."""

from typing import TYPE_CHECKING

from fptt_dist.lazy import lazily
from fptt_dist.version import __version__

__all__ = [
    "FPTT",
    "Batch",
    "Callback",
    "MultiLabelLoss",
    "RegressionLoss",
    "SequenceLoss",
    "StepRegressionLoss",
    "Task",
    "TerminalLoss",
    "UniformEstimate",
    "__version__",
    "fit",
    "load",
    "rank_slice",
    "window_slices",
]

if TYPE_CHECKING:
    from fptt_dist.algorithm import (
        FPTT,
        MultiLabelLoss,
        RegressionLoss,
        SequenceLoss,
        StepRegressionLoss,
        TerminalLoss,
        UniformEstimate,
        window_slices,
    )
    from fptt_dist.tasks import Batch, Task, rank_slice
    from fptt_dist.training.callbacks import Callback
    from fptt_dist.training.fit import fit
    from fptt_dist.training.saved_run import load
else:
    # The command starts without torch, and FPTT without the framework around it.
    __getattr__, __dir__ = lazily(
        __name__,
        dict.fromkeys(("FPTT", "UniformEstimate", "window_slices"), "algorithm")
        | dict.fromkeys(("MultiLabelLoss", "RegressionLoss", "SequenceLoss"), "algorithm")
        | dict.fromkeys(("StepRegressionLoss", "TerminalLoss"), "algorithm")
        | dict.fromkeys(("Batch", "Task", "rank_slice"), "tasks")
        | {"Callback": "training.callbacks", "fit": "training.fit", "load": "training.saved_run"},
    )
