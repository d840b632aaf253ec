"""A sharded run that broke off goes on as if nothing had been, bit for bit, rank by rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.fault_driver import WORDS
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, checkpoint_tensors, same_bits, tiny, train
from tests.sharded.helpers import PARALLEL, SHARDED, broken, same, step
from tests.training.helpers import content, differing, result, without_clock

BATCHES = 7  # of 4 windows; 4 batches an epoch
KEYS: dict[str, Any] = {**WORDS, "fptt.metric": "preconditioned", "train.batches": BATCHES, "checkpoint.every": 1}
Straight = Callable[[str, int], tuple[Path, list[Outcome]]]


def keys(how: str, **more: Any) -> dict[str, Any]:
    return {**KEYS, "parallel": PARALLEL[how], **more}


@pytest.fixture(scope="module")
def straight(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """An uninterrupted run, trained once: its folder and outcomes."""
    done: dict[tuple[str, int], tuple[Path, list[Outcome]]] = {}

    def run(how: str, world: int) -> tuple[Path, list[Outcome]]:
        if (how, world) not in done:
            folder = tmp_path_factory.mktemp(how.replace(" ", "-")) / "run"
            done[how, world] = folder, pool.run(train, tiny(folder, keys(how)), world=world)
        return done[how, world]

    return run


@pytest.mark.parametrize(
    ("how", "batch", "world"),
    [
        *((how, batch, 2) for how in SHARDED for batch in (2, 4)),
        *(pytest.param(how, 5, 4, marks=pytest.mark.slow) for how in ("fsdp", "zero 3")),
    ],
)
def test_goes_on_bit_for_bit(pool: Pool, tmp_path: Path, straight: Straight, how: str, batch: int, world: int) -> None:
    """In the middle of an epoch, and at its end; with dropout, Adam and two schedules."""
    there, outcomes = straight(how, world)
    here = tmp_path / "run"
    pool.run(broken, tiny(here, keys(how)), batch, world=world)
    assert differing(content(step(there, batch)), content(step(here, batch))) == []
    resumed = pool.run(train, tiny(here, keys(how, resume="auto")), world=world)
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


@pytest.mark.parametrize("how", SHARDED)
def test_each_worker_writes_its_part(straight: Straight, how: str) -> None:
    folder, _ = straight(how, 2)
    tensors = checkpoint_tensors(step(folder, BATCHES), 2)
    assert not {"model.safetensors", "optimizer.safetensors"} & tensors.keys()
    for rank in range(2):
        assert (step(folder, BATCHES) / f"rank/{rank}/pieces.json").is_file()
        for name in ("model", "optimizer"):
            held = tensors[f"rank/{rank}/{name}.safetensors"]
            assert {tensor.dtype for tensor in held.values()} == {torch.float32}
            assert {tensor.dim() for tensor in held.values()} <= {0, 1}


@pytest.mark.parametrize("how", SHARDED)
def test_a_signal_stops_all_one_batch_later(pool: Pool, tmp_path: Path, how: str) -> None:
    """The last rank alone is asked."""
    short = keys(how, **{"model.layers": 1, "model.dropout": 0.0})
    whole = pool.run(train, tiny(tmp_path / "straight", short))
    for outcome in pool.run(train, tiny(tmp_path / "run", short), 3, 1):
        assert outcome.message.startswith(f"stopped by a signal after batch 4 of {BATCHES}, saved in ")
        assert (outcome.batch, outcome.values) == (4, None)
    resumed = pool.run(train, tiny(tmp_path / "run", {**short, "resume": "auto"}))
    for one, other in zip(whole, resumed, strict=True):
        assert same(one.weights, other.weights) == []
        assert same(one.optimizer, other.optimizer) == []
        assert one.values == other.values
