"""Limiting cases of whole runs: one worker, equal strategies, shares that differ, and what must change no weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.signals import StopFlag
from tests.parallel.fault_driver import WORDS, place, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, same_bits, tiny

GRADIENT = {"strategy": "gradient"}
DDP = {"strategy": "gradient", "reduce": "ddp"}
CONSENSUS = {"strategy": "consensus"}


def state(outcome: Outcome) -> dict[str, Tensor]:
    """Weights, W̄, u and moments."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


def farthest(one: Outcome, other: Outcome) -> float:
    """The largest difference of a weight."""
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


@pytest.mark.parametrize(
    "parallel",
    [
        GRADIENT,
        DDP,
        CONSENSUS,
        {**CONSENSUS, "every": 3},
        {**CONSENSUS, "every": 1},
        {**CONSENSUS, "every": 7, "delay": 2},
        {**CONSENSUS, "every": 3, "weights": "kept"},
        {**CONSENSUS, "every": 3, "start_after": 6},
        {"strategy": "hierarchical", "every": 3},
    ],
    ids=str,
)
def test_one_worker_is_single_bit_for_bit(pool: Pool, tmp_path: Path, parallel: dict[str, Any]) -> None:
    keys = {**WORDS, "fptt.reset_weights": True}
    [single] = pool.run(whole, tiny(tmp_path / "single", {**keys, "parallel": {"strategy": "single"}}), world=1)
    [alone] = pool.run(whole, tiny(tmp_path / "alone", {**keys, "parallel": parallel}), world=1)
    assert alone.strategy != single.strategy
    assert same_bits(alone.weights, single.weights)
    assert same_bits(alone.optimizer, single.optimizer)
    assert same_bits(alone.random, single.random)
    assert alone.values == single.values


@pytest.mark.parametrize("parallel", [{"weights": "center"}, {"dual": "worker"}], ids=str)
def test_one_worker_of_the_others_moves_at_an_agreement(pool: Pool, tmp_path: Path, parallel: dict[str, Any]) -> None:
    """So the test above can fail."""
    [single] = pool.run(whole, tiny(tmp_path / "single"), world=1)
    [alone] = pool.run(whole, tiny(tmp_path / "alone", {"parallel": {**CONSENSUS, **parallel}}), world=1)
    assert farthest(alone, single) > 1e-4


@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("parallel", [GRADIENT, DDP], ids=["flat", "ddp"])
def test_workers_that_average_gradients_are_one_process_with_the_whole_batch(
    pool: Pool, tmp_path: Path, world: int, batch_size: int, parallel: dict[str, Any]
) -> None:
    """9 sequences are shares of 4 and 5, or of 2, 2, 2 and 3."""
    keys = {"train.batch_size": batch_size, "train.max_norm": 0.02, "fptt.reset_dual": True}
    [single] = pool.run(whole, tiny(tmp_path / "single", keys), world=1)
    workers = pool.run(whole, tiny(tmp_path / "workers", {**keys, "parallel": parallel}), world=world)
    for name, expected in state(single).items():
        torch.testing.assert_close(
            state(workers[0])[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    moved = max(float((single.weights[name] - single.start[name]).abs().max()) for name in single.start)
    assert moved > 5e-3
    for worker in workers:
        assert same_bits(worker.weights, workers[0].weights)
        assert worker.values == pytest.approx(single.values, abs=1e-6)


@pytest.mark.parametrize("batch_size", [8, 9])
def test_ddp_is_the_flat_reduce(pool: Pool, tmp_path: Path, batch_size: int) -> None:
    """With dropout: the workers draw the same masks."""
    keys = {**WORDS, "optimizer": {"name": "sgd", "lr": 0.1}, "train.batch_size": batch_size}
    flat = pool.run(whole, tiny(tmp_path / "flat", {**keys, "parallel": GRADIENT}))
    ddp = pool.run(whole, tiny(tmp_path / "ddp", {**keys, "parallel": DDP}))
    for one, other in zip(flat, ddp, strict=True):
        assert same_bits(one.random, other.random)
        for name, tensor in state(one).items():
            torch.testing.assert_close(state(other)[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("hook", "bound"), [("fp16", 1e-4), ("bf16", 1e-3)])
def test_a_hook_changes_little(pool: Pool, tmp_path: Path, hook: str, bound: float) -> None:
    """40 steps of at most 0.1 x a gradient, rounded to 11 or 8 bits."""
    exact = pool.run(whole, tiny(tmp_path / "none", {"parallel": DDP}))
    outcomes = pool.run(whole, tiny(tmp_path / hook, {"parallel": {**DDP, "hook": hook}}))
    assert same_bits(outcomes[0].weights, outcomes[1].weights)
    assert 0.0 < farthest(outcomes[0], exact[0]) < bound


@pytest.mark.slow
def test_powersgd_changes_little(pool: Pool, tmp_path: Path) -> None:
    """Torch's hook sends everything for 1000 updates, then one rank of each matrix, and feeds back what it left out."""
    for batches, bound in ((240, 0.0), (280, 3e-2)):
        keys = {"train.batches": batches, "checkpoint.every": 1000, "evaluate.every": 1000, "telemetry.every": 1000}
        [exact, _] = pool.run(whole, tiny(tmp_path / f"none-{batches}", {**keys, "parallel": DDP}))
        hook = {**DDP, "hook": "powersgd"}
        [outcome, other] = pool.run(whole, tiny(tmp_path / f"powersgd-{batches}", {**keys, "parallel": hook}))
        assert same_bits(outcome.weights, other.weights)
        assert farthest(outcome, exact) <= bound
        assert (farthest(outcome, exact) > 0.0) == (batches == 280)


OFTEN = {"checkpoint.every": 1, "evaluate.every": 1, "telemetry.every": 1, "parallel.timeout": 60}
RARELY = {"checkpoint.every": 100, "evaluate.every": 100, "telemetry.every": 100}


@pytest.mark.parametrize(
    ("parallel", "machines"),
    [
        (GRADIENT, 1),
        (DDP, 1),
        ({**CONSENSUS, "every": 3}, 1),
        ({**CONSENSUS, "every": 7, "delay": 2}, 1),
        ({**CONSENSUS, "every": 3, "payload": "bf16", "weights": "center"}, 1),
        ({**CONSENSUS, "every": 3, "weights": "kept"}, 1),
        ({**CONSENSUS, "every": 3, "dual": "worker"}, 1),
        ({**CONSENSUS, "every": 7, "dual": "worker", "order": "admm", "scale": "tensor"}, 1),
        ({**CONSENSUS, "every": 3, "start_after": 18, "dual": "worker"}, 1),
        ({"strategy": "hierarchical", "every": 7, "delay": 2}, 2),
    ],
    ids=str,
)
def test_looking_and_saving_change_no_weight(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], machines: int
) -> None:
    runs = [
        pool.run(whole, tiny(tmp_path / name, {**WORDS, "parallel": parallel, **keys}), machines, world=2 * machines)
        for name, keys in [("rarely", RARELY), ("often", OFTEN)]
    ]
    for one, other in zip(*runs, strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert same_bits(one.random, other.random)


def agreements(environment: LaunchEnvironment, config: Config, machines: int) -> int:
    """How often the workers agreed in a run."""
    trainer = open_trainer(place(environment, machines), config)
    trainer.fit(StopFlag())
    return trainer.strategy.traffic()["agreement"].calls


@pytest.mark.parametrize(
    ("parallel", "resets", "expected"),
    [
        ({"every": 3}, False, 13 + 1),  # 40 windows: 13 times 3, and the end
        ({"every": 8}, False, 5),  # the end is one
        ({"every": 1000}, False, 1),
        ({"every": 3}, True, 13 + 1 + 2),  # and after windows 16 and 32
        ({"every": 8}, True, 5),
        ({"every": 7, "delay": 2}, True, 5 + 2 + 1),  # 7 14 16 21 28 32 35 40
        ({"every": 3, "start_after": 18}, True, 7 + 1 + 1),  # 21 24 27 30 33 36 39, 32 and 40
        ({"every": 7, "dual": "worker"}, True, 5 + 2 + 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("frequency", [RARELY, OFTEN], ids=["rarely", "often"])
def test_when_the_workers_agree(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], resets: bool, expected: int, frequency: dict[str, Any]
) -> None:
    keys = {"parallel": {**CONSENSUS, **parallel}, **frequency, "fptt.reset_weights": resets, "fptt.reset_dual": resets}
    assert pool.run(agreements, tiny(tmp_path / "run", keys), 1) == [expected] * 2
