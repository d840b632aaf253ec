"""The configuration of a run: its schema, its files, its overrides and its messages."""

from fptt_dist.config.describe import Key, describe, json_schema
from fptt_dist.config.diff import changes
from fptt_dist.config.dump import dump
from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.loader import load
from fptt_dist.config.loading.overrides import apply_overrides, parse_overrides
from fptt_dist.config.objects import missing_object, objects_of, require_objects
from fptt_dist.config.rules import Config
from fptt_dist.config.schema.cells.gru import GRU
from fptt_dist.config.schema.cells.indrnn import IndRNN
from fptt_dist.config.schema.cells.lstm import LSTM
from fptt_dist.config.schema.models import AwdLSTM, ChronoStack, OneStack, UserLayer, WholeNetwork
from fptt_dist.config.schema.optimizers import SGD, Adam, AdamW, NtAsgd, RMSprop
from fptt_dist.config.schema.parallel import (
    AutoParallel,
    ConsensusParallel,
    DataParallel,
    DeepspeedParallel,
    FsdpParallel,
    HierarchicalParallel,
    SingleProcess,
)
from fptt_dist.config.schema.pretrained import Pretrained
from fptt_dist.config.schema.root import (
    Checkpoint,
    Data,
    Evaluate,
    Fptt,
    Logging,
    Run,
    Train,
)
from fptt_dist.config.schema.schedules import (
    ConstantAlpha,
    ConstantLr,
    CosineAlpha,
    CosineLr,
    InverseLrAlpha,
    LinearAlpha,
    PlateauLr,
    StepLr,
)
from fptt_dist.config.schema.tasks import (
    AddingTask,
    ArraysTask,
    CopyingTask,
    GivenTask,
    LanguageTask,
    PixelsTask,
    UserTask,
)
from fptt_dist.config.schema.user_class import GIVEN, UserClass, short_name

__all__ = [
    "GIVEN",
    "GRU",
    "LSTM",
    "SGD",
    "Adam",
    "AdamW",
    "AddingTask",
    "ArraysTask",
    "AutoParallel",
    "AwdLSTM",
    "Checkpoint",
    "ChronoStack",
    "Config",
    "ConfigError",
    "ConsensusParallel",
    "ConstantAlpha",
    "ConstantLr",
    "CopyingTask",
    "CosineAlpha",
    "CosineLr",
    "Data",
    "DataParallel",
    "DeepspeedParallel",
    "Evaluate",
    "Fptt",
    "FsdpParallel",
    "GivenTask",
    "HierarchicalParallel",
    "IndRNN",
    "InverseLrAlpha",
    "Key",
    "LanguageTask",
    "LinearAlpha",
    "Logging",
    "NtAsgd",
    "OneStack",
    "PixelsTask",
    "PlateauLr",
    "Pretrained",
    "RMSprop",
    "Run",
    "SingleProcess",
    "StepLr",
    "Train",
    "UserClass",
    "UserLayer",
    "UserTask",
    "WholeNetwork",
    "apply_overrides",
    "changes",
    "describe",
    "dump",
    "json_schema",
    "load",
    "missing_object",
    "objects_of",
    "parse_overrides",
    "require_objects",
    "short_name",
]
