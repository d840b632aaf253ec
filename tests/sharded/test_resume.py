"""A sharded run that was interrupted resumes bit for bit on each rank."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.fault_driver import WORDS, copied
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, checkpoint_tensors, same_bits, tiny, train
from tests.sharded.helpers import PARALLEL, same, step
from tests.training.helpers import content, differing, result, without_clock

BATCHES = 6  # of 4 windows; 4 batches an epoch
KEYS: dict[str, Any] = {
    **WORDS,
    "fptt.metric": "preconditioned",
    "train.max_batches": BATCHES,
    "checkpoint.every_batches": 1,
}


def keys(how: str, **more: Any) -> dict[str, Any]:
    return {**KEYS, "parallel": PARALLEL[how], **more}


@pytest.mark.parametrize(
    ("how", "batches", "world"),
    [
        *[("fsdp", [4], 2), ("zero 1", [2], 2), ("zero 2", [4], 2), ("zero 3", [2], 2)],
        *(pytest.param(how, [1, 5], 4, marks=pytest.mark.slow) for how in ("fsdp", "zero 3")),
        *(pytest.param(how, [2, 3], 2, marks=pytest.mark.slow) for how in ("fsdp", "zero 2")),
    ],
)
def test_goes_on_bit_for_bit(pool: Pool, tmp_path: Path, how: str, batches: list[int], world: int) -> None:
    """In the middle of an epoch, and at its end; with dropout, Adam and two schedules."""
    there = tmp_path / "run"
    outcomes = pool.run(copied, tiny(there, keys(how)), batches, world=world)
    for batch in batches:
        check_goes_on(pool, there, tmp_path / f"run-{batch}", how, outcomes)
    if world == 2:
        check_parts(there)


def check_goes_on(pool: Pool, there: Path, here: Path, how: str, outcomes: list[Outcome]) -> None:
    """The run interrupted `here` ends as the one `there` did."""
    world = len(outcomes)
    resumed = pool.run(train, tiny(here, keys(how, resume="auto") | {"checkpoint.every_batches": 100}), world=world)
    written = content(step(here, BATCHES))
    assert differing(content(step(there, BATCHES)), written) == []
    assert written["state.json"]["copies"] == [list(range(world))]
    for one, other in zip(outcomes, resumed, strict=True):
        assert one.batch == other.batch == BATCHES
        assert same(one.weights, other.weights) == []
        assert same(one.optimizer, other.optimizer) == []
        assert same_bits(one.random, other.random)
        assert one.values == other.values
    assert without_clock(result(here)) == without_clock(result(there))


def check_parts(folder: Path) -> None:
    """Each worker writes its part."""
    tensors = checkpoint_tensors(step(folder, BATCHES), 2)
    assert not {"model.safetensors", "optimizer.safetensors"} & tensors.keys()
    for rank in range(2):
        assert (step(folder, BATCHES) / f"rank/{rank}/pieces.json").is_file()
        for name in ("model", "optimizer"):
            held = tensors[f"rank/{rank}/{name}.safetensors"]
            assert {tensor.dtype for tensor in held.values()} == {torch.float32}
            assert {tensor.dim() for tensor in held.values()} <= {0, 1}


@pytest.mark.parametrize("how", ["fsdp", *(pytest.param(f"zero {n}", marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_a_signal_stops_all_one_batch_later(pool: Pool, tmp_path: Path, how: str) -> None:
    """The last rank alone is asked."""
    rarely = keys(how) | {"checkpoint.every_batches": 3}
    whole = pool.run(train, tiny(tmp_path / "straight", rarely))
    for outcome in pool.run(train, tiny(tmp_path / "run", rarely), 3, 1):
        assert outcome.message.startswith(f"stopped by a signal after batch 4 of {BATCHES}, saved in ")
        assert (outcome.batch, outcome.values) == (4, None)
    check_goes_on(pool, tmp_path / "straight", tmp_path / "run", how, whole)
