"""Limiting cases of whole runs: one worker, equal strategies, shares that differ, and what must change no weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.process.signals import StopFlag
from tests.parallel.fault_driver import WORDS, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, same_bits, tiny

GRADIENT = {"strategy": "data_parallel"}
DDP = {"strategy": "data_parallel", "reduce": "ddp"}
CONSENSUS = {"strategy": "consensus"}


def state(outcome: Outcome) -> dict[str, Tensor]:
    """Weights, W̄, u and moments."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


def farthest(one: Outcome, other: Outcome) -> float:
    """The largest difference of a weight."""
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


NEUTRAL: list[dict[str, Any]] = [  # pairwise; each alone is in test_engine_limits.py
    GRADIENT,
    {**CONSENSUS, "sync_every": 1},
    {**CONSENSUS, "sync_every": 7, "sync_delay": 2, "warmup_updates": 6},
    {"strategy": "hierarchical", "sync_every": 3},
]


def test_one_worker_is_single_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    keys = {**WORDS, "fptt.reset_weights": True, "train.max_batches": 5}
    [single], *others = (
        pool.run(whole, tiny(tmp_path / str(row), {**keys, "parallel": parallel}), world=1)
        for row, parallel in enumerate([{"strategy": "single"}, *NEUTRAL])
    )
    for parallel, [alone] in zip(NEUTRAL, others, strict=True):
        assert alone.engine != single.engine
        assert same_bits(alone.weights, single.weights), parallel
        assert same_bits(alone.optimizer, single.optimizer), parallel
        assert same_bits(alone.random, single.random), parallel
        assert alone.values == single.values, parallel


def test_one_worker_of_the_others_moves_at_an_agreement(pool: Pool, tmp_path: Path) -> None:
    """So the test above can fail."""
    words = [{"strategy": "single"}, {**CONSENSUS, "weight_sync": "center"}, {**CONSENSUS, "dual": "local"}]
    [single], *others = (
        pool.run(whole, tiny(tmp_path / str(row), {"parallel": parallel, "train.max_batches": 3}), world=1)
        for row, parallel in enumerate(words)
    )
    assert all(farthest(alone, single) > 1e-4 for [alone] in others)


def test_ddp_is_the_flat_reduce(pool: Pool, tmp_path: Path) -> None:
    """With dropout: the workers draw the same masks. 9 sequences are shares of 4 and 5."""
    keys = {**WORDS, "optimizer": {"name": "sgd", "lr": 0.1}, "train.batch_size": 9, "train.max_batches": 5}
    flat = pool.run(whole, tiny(tmp_path / "flat", {**keys, "parallel": GRADIENT}))
    ddp = pool.run(whole, tiny(tmp_path / "ddp", {**keys, "parallel": DDP}))
    for one, other in zip(flat, ddp, strict=True):
        assert same_bits(one.random, other.random)
        assert (one.engine, other.engine) == ("Replicated GradientSync", "DdpReplicated NoSync")
        assert same_bits(other.weights, ddp[0].weights)
        for name, tensor in state(one).items():
            torch.testing.assert_close(state(other)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_hook_changes_little(pool: Pool, tmp_path: Path) -> None:
    """40 steps of at most 0.1 x a gradient, rounded to 11 or 8 bits."""
    [exact, _] = pool.run(whole, tiny(tmp_path / "none", {"parallel": DDP}))
    for hook, bound in (("fp16", 1e-4), ("bf16", 1e-3)):
        outcomes = pool.run(whole, tiny(tmp_path / hook, {"parallel": {**DDP, "comm_hook": hook}}))
        assert same_bits(outcomes[0].weights, outcomes[1].weights), hook
        assert 0.0 < farthest(outcomes[0], exact) < bound, hook


OFTEN = {
    "checkpoint.every_batches": 1,
    "evaluate.every_batches": 1,
    "logging.every_batches": 1,
    "parallel.timeout_seconds": 60,
}
RARELY = {"checkpoint.every_batches": 100, "evaluate.every_batches": 100, "logging.every_batches": 100}


LOOKED: list[tuple[dict[str, Any], int]] = [  # each rule alone is in test_engine_state.py
    (GRADIENT, 1),
    ({**CONSENSUS, "sync_every": 7, "sync_delay": 2, "sync_dtype": "bf16", "weight_sync": "center"}, 1),
    (
        {
            **CONSENSUS,
            "sync_every": 3,
            "warmup_updates": 10,
            "dual": "local",
            "dual_update": "admm",
        },
        1,
    ),
]
MORE: list[tuple[dict[str, Any], int]] = [
    ({**CONSENSUS, "sync_every": 3}, 1),
    ({**CONSENSUS, "sync_every": 7, "dual": "local"}, 1),
    ({"strategy": "hierarchical", "sync_every": 7, "sync_delay": 2}, 2),
]


@pytest.mark.parametrize(
    ("parallel", "machines"), [*LOOKED, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)], ids=str
)
def test_looking_and_saving_change_no_weight(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], machines: int
) -> None:
    keys = {**WORDS, "parallel": parallel, "train.max_batches": 5}
    runs = [
        pool.run(whole, tiny(tmp_path / name, {**keys, **more}), machines, world=2 * machines)
        for name, more in [("rarely", RARELY), ("often", OFTEN)]
    ]
    for one, other in zip(*runs, strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert same_bits(one.random, other.random)


def syncs(environment: LaunchEnvironment, configs: list[Config]) -> list[int]:
    """Count the syncs in each run."""
    found = []
    for config in configs:
        trainer = open_trainer(environment, config)
        trainer.fit(StopFlag())
        found.append(trainer.engine.traffic()["sync"].calls)
    return found


WHEN: list[tuple[dict[str, Any], bool, int]] = [  # in 20 windows; an epoch is 8
    ({"sync_every": 3}, False, 6 + 1),  # 6 times 3, and the end
    ({"sync_every": 10}, False, 2),  # the end is one
    ({"sync_every": 1000}, False, 1),
    ({"sync_every": 3}, True, 6 + 1 + 2),  # and after windows 8 and 16
    ({"sync_every": 4}, True, 5),
    ({"sync_every": 7, "sync_delay": 2}, True, 2 + 2 + 1),  # 7 8 14 16 20
    ({"sync_every": 3, "warmup_updates": 10}, True, 3 + 1 + 1),  # 12 15 18, 16 and 20
    ({"sync_every": 7, "dual": "local"}, True, 2 + 2 + 1),
]


def test_when_the_workers_agree(pool: Pool, tmp_path: Path) -> None:
    """A run that evaluates and saves in between is compared with one that does not."""
    configs = [
        tiny(
            tmp_path / f"{row}-{name}",
            {
                "parallel": {**CONSENSUS, **parallel},
                "fptt.reset_weights": resets,
                "fptt.reset_dual": resets,
                **more,
                "task.examples": 16,
                "train.max_batches": 5,
            },
        )
        for row, (parallel, resets, _) in enumerate(WHEN)
        for name, more in (("rarely", RARELY), ("often", OFTEN))
    ]
    expected = [count for _, _, count in WHEN for _ in range(2)]
    for found in pool.run(syncs, configs, timeout=120.0):
        wrong = [
            (config.parallel, calls) for config, calls, n in zip(configs, found, expected, strict=True) if calls != n
        ]
        assert wrong == []
