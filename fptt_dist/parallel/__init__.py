"""Data-parallel training: who holds what, what is synchronized and when, and how it is sent."""

from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator
from fptt_dist.parallel.comm.environment import LaunchEnvironment, device_index, resolve_environment
from fptt_dist.parallel.comm.errors import LostWorkerError
from fptt_dist.parallel.comm.hierarchical import NodesCommunicator
from fptt_dist.parallel.comm.process_group import (
    communicator,
    new_gloo_group,
    node_groups,
    process_group,
    set_pg_timeouts,
    was_initialized,
)
from fptt_dist.parallel.engine import Engine
from fptt_dist.parallel.optimizer_view import Weights
from fptt_dist.parallel.placement.ddp import DdpReplicated
from fptt_dist.parallel.placement.deepspeed import DeepspeedZero
from fptt_dist.parallel.placement.fsdp import FullyShard
from fptt_dist.parallel.placement.replicated import Replicated
from fptt_dist.parallel.placement.shard import ParameterShard
from fptt_dist.parallel.sync.admm_dual import LocalDual
from fptt_dist.parallel.sync.averaged_dual import AveragedDual
from fptt_dist.parallel.sync.gradient import GradientSync
from fptt_dist.parallel.sync.periodic import Consensus
from fptt_dist.parallel.sync.sync import NoSync, SyncState

__all__ = [
    "AveragedDual",
    "Communicator",
    "Consensus",
    "DdpReplicated",
    "DeepspeedZero",
    "Engine",
    "FullyShard",
    "GradientSync",
    "GroupCommunicator",
    "LaunchEnvironment",
    "LocalDual",
    "LostWorkerError",
    "NoSync",
    "NodesCommunicator",
    "ParameterShard",
    "Replicated",
    "SyncState",
    "Weights",
    "communicator",
    "device_index",
    "new_gloo_group",
    "node_groups",
    "process_group",
    "resolve_environment",
    "set_pg_timeouts",
    "was_initialized",
]
