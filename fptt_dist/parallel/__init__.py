"""Who holds what and what travels: launch environment, collectives, one file a strategy."""

from fptt_dist.parallel.agreement import SharedDual
from fptt_dist.parallel.collectives import Communicator, GroupCommunicator
from fptt_dist.parallel.connection import beside, communicator, machines, process_group, tighten, was_connected
from fptt_dist.parallel.consensus import Consensus
from fptt_dist.parallel.ddp import DdpAveraging
from fptt_dist.parallel.deepspeed import DeepspeedZero
from fptt_dist.parallel.environment import LaunchEnvironment, device_index, resolve_environment
from fptt_dist.parallel.fsdp import FullyShard
from fptt_dist.parallel.gradient import GradientAveraging
from fptt_dist.parallel.hierarchical import MachinesCommunicator
from fptt_dist.parallel.lost import LostWorkerError
from fptt_dist.parallel.pieces import Piece
from fptt_dist.parallel.single import Single
from fptt_dist.parallel.strategy import Strategy, StrategyState, Weights
from fptt_dist.parallel.worker_dual import WorkerDual

__all__ = [
    "Communicator",
    "Consensus",
    "DdpAveraging",
    "DeepspeedZero",
    "FullyShard",
    "GradientAveraging",
    "GroupCommunicator",
    "LaunchEnvironment",
    "LostWorkerError",
    "MachinesCommunicator",
    "Piece",
    "SharedDual",
    "Single",
    "Strategy",
    "StrategyState",
    "Weights",
    "WorkerDual",
    "beside",
    "communicator",
    "device_index",
    "machines",
    "process_group",
    "resolve_environment",
    "tighten",
    "was_connected",
]
