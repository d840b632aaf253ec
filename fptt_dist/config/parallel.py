"""How the work is split over processes: one section a strategy."""

from typing import Annotated, Literal

from pydantic import Field

from fptt_dist.config.paths import LocalPath
from fptt_dist.config.section import Section, Variants


class _Processes(Section):
    """What every strategy has."""

    launcher: Literal["auto", "torchrun", "slurm", "ray", "single"] = Field(
        default="auto", description="whose environment variables tell a process its place; auto: the first one found"
    )
    timeout: float = Field(
        default=120.0, gt=0, description="seconds that a process waits for the others before it gives up"
    )


class AutoParallel(_Processes):
    """One process, or consensus between several with its defaults, as the program was started."""

    strategy: Literal["auto"] = Field(default="auto", description="how the work is split over processes")


class SingleProcess(_Processes):
    """One process."""

    strategy: Literal["single"] = Field(default="single", description="how the work is split over processes")


class GradientParallel(_Processes):
    """Each process takes a share of every batch; the gradients are averaged at every update."""

    strategy: Literal["gradient"] = Field(default="gradient", description="how the work is split over processes")
    reduce: Literal["flat", "ddp"] = Field(
        default="flat", description="one all-reduce of a flat buffer, or torch's DistributedDataParallel"
    )
    hook: Literal["none", "bf16", "fp16", "powersgd"] = Field(
        default="none", description="how ddp compresses gradients"
    )


class ConsensusParallel(_Processes):
    """Each process trains on its share of every batch with its own weights; every few updates they agree."""

    strategy: Literal["consensus"] = Field(default="consensus", description="how the work is split over processes")
    every: int | None = Field(
        default=None, ge=1, description="updates between two agreements H, null = once per sequence (H = K)"
    )
    dual: Literal["shared", "worker"] = Field(
        default="shared",
        description="shared: center and dual are averaged; worker: each has a slow dual of its own, for unlike shards",
    )
    weights: Literal["mean", "center", "kept"] = Field(
        default="mean", description="dual=shared: weights <- their mean, or <- the agreed center, or left as they are"
    )
    order: Literal["damped", "admm"] = Field(
        default="damped", description="dual=worker: which of the duals and the center moves first, and how far"
    )
    damping: float = Field(default=0.25, gt=0, description="dual=worker: step of the slow dual, rho")
    scale: Literal["model", "tensor"] = Field(
        default="model", description="dual=worker: one strength of the slow pull, or one a parameter tensor"
    )
    payload: Literal["fp32", "bf16"] = Field(
        default="fp32", description="what travels: the numbers, or their differences to the last agreement in bf16"
    )
    delay: int = Field(
        default=0, ge=0, description="dual=shared: updates done while an agreement travels, fewer than every"
    )
    start_after: int = Field(default=0, ge=0, description="updates with averaged gradients before the first agreement")
    stop_every: int = Field(
        default=500, ge=1, description="updates between votes on stopping, where agreements are rarer"
    )


class HierarchicalParallel(ConsensusParallel):
    """Gradients are averaged inside each machine, and the machines agree as in consensus."""

    strategy: Literal["hierarchical"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="hierarchical", description="how the work is split over processes"
    )
    inside: Literal["gradient", "fsdp"] = Field(
        default="gradient", description="inside a machine: each process holds the whole model, or a part of it (fsdp)"
    )


class FsdpParallel(_Processes):
    """Each process holds a part of weights, gradients, moments, center and dual (torch's FSDP2)."""

    strategy: Literal["fsdp"] = Field(default="fsdp", description="how the work is split over processes")
    offload: bool = Field(default=False, description="keep the parts in the host's memory; for GPUs")


class DeepspeedParallel(_Processes):
    """Each process holds a part of the optimizer's state, of gradients and of weights (DeepSpeed's ZeRO)."""

    strategy: Literal["deepspeed"] = Field(default="deepspeed", description="how the work is split over processes")
    stage: int = Field(
        default=2,
        ge=1,
        le=3,
        description="what is split: 1 = moments, center and dual, 2 = gradients too, 3 = weights too",
    )
    offload: bool = Field(default=False, description="keep the optimizer's parts in the host's memory; for GPUs")
    settings: LocalPath | None = Field(
        default=None, min_length=1, description="a DeepSpeed JSON file whose settings are added, null = none"
    )


Parallel = Annotated[
    AutoParallel
    | SingleProcess
    | GradientParallel
    | ConsensusParallel
    | HierarchicalParallel
    | FsdpParallel
    | DeepspeedParallel,
    Variants("strategy"),
]
