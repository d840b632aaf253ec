"""The section `parallel`: its variants and defaults, and what does not go together in it or with the rest."""

from itertools import product
from typing import Any

from fptt_dist.config import (
    AutoParallel,
    Config,
    ConfigError,
    ConsensusParallel,
    DataParallel,
    DeepspeedParallel,
    FsdpParallel,
    HierarchicalParallel,
    SingleProcess,
    Train,
    apply_overrides,
)

BASE = Config(train=Train(max_epochs=1))
SYNCED = ["consensus", "hierarchical"]


def accepted(parallel: dict[str, Any], **more: Any) -> Config:
    overrides = {f"parallel.{key}": value for key, value in parallel.items()}
    return apply_overrides(BASE, {**overrides, **{key.replace("__", "."): value for key, value in more.items()}})


def message(parallel: dict[str, Any], **more: Any) -> str:
    try:
        accepted(parallel, **more)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_the_strategies() -> None:
    kinds = {
        "auto": AutoParallel,
        "single": SingleProcess,
        "data_parallel": DataParallel,
        "consensus": ConsensusParallel,
        "hierarchical": HierarchicalParallel,
        "fsdp": FsdpParallel,
        "deepspeed": DeepspeedParallel,
    }
    for strategy, kind in kinds.items():
        parallel = accepted({"strategy": strategy}).parallel
        assert (type(parallel), parallel.strategy) == (kind, strategy)
        assert (parallel.launcher, parallel.timeout_seconds) == ("auto", 120.0)


def test_auto_is_the_default() -> None:
    assert isinstance(BASE.parallel, AutoParallel)


def test_the_defaults_of_consensus() -> None:
    parallel = accepted({"strategy": "consensus"}).parallel
    assert parallel.model_dump() == {
        "launcher": "auto",
        "timeout_seconds": 120.0,
        "strategy": "consensus",
        "sync_every": None,
        "dual": "averaged",
        "weight_sync": "average",
        "dual_update": "damped",
        "dual_step_size": 0.25,
        "sync_dtype": "fp32",
        "sync_delay": 0,
        "warmup_updates": 0,
        "control_interval": 500,
    }
    both = accepted({"strategy": "hierarchical"}).parallel.model_dump()
    assert both == {**parallel.model_dump(), "strategy": "hierarchical", "intra_node": "data_parallel"}


def test_what_each_key_takes() -> None:
    expected = {
        ("sync_every", 0): "int >= 1 or null",
        ("dual_step_size", 0): "float > 0",
        ("sync_delay", -1): "int >= 0",
        ("warmup_updates", -1): "int >= 0",
        ("control_interval", 0): "int >= 1",
        ("timeout_seconds", 0): "float > 0",
        ("dual", "both"): "one of averaged, local",
        ("weight_sync", "median"): "one of average, center",
        ("dual_update", "fast"): "one of damped, admm",
        ("sync_dtype", "int8"): "one of fp32, bf16",
        ("launcher", "mpi"): "one of auto, torchrun, slurm, ray, single",
    }
    assert {(key, value): message({"strategy": "consensus", key: value}) for key, value in expected} == {
        (key, value): f"parallel.{key}: {value} is not allowed; allowed: {text} (override parallel.{key}={value})"
        for (key, value), text in expected.items()
    }


def test_keys_of_consensus_belong_to_consensus() -> None:
    keys = {"sync_every": 2, "dual": "averaged", "sync_dtype": "bf16", "sync_delay": 0}
    for strategy, (key, value) in product(("auto", "single", "data_parallel"), keys.items()):
        assert f"parallel.{key}: " in message({"strategy": strategy, key: value})


def test_a_hook_needs_ddp() -> None:
    for hook in ("bf16", "fp16"):
        assert message({"strategy": "data_parallel", "comm_hook": hook}) == (
            f"parallel.comm_hook={hook} needs parallel.reduce=ddp, not parallel.reduce=flat: type parallel.reduce=ddp, "
            f"or parallel.comm_hook=none (override parallel.comm_hook={hook})"
        )
        parallel = accepted({"strategy": "data_parallel", "comm_hook": hook, "reduce": "ddp"}).parallel
        assert isinstance(parallel, DataParallel)
        assert (parallel.reduce, parallel.comm_hook) == ("ddp", hook)
    accepted({"strategy": "data_parallel", "reduce": "ddp"})


def test_a_delayed_agreement_arrives_before_the_next() -> None:
    for strategy, (every, delay) in product(SYNCED, [(1, 1), (4, 4), (4, 9)]):
        less = f"{every - 1}{' or less' if every > 1 else ''}"
        assert message({"strategy": strategy, "sync_every": every, "sync_delay": delay}) == (
            f"parallel.sync_delay={delay} must be less than the updates between syncs, {every} "
            f"(parallel.sync_every): type parallel.sync_delay={less}, or a larger parallel.sync_every (override "
            f"parallel.sync_delay={delay}, override parallel.sync_every={every})"
        )
        accepted({"strategy": strategy, "sync_every": every, "sync_delay": every - 1})


def test_without_every_the_windows_of_a_sequence_count() -> None:
    for strategy in SYNCED:
        assert message({"strategy": strategy, "sync_delay": 5}, fptt__windows=5) == (
            "parallel.sync_delay=5 must be less than the updates between syncs, 5 (parallel.sync_every=null is "
            "the updates of a sequence): type parallel.sync_delay=4 or less, or a larger parallel.sync_every (override "
            "parallel.sync_delay=5, override fptt.windows=5)"
        )
        accepted({"strategy": strategy, "sync_delay": 4}, fptt__windows=5)
        assert message({"strategy": strategy, "sync_delay": 5}, fptt__window_length=40).endswith(
            "(override parallel.sync_delay=5, override fptt.window_length=40)"
        )
        append = {"fptt__windows": 201, "fptt__window_remainder": "append"}
        assert message({"strategy": strategy, "sync_delay": 1}, **append).startswith("fptt.windows=201 is more than")
        accepted({"strategy": strategy, "sync_delay": 5, "sync_every": 6}, fptt__windows=5)
        assert accepted({"strategy": strategy, "sync_delay": 13}).windows == 14  # round(√200)
        assert "updates between syncs, 14 (" in message({"strategy": strategy, "sync_delay": 14})
        assert "updates between syncs, 1 (" in message(
            {"strategy": strategy, "sync_delay": 1}, algorithm="tbptt_accumulated"
        )


def test_a_delay_needs_the_shared_dual() -> None:
    for strategy in SYNCED:
        assert message({"strategy": strategy, "sync_delay": 1, "sync_every": 4, "dual": "local"}) == (
            "parallel.sync_delay does not go with parallel.dual=local, whose sync resets center and dual: type "
            "parallel.sync_delay=0, or parallel.dual=averaged (override parallel.sync_delay=1, override "
            "parallel.dual=local)"
        )


def test_keys_that_only_the_other_dual_reads() -> None:
    rows: list[tuple[str, str, str, Any, str]] = [
        ("averaged", "local", "dual_update", "admm", "damped"),
        ("averaged", "local", "dual_step_size", 0.5, "0.25"),
        ("local", "averaged", "weight_sync", "center", "average"),
    ]
    for strategy, (dual, other, key, value, default) in product(SYNCED, rows):
        text = message({"strategy": strategy, "dual": dual, key: value})
        assert text.startswith(
            f"parallel.{key}={value} is only read with parallel.dual={other}: type parallel.dual={other}, or "
            f"parallel.{key}={default} ("
        )
        assert f"override parallel.{key}={value}" in text
        accepted({"strategy": strategy, "dual": other, key: value})


def test_keys_of_the_other_dual_at_their_defaults_are_fine() -> None:
    accepted(
        {
            "strategy": "consensus",
            "dual": "averaged",
            "dual_update": "damped",
            "dual_step_size": 0.25,
        }
    )
    accepted({"strategy": "consensus", "dual": "local", "weight_sync": "average"})


def test_the_agreed_center_needs_a_center() -> None:
    for strategy, algorithm in product(SYNCED, ("tbptt", "tbptt_accumulated", "bptt_aux", "bptt")):
        assert message({"strategy": strategy, "weight_sync": "center"}, algorithm=algorithm) == (
            f"parallel.weight_sync=center needs a center, which algorithm={algorithm} has not: type "
            f"parallel.weight_sync=average, or algorithm=fptt (override parallel.weight_sync=center, override "
            f"algorithm={algorithm})"
        )
        accepted({"strategy": strategy, "weight_sync": "center"})
        accepted({"strategy": strategy, "weight_sync": "average"}, algorithm=algorithm)


def test_a_workers_dual_needs_a_dual_that_is_no_gradient() -> None:
    for strategy in SYNCED:
        assert message({"strategy": strategy, "dual": "local"}, fptt__update_rule="second_gradient") == (
            "parallel.dual=local does not go with fptt.update_rule=second_gradient, whose dual is a gradient: type "
            "fptt.update_rule=gradient, or parallel.dual=averaged (override parallel.dual=local, override "
            "fptt.update_rule=second_gradient)"
        )
        for update in ("gradient", "proximal"):
            accepted({"strategy": strategy, "dual": "local"}, fptt__update_rule=update)
        accepted({"strategy": strategy}, fptt__update_rule="second_gradient")
        accepted(
            {"strategy": strategy, "dual": "local"}, fptt__update_rule="second_gradient", algorithm="tbptt_accumulated"
        )


def test_rules_of_consensus_leave_other_strategies_alone() -> None:
    for strategy in ("auto", "single", "data_parallel"):
        accepted({"strategy": strategy}, fptt__update_rule="second_gradient")
        accepted({"strategy": strategy}, algorithm="bptt")


def test_all_conflicts_are_told_at_once() -> None:
    text = message(
        {"strategy": "consensus", "sync_every": 2, "sync_delay": 2, "dual": "local", "weight_sync": "center"},
        fptt__update_rule="second_gradient",
        train__max_epochs=None,
    )
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        "train.max_batches=null",
        "parallel.sync_delay=2",
        "parallel.sync_delay",
        "parallel.weight_sync=center",
        "parallel.dual=local",
    ]


def test_parts_inside_a_machine_go_with_the_shared_dual() -> None:
    assert accepted(
        {"strategy": "hierarchical", "intra_node": "fsdp", "sync_delay": 2, "sync_every": 3}
    ).parallel.strategy
    inside = {"strategy": "hierarchical", "intra_node": "fsdp"}
    assert message({**inside, "dual": "local"}) == (
        "parallel.intra_node=fsdp does not go with parallel.dual=local, whose strength is one number for the whole "
        "model: type parallel.dual=averaged, or parallel.intra_node=data_parallel (override parallel.intra_node=fsdp, "
        "override parallel.dual=local)"
    )
    assert message({**inside, "warmup_updates": 3}) == (
        "parallel.intra_node=fsdp does not go with parallel.warmup_updates=3, which averages unsharded gradients: type "
        "parallel.warmup_updates=0, or parallel.intra_node=data_parallel (override parallel.intra_node=fsdp, override "
        "parallel.warmup_updates=3)"
    )


def test_deepspeed_gives_one_gradient_an_update() -> None:
    assert accepted({"strategy": "deepspeed"}, algorithm="tbptt", fptt__update_rule="second_gradient")
    assert accepted({"strategy": "fsdp"}, fptt__update_rule="second_gradient")
    assert message({"strategy": "deepspeed"}, fptt__update_rule="second_gradient") == (
        "fptt.update_rule=second_gradient does not go with parallel.strategy=deepspeed, which gives one gradient per "
        "update: type fptt.update_rule=gradient, or parallel.strategy=fsdp (override "
        "fptt.update_rule=second_gradient, override parallel.strategy=deepspeed)"
    )


def test_deepspeeds_first_stage_adds_up_in_bf16() -> None:
    words = {"train__precision": "bf16", "train__micro_batch_size": 4}
    assert accepted({"strategy": "deepspeed", "zero_stage": 2}, **words)
    assert accepted({"strategy": "deepspeed", "zero_stage": 1}, train__precision="bf16")
    assert message({"strategy": "deepspeed", "zero_stage": 1}, **words) == (
        "train.micro_batch_size=4 does not go with parallel.zero_stage=1 and train.precision=bf16, which would add "
        "gradients up in bf16: type parallel.zero_stage=2, or train.micro_batch_size=null (override "
        "train.micro_batch_size=4, override parallel.zero_stage=1, override train.precision=bf16)"
    )


def test_deepspeeds_stages() -> None:
    for stage in (0, 4):
        assert message({"strategy": "deepspeed", "zero_stage": stage}) == (
            f"parallel.zero_stage: {stage} is not allowed; allowed: int >= 1 and <= 3 (override "
            f"parallel.zero_stage={stage})"
        )
