"""The rules of the section `parallel` that tie it to itself and to the rest."""

from typing import TYPE_CHECKING

from fptt_dist.config.parallel import ConsensusParallel, GradientParallel
from fptt_dist.config.section import Conflict

if TYPE_CHECKING:
    from fptt_dist.config.schema import Config


def parallel_conflicts(config: "Config") -> list[Conflict]:
    """Everything in `config.parallel` that does not fit together, or not the algorithm."""
    match config.parallel:
        case GradientParallel() as gradient:
            return _hook(gradient)
        case ConsensusParallel() as consensus:
            once = config.windows if config.algorithm in ("fptt", "online") else 1  # updates a sequence
            every = consensus.every or once
            return [*_delay(consensus, every), *_choices_of_dual(consensus), *_algorithm(consensus, config)]
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
