"""What is computed: FPTT's update, windows, instantaneous losses and schedules. Knows no process, file or setting."""

from fptt_dist.algorithm.anchor import Anchor
from fptt_dist.algorithm.fptt import FPTT
from fptt_dist.algorithm.losses import InstantaneousLoss, RegressionLoss, SequenceLoss, TerminalLoss
from fptt_dist.algorithm.procedures import PROCEDURES, Procedure
from fptt_dist.algorithm.windows import Window, detach, sequence_windows, window_slices

__all__ = [
    "FPTT",
    "PROCEDURES",
    "Anchor",
    "InstantaneousLoss",
    "Procedure",
    "RegressionLoss",
    "SequenceLoss",
    "TerminalLoss",
    "Window",
    "detach",
    "sequence_windows",
    "window_slices",
]
