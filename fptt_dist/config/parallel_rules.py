"""The rules of the section `parallel` that tie it to itself and to the rest."""

from typing import TYPE_CHECKING

from fptt_dist.config.parallel import ConsensusParallel, DeepspeedParallel, GradientParallel, HierarchicalParallel
from fptt_dist.config.section import Conflict

if TYPE_CHECKING:
    from fptt_dist.config.schema import Config


def parallel_conflicts(config: "Config") -> list[Conflict]:
    """Everything in `config.parallel` that does not fit together, or not the algorithm."""
    match config.parallel:
        case GradientParallel() as gradient:
            return _hook(gradient)
        case ConsensusParallel() as consensus:
            once = config.windows_run if config.algorithm in ("fptt", "online") else 1  # updates a sequence
            every = consensus.every or once
            return [
                *_delay(consensus, every),
                *_choices_of_dual(consensus),
                *_algorithm(consensus, config),
                *_parts_of_a_machine(consensus),
            ]
        case DeepspeedParallel() as deepspeed:
            return [*_second_gradient(config), *_rounded_sums(deepspeed, config)]
        case _:
            return []


def _hook(gradient: GradientParallel) -> list[Conflict]:
    """Hooks are DistributedDataParallel's."""
    if gradient.hook == "none" or gradient.reduce == "ddp":
        return []
    text = (
        f"parallel.hook={gradient.hook} needs parallel.reduce=ddp, not parallel.reduce={gradient.reduce}: "
        "type parallel.reduce=ddp, or parallel.hook=none"
    )
    return [Conflict(text, ("parallel.hook", "parallel.reduce"))]


def _delay(consensus: ConsensusParallel, every: int) -> list[Conflict]:
    """A delayed agreement arrives before the next one starts, and moves what all workers share."""
    if consensus.delay == 0:
        return []
    conflicts = []
    if consensus.delay >= every:
        text = (
            f"parallel.delay={consensus.delay} must be less than the updates between agreements, {every} "
            f"(parallel.every{'' if consensus.every else '=null is the updates of a sequence'}): "
            f"type parallel.delay={every - 1}{' or less' if every > 1 else ''}, or a larger parallel.every"
        )
        conflicts.append(Conflict(text, ("parallel.delay", "parallel.every", "fptt.windows")))
    if consensus.dual == "worker":
        text = (
            "parallel.delay does not go with parallel.dual=worker, whose agreement restarts center and dual: "
            "type parallel.delay=0, or parallel.dual=shared"
        )
        conflicts.append(Conflict(text, ("parallel.delay", "parallel.dual")))
    return conflicts


def _choices_of_dual(consensus: ConsensusParallel) -> list[Conflict]:
    """Keys that only one of the two kinds of dual reads."""
    other = {"shared": ("order", "damping", "scale"), "worker": ("weights",)}[consensus.dual]
    needed = "worker" if consensus.dual == "shared" else "shared"
    conflicts = []
    for name in other:
        default = type(consensus).model_fields[name].default
        value = getattr(consensus, name)
        if value != default:
            text = (
                f"parallel.{name}={value} is only read with parallel.dual={needed}: "
                f"type parallel.dual={needed}, or parallel.{name}={default}"
            )
            conflicts.append(Conflict(text, (f"parallel.{name}", "parallel.dual")))
    if consensus.dual == "worker" and consensus.order == "admm" and consensus.payload == "bf16":
        text = (
            "parallel.payload=bf16 does not go with parallel.order=admm, whose duals would keep the rounding: "
            "type parallel.payload=fp32, or parallel.order=damped"
        )
        conflicts.append(Conflict(text, ("parallel.payload", "parallel.order")))
    return conflicts


def _algorithm(consensus: ConsensusParallel, config: "Config") -> list[Conflict]:
    """What needs a center that moves by FPTT's own recursion."""
    conflicts = []
    if consensus.weights == "center" and config.algorithm != "fptt":
        text = (
            f"parallel.weights=center needs a center, which algorithm={config.algorithm} has not: "
            "type parallel.weights=mean, or algorithm=fptt"
        )
        conflicts.append(Conflict(text, ("parallel.weights", "algorithm")))
    preconditioned = config.algorithm == "fptt" and config.fptt.metric == "preconditioned" and config.fptt.alpha > 0.0
    if consensus.weights == "kept" and preconditioned and config.schedule.name != "constant":
        # Each sync puts the workers' distance into W - W̄, which then does not shrink as the rate does that divides it.
        text = (
            "parallel.weights=kept does not go with fptt.metric=preconditioned and "
            f"schedule.name={config.schedule.name}, under which the regularizer's gradient may grow without limit: "
            "type parallel.weights=mean, fptt.metric=euclidean, or schedule.name=constant"
        )
        conflicts.append(Conflict(text, ("parallel.weights", "fptt.metric", "schedule.name")))
    if consensus.dual == "worker" and config.fptt.clip == "gradient" and config.train.max_norm is not None:
        text = (
            "parallel.dual=worker does not go with fptt.clip=gradient, which would bias what the workers agree on: "
            "type fptt.clip=total, or parallel.dual=shared"
        )
        conflicts.append(Conflict(text, ("parallel.dual", "fptt.clip")))
    if consensus.dual == "worker" and config.algorithm == "fptt" and config.fptt.update == "algorithm2":
        text = (
            "parallel.dual=worker does not go with fptt.update=algorithm2, whose dual is a gradient: "
            "type fptt.update=explicit, or parallel.dual=shared"
        )
        conflicts.append(Conflict(text, ("parallel.dual", "fptt.update")))
    return conflicts


def _parts_of_a_machine(consensus: ConsensusParallel) -> list[Conflict]:
    """What needs the whole model in each process."""
    if not isinstance(consensus, HierarchicalParallel) or consensus.inside == "gradient":
        return []
    conflicts = []
    if consensus.dual == "worker":
        text = (
            "parallel.inside=fsdp does not go with parallel.dual=worker, whose strength is one number for the whole "
            "model: type parallel.dual=shared, or parallel.inside=gradient"
        )
        conflicts.append(Conflict(text, ("parallel.inside", "parallel.dual")))
    if consensus.start_after > 0:
        text = (
            f"parallel.inside=fsdp does not go with parallel.start_after={consensus.start_after}, which averages whole "
            "gradients: type parallel.start_after=0, or parallel.inside=gradient"
        )
        conflicts.append(Conflict(text, ("parallel.inside", "parallel.start_after")))
    return conflicts


def _second_gradient(config: "Config") -> list[Conflict]:
    """DeepSpeed has no gradient at the new weights within an update."""
    if config.algorithm != "fptt" or config.fptt.update != "algorithm2":
        return []
    text = (
        "fptt.update=algorithm2 does not go with parallel.strategy=deepspeed, which gives one gradient an update: "
        "type fptt.update=explicit, or parallel.strategy=fsdp"
    )
    return [Conflict(text, ("fptt.update", "parallel.strategy"))]


def _rounded_sums(deepspeed: DeepspeedParallel, config: "Config") -> list[Conflict]:
    """DeepSpeed's stage 1 adds the gradients of micro-batches up in bf16."""
    if deepspeed.stage > 1 or config.train.precision == "fp32" or config.train.micro_batch_size is None:
        return []
    text = (
        f"train.micro_batch_size={config.train.micro_batch_size} does not go with parallel.stage=1 and "
        "train.precision=bf16, which would add gradients up in bf16: type parallel.stage=2, or "
        "train.micro_batch_size=null"
    )
    return [Conflict(text, ("train.micro_batch_size", "parallel.stage", "train.precision"))]
