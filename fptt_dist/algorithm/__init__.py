"""FPTT's update, windows, window losses and schedules; independent of process groups, files and settings."""

from fptt_dist.algorithm.consensus_term import ConsensusTerm
from fptt_dist.algorithm.fptt import FPTT
from fptt_dist.algorithm.losses import (
    MultiLabelLoss,
    RegressionLoss,
    SequenceLoss,
    StepRegressionLoss,
    TerminalLoss,
    WindowLoss,
)
from fptt_dist.algorithm.schemes import SCHEMES, TrainingScheme
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.algorithm.windows import Window, detach, sequence_windows, window_slices

__all__ = [
    "FPTT",
    "SCHEMES",
    "ConsensusTerm",
    "MultiLabelLoss",
    "RegressionLoss",
    "SequenceLoss",
    "StepRegressionLoss",
    "TerminalLoss",
    "TrainingScheme",
    "UniformEstimate",
    "Window",
    "WindowLoss",
    "detach",
    "sequence_windows",
    "window_slices",
]
