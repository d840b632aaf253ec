"""The configuration of a run: its schema, its files, its overrides and its messages."""

from fptt_dist.config.compare import changes
from fptt_dist.config.describe import Key, describe, json_schema
from fptt_dist.config.dump import dump
from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loader import load
from fptt_dist.config.networks import GRU, LSTM, TanhRNN
from fptt_dist.config.optimizers import SGD, Adam, AdamW, RMSprop
from fptt_dist.config.overrides import apply_overrides, parse_overrides
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
    AddingTask,
    AutoParallel,
    Checkpoint,
    Config,
    Evaluate,
    Fptt,
    GradientParallel,
    Run,
    SingleProcess,
    Telemetry,
    Train,
)

__all__ = [
    "GRU",
    "LSTM",
    "SGD",
    "Adam",
    "AdamW",
    "AddingTask",
    "AutoParallel",
    "Checkpoint",
    "Config",
    "ConfigError",
    "ConstantAlpha",
    "ConstantLr",
    "CosineAlpha",
    "CosineLr",
    "Evaluate",
    "Fptt",
    "GradientParallel",
    "InverseLrAlpha",
    "Key",
    "LinearAlpha",
    "PlateauLr",
    "RMSprop",
    "Run",
    "SingleProcess",
    "StepLr",
    "TanhRNN",
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
