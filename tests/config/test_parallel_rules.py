"""The section `parallel`: its variants and defaults, and what does not go together in it or with the rest."""

from typing import Any

import pytest

from fptt_dist.config import (
    AutoParallel,
    Config,
    ConfigError,
    ConsensusParallel,
    DeepspeedParallel,
    FsdpParallel,
    GradientParallel,
    HierarchicalParallel,
    SingleProcess,
    Train,
    apply_overrides,
)

BASE = Config(train=Train(epochs=1))
AGREEING = ["consensus", "hierarchical"]


def accepted(parallel: dict[str, Any], **more: Any) -> Config:
    overrides = {f"parallel.{key}": value for key, value in parallel.items()}
    return apply_overrides(BASE, {**overrides, **{key.replace("__", "."): value for key, value in more.items()}})


def message(parallel: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        accepted(parallel, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("auto", AutoParallel),
        ("single", SingleProcess),
        ("gradient", GradientParallel),
        ("consensus", ConsensusParallel),
        ("hierarchical", HierarchicalParallel),
        ("fsdp", FsdpParallel),
        ("deepspeed", DeepspeedParallel),
    ],
)
def test_the_strategies(strategy: str, kind: type) -> None:
    parallel = accepted({"strategy": strategy}).parallel
    assert type(parallel) is kind
    assert parallel.strategy == strategy
    assert (parallel.launcher, parallel.timeout) == ("auto", 120.0)


def test_auto_is_the_default() -> None:
    assert isinstance(BASE.parallel, AutoParallel)


def test_the_defaults_of_consensus() -> None:
    parallel = accepted({"strategy": "consensus"}).parallel
    assert parallel.model_dump() == {
        "launcher": "auto",
        "timeout": 120.0,
        "strategy": "consensus",
        "every": None,
        "dual": "shared",
        "weights": "mean",
        "order": "damped",
        "damping": 0.25,
        "scale": "model",
        "payload": "fp32",
        "delay": 0,
        "start_after": 0,
        "stop_every": 500,
    }
    both = accepted({"strategy": "hierarchical"}).parallel.model_dump()
    assert both == {**parallel.model_dump(), "strategy": "hierarchical", "inside": "gradient"}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("every", 0, "int >= 1 or null"),
        ("damping", 0, "float > 0"),
        ("delay", -1, "int >= 0"),
        ("start_after", -1, "int >= 0"),
        ("stop_every", 0, "int >= 1"),
        ("timeout", 0, "float > 0"),
        ("dual", "both", "one of shared, worker"),
        ("weights", "median", "one of mean, center, kept; did you mean mean?"),
        ("order", "fast", "one of damped, admm"),
        ("scale", "layer", "one of model, tensor"),
        ("payload", "int8", "one of fp32, bf16"),
        ("launcher", "mpi", "one of auto, torchrun, slurm, ray, single"),
    ],
)
def test_what_each_key_takes(key: str, value: Any, allowed: str) -> None:
    text = message({"strategy": "consensus", key: value})
    assert text == f"parallel.{key}: {value} is not allowed; allowed: {allowed} (override parallel.{key}={value})"


@pytest.mark.parametrize("key", ["every", "dual", "payload", "delay"])
@pytest.mark.parametrize("strategy", ["auto", "single", "gradient"])
def test_keys_of_consensus_belong_to_consensus(strategy: str, key: str) -> None:
    value = {"every": 2, "dual": "shared", "payload": "bf16", "delay": 0}[key]
    assert f"parallel.{key}: " in message({"strategy": strategy, key: value})


@pytest.mark.parametrize("hook", ["bf16", "fp16", "powersgd"])
def test_a_hook_needs_ddp(hook: str) -> None:
    assert message({"strategy": "gradient", "hook": hook}) == (
        f"parallel.hook={hook} needs parallel.reduce=ddp, not parallel.reduce=flat: type parallel.reduce=ddp, or "
        f"parallel.hook=none (override parallel.hook={hook})"
    )
    parallel = accepted({"strategy": "gradient", "hook": hook, "reduce": "ddp"}).parallel
    assert isinstance(parallel, GradientParallel)
    assert (parallel.reduce, parallel.hook) == ("ddp", hook)
    accepted({"strategy": "gradient", "reduce": "ddp"})


@pytest.mark.parametrize("strategy", AGREEING)
@pytest.mark.parametrize(("every", "delay"), [(1, 1), (4, 4), (4, 9)])
def test_a_delayed_agreement_arrives_before_the_next(strategy: str, every: int, delay: int) -> None:
    text = message({"strategy": strategy, "every": every, "delay": delay})
    assert text == (
        f"parallel.delay={delay} must be less than the updates between agreements, {every} (parallel.every): type "
        f"parallel.delay={every - 1}{' or less' if every > 1 else ''}, or a larger parallel.every (override "
        f"parallel.delay={delay}, override parallel.every={every})"
    )
    accepted({"strategy": strategy, "every": every, "delay": every - 1})


def test_weights_that_stay_apart_and_a_rate_that_falls() -> None:
    kept = {"strategy": "consensus", "weights": "kept"}
    falls = {"schedule__name": "cosine", "optimizer__name": "adam", "fptt__metric": "preconditioned"}
    assert message(kept, **falls).startswith(
        "parallel.weights=kept does not go with fptt.metric=preconditioned and schedule.name=cosine, under which the "
        "regularizer's gradient may grow without limit: type parallel.weights=mean, fptt.metric=euclidean, or "
        "schedule.name=constant ("
    )
    for other in ({"schedule__name": "constant"}, {"fptt__metric": "euclidean"}, {"fptt__alpha": 0.0}):
        accepted(kept, **{**falls, **other})
    accepted({**kept, "weights": "mean"}, **falls)


@pytest.mark.parametrize("strategy", AGREEING)
def test_without_every_the_windows_of_a_sequence_count(strategy: str) -> None:
    text = message({"strategy": strategy, "delay": 5}, fptt__windows=5)
    assert text == (
        "parallel.delay=5 must be less than the updates between agreements, 5 (parallel.every=null is the updates of a "
        "sequence): type parallel.delay=4 or less, or a larger parallel.every (override parallel.delay=5, override "
        "fptt.windows=5)"
    )
    accepted({"strategy": strategy, "delay": 4}, fptt__windows=5)
    accepted({"strategy": strategy, "delay": 5, "every": 6}, fptt__windows=5)
    assert accepted({"strategy": strategy, "delay": 13}).windows == 14  # round(√200)
    assert "updates between agreements, 14 (" in message({"strategy": strategy, "delay": 14})
    assert "updates between agreements, 1 (" in message({"strategy": strategy, "delay": 1}, algorithm="tbptt")


@pytest.mark.parametrize("strategy", AGREEING)
def test_a_delay_needs_the_shared_dual(strategy: str) -> None:
    assert message({"strategy": strategy, "delay": 1, "every": 4, "dual": "worker"}) == (
        "parallel.delay does not go with parallel.dual=worker, whose agreement restarts center and dual: type "
        "parallel.delay=0, or parallel.dual=shared (override parallel.delay=1, override parallel.dual=worker)"
    )


@pytest.mark.parametrize("strategy", AGREEING)
@pytest.mark.parametrize(
    ("dual", "key", "value", "default"),
    [
        ("shared", "order", "admm", "damped"),
        ("shared", "damping", 0.5, "0.25"),
        ("shared", "scale", "tensor", "model"),
        ("worker", "weights", "center", "mean"),
        ("worker", "weights", "kept", "mean"),
    ],
)
def test_keys_that_only_the_other_dual_reads(strategy: str, dual: str, key: str, value: Any, default: str) -> None:
    other = "worker" if dual == "shared" else "shared"
    text = message({"strategy": strategy, "dual": dual, key: value})
    assert text.startswith(
        f"parallel.{key}={value} is only read with parallel.dual={other}: type parallel.dual={other}, or "
        f"parallel.{key}={default} ("
    )
    assert f"override parallel.{key}={value}" in text
    accepted({"strategy": strategy, "dual": other, key: value})


def test_keys_of_the_other_dual_at_their_defaults_are_fine() -> None:
    accepted({"strategy": "consensus", "dual": "shared", "order": "damped", "damping": 0.25, "scale": "model"})
    accepted({"strategy": "consensus", "dual": "worker", "weights": "mean"})


@pytest.mark.parametrize("strategy", AGREEING)
@pytest.mark.parametrize("algorithm", ["online", "tbptt", "bptt_aux", "bptt"])
def test_the_agreed_center_needs_a_center(strategy: str, algorithm: str) -> None:
    assert message({"strategy": strategy, "weights": "center"}, algorithm=algorithm) == (
        f"parallel.weights=center needs a center, which algorithm={algorithm} has not: type parallel.weights=mean, or "
        f"algorithm=fptt (override parallel.weights=center, override algorithm={algorithm})"
    )
    accepted({"strategy": strategy, "weights": "center"})
    for other in ("mean", "kept"):
        accepted({"strategy": strategy, "weights": other}, algorithm=algorithm)


@pytest.mark.parametrize("strategy", AGREEING)
def test_a_workers_dual_needs_a_dual_that_is_no_gradient(strategy: str) -> None:
    assert message({"strategy": strategy, "dual": "worker"}, fptt__update="algorithm2") == (
        "parallel.dual=worker does not go with fptt.update=algorithm2, whose dual is a gradient: type "
        "fptt.update=explicit, or parallel.dual=shared (override parallel.dual=worker, override "
        "fptt.update=algorithm2)"
    )
    for update in ("explicit", "prox"):
        accepted({"strategy": strategy, "dual": "worker"}, fptt__update=update)
    accepted({"strategy": strategy}, fptt__update="algorithm2")
    accepted({"strategy": strategy, "dual": "worker"}, fptt__update="algorithm2", algorithm="tbptt")


@pytest.mark.parametrize("strategy", ["auto", "single", "gradient"])
def test_rules_of_consensus_leave_other_strategies_alone(strategy: str) -> None:
    accepted({"strategy": strategy}, fptt__update="algorithm2")
    accepted({"strategy": strategy}, algorithm="bptt")


def test_all_conflicts_are_told_at_once() -> None:
    text = message(
        {"strategy": "consensus", "every": 2, "delay": 2, "dual": "worker", "weights": "center"},
        fptt__update="algorithm2",
        train__epochs=None,
    )
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        "train.batches=null",
        "parallel.delay=2",
        "parallel.delay",
        "parallel.weights=center",
        "parallel.dual=worker",
    ]


def test_parts_inside_a_machine_go_with_the_shared_dual() -> None:
    assert accepted({"strategy": "hierarchical", "inside": "fsdp", "delay": 2, "every": 3}).parallel.strategy
    inside = {"strategy": "hierarchical", "inside": "fsdp"}
    assert message({**inside, "dual": "worker"}) == (
        "parallel.inside=fsdp does not go with parallel.dual=worker, whose strength is one number for the whole model: "
        "type parallel.dual=shared, or parallel.inside=gradient (override parallel.inside=fsdp, override "
        "parallel.dual=worker)"
    )
    assert message({**inside, "start_after": 3}) == (
        "parallel.inside=fsdp does not go with parallel.start_after=3, which averages whole gradients: type "
        "parallel.start_after=0, or parallel.inside=gradient (override parallel.inside=fsdp, override "
        "parallel.start_after=3)"
    )


def test_deepspeed_gives_one_gradient_an_update() -> None:
    assert accepted({"strategy": "deepspeed"}, algorithm="online", fptt__update="algorithm2")
    assert accepted({"strategy": "fsdp"}, fptt__update="algorithm2")
    assert message({"strategy": "deepspeed"}, fptt__update="algorithm2") == (
        "fptt.update=algorithm2 does not go with parallel.strategy=deepspeed, which gives one gradient an update: type "
        "fptt.update=explicit, or parallel.strategy=fsdp (override fptt.update=algorithm2, override "
        "parallel.strategy=deepspeed)"
    )


def test_deepspeeds_first_stage_adds_up_in_bf16() -> None:
    words = {"train__precision": "bf16", "train__micro_batch_size": 4}
    assert accepted({"strategy": "deepspeed", "stage": 2}, **words)
    assert accepted({"strategy": "deepspeed", "stage": 1}, train__precision="bf16")
    assert message({"strategy": "deepspeed", "stage": 1}, **words) == (
        "train.micro_batch_size=4 does not go with parallel.stage=1 and train.precision=bf16, which would add "
        "gradients up in bf16: type parallel.stage=2, or train.micro_batch_size=null (override "
        "train.micro_batch_size=4, override parallel.stage=1, override train.precision=bf16)"
    )


@pytest.mark.parametrize("stage", [0, 4])
def test_deepspeeds_stages(stage: int) -> None:
    assert message({"strategy": "deepspeed", "stage": stage}) == (
        f"parallel.stage: {stage} is not allowed; allowed: int >= 1 and <= 3 (override parallel.stage={stage})"
    )
