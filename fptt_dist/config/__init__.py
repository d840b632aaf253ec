"""The configuration of a run: its schema, its files, its overrides and its messages."""

from fptt_dist.config.compare import changes
from fptt_dist.config.describe import Key, describe, json_schema
from fptt_dist.config.dump import dump
from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loader import load
from fptt_dist.config.networks import GRU, LSTM, AwdLSTM, IndRNN, OneStack, OwnCell
from fptt_dist.config.optimizers import SGD, Adam, AdamW, NtAsgd, RMSprop
from fptt_dist.config.overrides import apply_overrides, parse_overrides
from fptt_dist.config.parallel import (
    AutoParallel,
    ConsensusParallel,
    DeepspeedParallel,
    FsdpParallel,
    GradientParallel,
    HierarchicalParallel,
    SingleProcess,
)
from fptt_dist.config.schedules import (
    ConstantAlpha,
    ConstantLr,
    CosineAlpha,
    CosineLr,
    InverseLrAlpha,
    LinearAlpha,
    PlateauLr,
    StepLr,
)
from fptt_dist.config.schema import (
    Checkpoint,
    Config,
    Data,
    Evaluate,
    Fptt,
    Run,
    Telemetry,
    Train,
)
from fptt_dist.config.tasks import AddingTask, CopyingTask, LanguageTask, PixelsTask

__all__ = [
    "GRU",
    "LSTM",
    "SGD",
    "Adam",
    "AdamW",
    "AddingTask",
    "AutoParallel",
    "AwdLSTM",
    "Checkpoint",
    "Config",
    "ConfigError",
    "ConsensusParallel",
    "ConstantAlpha",
    "ConstantLr",
    "CopyingTask",
    "CosineAlpha",
    "CosineLr",
    "Data",
    "DeepspeedParallel",
    "Evaluate",
    "Fptt",
    "FsdpParallel",
    "GradientParallel",
    "HierarchicalParallel",
    "IndRNN",
    "InverseLrAlpha",
    "Key",
    "LanguageTask",
    "LinearAlpha",
    "NtAsgd",
    "OneStack",
    "OwnCell",
    "PixelsTask",
    "PlateauLr",
    "RMSprop",
    "Run",
    "SingleProcess",
    "StepLr",
    "Telemetry",
    "Train",
    "apply_overrides",
    "changes",
    "describe",
    "dump",
    "json_schema",
    "load",
    "parse_overrides",
]
