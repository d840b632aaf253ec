"""Parallel strategies: one section per strategy."""

from typing import Annotated, Literal

from pydantic import Field

from fptt_dist.config.schema.paths import LocalPath
from fptt_dist.config.schema.section import Section, Variants


class _Processes(Section):
    """Keys of every strategy."""

    launcher: Literal["auto", "torchrun", "slurm", "ray", "single"] = Field(
        default="auto", description="whose environment variables tell a worker its rank; auto: the first one found"
    )
    timeout_seconds: float = Field(
        default=120.0, gt=0, description="seconds that a worker waits for the others before it gives up"
    )


class AutoParallel(_Processes):
    """A single worker or, if the program was started on several, consensus with its defaults."""

    strategy: Literal["auto"] = Field(default="auto", description="how the work is split over workers")


class SingleProcess(_Processes):
    """A single worker."""

    strategy: Literal["single"] = Field(default="single", description="how the work is split over workers")


class DataParallel(_Processes):
    """Each worker takes a share of every batch; the gradients are averaged at every update."""

    strategy: Literal["data_parallel"] = Field(
        default="data_parallel", description="how the work is split over workers"
    )
    reduce: Literal["flat", "ddp"] = Field(
        default="flat", description="one all-reduce of a flat buffer, or torch's DistributedDataParallel"
    )
    comm_hook: Literal["none", "bf16", "fp16"] = Field(default="none", description="how ddp compresses gradients")


class ConsensusParallel(_Processes):
    """Each worker trains its own weights on its share of every batch; every few updates the workers synchronize."""

    strategy: Literal["consensus"] = Field(default="consensus", description="how the work is split over workers")
    sync_every: int | None = Field(
        default=None,
        ge=1,
        description="sync interval H: updates between two syncs, null = one sync per sequence (H = K)",
    )
    dual: Literal["averaged", "local"] = Field(
        default="averaged",
        description="averaged: center and dual are averaged; local: a slow dual per worker, for non-IID data",
    )
    weight_sync: Literal["average", "center"] = Field(
        default="average", description="dual=averaged: weights <- their mean, or <- the consensus center"
    )
    dual_update: Literal["damped", "admm"] = Field(
        default="damped", description="dual=local: which of the duals and the center moves first, and how far"
    )
    dual_step_size: float = Field(default=0.25, gt=0, description="dual=local: step of the slow dual, rho")
    sync_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="payload: the values in fp32, or their differences to the last sync in bf16"
    )
    sync_delay: int = Field(
        default=0, ge=0, description="dual=averaged: local updates that overlap a sync, fewer than sync_every"
    )
    warmup_updates: int = Field(default=0, ge=0, description="updates with averaged gradients before the first sync")
    control_interval: int = Field(
        default=500, ge=1, description="updates between votes on stopping, where syncs are rarer"
    )


class HierarchicalParallel(ConsensusParallel):
    """Gradients are averaged within each node, and the nodes synchronize as in consensus."""

    strategy: Literal["hierarchical"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="hierarchical", description="how the work is split over workers"
    )
    intra_node: Literal["data_parallel", "fsdp"] = Field(
        default="data_parallel",
        description="within a node: each worker holds the whole model, or a shard of it (fsdp)",
    )


class FsdpParallel(_Processes):
    """Each worker holds a shard of weights, gradients, optimizer state, center and dual (torch's FSDP2)."""

    strategy: Literal["fsdp"] = Field(default="fsdp", description="how the work is split over workers")
    offload: bool = Field(default=False, description="keep the shards in the host's memory; for GPUs")


class DeepspeedParallel(_Processes):
    """Each worker holds a shard of the optimizer state, of gradients and of weights (DeepSpeed's ZeRO)."""

    strategy: Literal["deepspeed"] = Field(default="deepspeed", description="how the work is split over workers")
    zero_stage: int = Field(
        default=2,
        ge=1,
        le=3,
        description="what is sharded: 1 = optimizer state, center and dual, 2 = gradients too, 3 = weights too",
    )
    offload: bool = Field(default=False, description="keep the optimizer's shards in the host's memory; for GPUs")
    deepspeed_config: LocalPath | None = Field(
        default=None, min_length=1, description="a DeepSpeed JSON file whose settings are added, null = none"
    )


Parallel = Annotated[
    AutoParallel
    | SingleProcess
    | DataParallel
    | ConsensusParallel
    | HierarchicalParallel
    | FsdpParallel
    | DeepspeedParallel,
    Variants("strategy"),
]
