"""FPTT's update, windows, window losses and schedules; independent of process groups, files and settings."""

from fptt_dist.algorithm.consensus_term import ConsensusTerm
from fptt_dist.algorithm.fptt import FPTT
from fptt_dist.algorithm.losses import RegressionLoss, SequenceLoss, TerminalLoss, WindowLoss
from fptt_dist.algorithm.schemes import SCHEMES, TrainingScheme
from fptt_dist.algorithm.windows import Window, detach, sequence_windows, window_slices

__all__ = [
    "FPTT",
    "SCHEMES",
    "ConsensusTerm",
    "RegressionLoss",
    "SequenceLoss",
    "TerminalLoss",
    "TrainingScheme",
    "Window",
    "WindowLoss",
    "detach",
    "sequence_windows",
    "window_slices",
]
