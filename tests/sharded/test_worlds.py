"""A run goes over to another strategy and another number of workers: each has the same weights, W̄, u and moments."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.checkpoint.store import read_tensors
from tests.parallel.fault_driver import until
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, tiny, train
from tests.sharded.helpers import (
    ADAM,
    PARALLEL,
    Part,
    assembled,
    assert_close,
    broken,
    ended,
    moved,
    part_of,
    same,
    saved,
    saved_rates,
    step,
)

KEYS: dict[str, Any] = {
    "optimizer": ADAM,
    "fptt.metric": "preconditioned",
    "train.max_norm": 0.05,
    "schedule": {"name": "cosine"},
    "fptt.schedule.name": "linear",
    "checkpoint.every_batches": 2,
    "checkpoint.keep_last": 20,
    "train.max_batches": 6,
}
SLOW = pytest.mark.slow
WAYS = [  # strategy and workers, one after the other; each trains two batches
    [("fsdp", 2), ("gradient", 2), ("single", 1)],
    [("gradient", 2), ("zero 3", 2), ("zero 1", 2)],
    [("zero 2", 2), ("fsdp", 2)],
    pytest.param([("single", 1), ("fsdp", 2), ("fsdp", 4)], marks=SLOW),
    pytest.param([("zero 1", 2), ("zero 2", 3), ("zero 3", 2)], marks=SLOW),
    pytest.param([("zero 3", 4), ("zero 3", 2), ("single", 1)], marks=SLOW),
]


def run_of(folder: Path, how: str, **more: Any) -> Any:
    return tiny(folder, {**KEYS, "parallel": PARALLEL[how], **more})


def check_restored(parts: list[Part], how: str, checkpoint: Path, batch: int) -> None:
    """What the workers hold when they have gone back to a checkpoint is what it says, bit for bit."""
    written = saved(checkpoint)
    assert {name.rpartition("/")[2] for name in written} == {
        "weight", "center", "scaled_dual", "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip
    assert [part.batch for part in parts] == [batch] * len(parts)
    rates = saved_rates(checkpoint)
    assert rates.keys() == {name.rpartition("/")[0] for name in written}
    assert all(part.rates == {name: rates[name] for name in part.shapes} for part in parts)
    copies = [parts] if PARALLEL[how]["strategy"] in ("fsdp", "deepspeed") else [[part] for part in parts]
    for copy in copies:
        assert same(assembled(copy), written) == []
    assert len({part.random.numpy().tobytes() for part in parts}) == len(parts)


@pytest.fixture(scope="module")
def single(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    [outcome] = pool.run(train, run_of(tmp_path_factory.mktemp("single") / "run", "single"), world=1)
    return outcome


def went_on(environment: LaunchEnvironment, config: Config, batch: int) -> tuple[Part, Part]:
    """Start or resume a run, until the checkpoint of `batch`: what a worker holds before and after."""
    trainer = open_trainer(environment, config)
    before = part_of(trainer)
    until(trainer, batch)
    return before, part_of(trainer)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ", ".join(f"{how} on {world}" for how, world in way))
def test_goes_over_bit_for_bit_and_ends_like_a_straight_run(
    pool: Pool, tmp_path: Path, single: Outcome, way: list[tuple[str, int]]
) -> None:
    folder, batch = tmp_path / "run", 0
    for how, world in way[:-1]:
        config = run_of(folder, how, resume="auto" if batch else "never")
        parts = pool.run(went_on, config, batch + 2, world=world)
        if batch:
            check_restored([before for before, _ in parts], how, step(folder, batch), batch)
        batch += 2
        check_restored([after for _, after in parts], how, step(folder, batch), batch)
    how, world = way[-1]
    answers = pool.run(moved, run_of(folder, how, resume="auto"), world=world)
    check_restored([part for part, _ in answers], how, step(folder, batch), batch)
    workers = [outcome for _, outcome in answers]
    assert {worker.batch for worker in workers} == {6}
    assert_close(ended(workers, 6), ended([single], 6), rtol=1e-3, atol=2e-5)
    for worker in workers:
        assert worker.values == pytest.approx(single.values, abs=2e-5)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("consensus", "fsdp"),
        ("zero 3", "consensus"),
        pytest.param("fsdp", "consensus", marks=SLOW),
        pytest.param("consensus", "zero 2", marks=SLOW),
    ],
)
def test_starts_at_the_checkpoint_of_a_run_of_consensus_or_the_other_way_round(
    pool: Pool, tmp_path: Path, before: str, now: str
) -> None:
    """From the mean of the copies, which then differ, or to copies, which then are equal.

    The run is the one that starts at the same state in one process, or, for consensus, at one process's own.
    """
    pool.run(broken, run_of(tmp_path / "before", before), 2)
    checkpoint = step(tmp_path / "before", 2)
    if before == "consensus":
        one, other = (saved_part(checkpoint, rank) for rank in range(2))
        assert same(one, other)
        reference, how, world = checkpoint, "single", 1
    else:
        pool.run(broken, run_of(tmp_path / "single", "single"), 2, world=1)
        reference, how, world = step(tmp_path / "single", 2), now, 2
    answers = pool.run(moved, run_of(tmp_path / "now", now), checkpoint)
    check_restored([part for part, _ in answers], now, checkpoint, 2)
    references = pool.run(moved, run_of(tmp_path / "reference", how), reference, world=world)
    workers, expected = ([outcome for _, outcome in each] for each in (answers, references))
    assert {worker.batch for worker in workers} == {6}
    assert len({worker.values for worker in workers}) == 1
    assert workers[0].values == pytest.approx(expected[0].values, abs=2e-5)
    assert_close(ended(workers, 6), ended(expected, 6), rtol=1e-3, atol=2e-5)


def saved_part(checkpoint: Path, rank: int) -> dict[str, Tensor]:
    """The weights of a worker that has all of them."""
    return read_tensors(checkpoint / "rank" / str(rank), "model.safetensors")
