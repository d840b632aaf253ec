"""train.patience: where a run ends, alone, interrupted and on two workers, and what it says."""

import math
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.training.run import train
from fptt_dist.training.train_state import Best, best_after
from tests.parallel.pool import Pool
from tests.parallel.runs import same_bits
from tests.parallel.runs import tiny as of_workers
from tests.parallel.runs import train as on_workers
from tests.training.helpers import (
    assert_same_checkpoint,
    assert_same_run,
    checkpoints,
    content,
    records,
    result,
    resumed,
    steps,
    tiny,
    train_until,
    without_clock,
)

BATCHES = 20
ROUGH = {"evaluate.every_batches": 1, "optimizer.lr": 0.05}  # so that validation goes up and down


def end_of(values: list[float], patience: int) -> int:
    """The validation at which a run ends, by the rule in words; one more than there are if it does not."""
    for last in range(patience, len(values)):
        if min(values[last - patience + 1 : last + 1]) >= min(values[: last - patience + 1]):
            return last + 1
    return len(values) + 1


def validations(run: Path) -> list[float]:
    return [each["value"] for each in records(run, "evaluation") if each["split"] == "validation"]


def test_a_run_ends_where_its_patience_does(tmp_path: Path) -> None:
    assert not train(tiny(tmp_path / "all", ROUGH, batches=BATCHES)).stopped_early
    values = validations(tmp_path / "all")
    ends = {patience: end_of(values, patience) for patience in (1, 2, 3)}
    assert 1 < ends[1] < ends[3] < BATCHES
    for patience, end in ends.items():
        run = tmp_path / str(patience)
        outcome = train(tiny(run, {**ROUGH, "train.patience": patience}, batches=BATCHES))
        assert (outcome.stopped_early, outcome.batches) == (True, end)
        assert validations(run) == values[:end]
        assert steps(run)[-1] == end
        assert outcome.best_batch == 1 + values.index(min(values[:end])) == end - patience
        assert outcome.metrics == {"validation": {"mse": outcome.validation}, "test": {"mse": outcome.value}}
        assert str(outcome).endswith(" s; stopped early by train.patience)")


def test_the_learning_rate_is_planned_for_all_batches(tmp_path: Path) -> None:
    schedules = {**ROUGH, "schedule.name": "cosine", "fptt.schedule.name": "linear"}
    train(tiny(tmp_path / "all", schedules, batches=BATCHES))
    end = train(tiny(tmp_path / "early", {**schedules, "train.patience": 1}, batches=BATCHES)).batches
    assert end < BATCHES
    whole, early = ([(r["lr"], r["alpha"]) for r in records(tmp_path / name, "train")] for name in ("all", "early"))
    assert early == whole[:end]


def test_an_interrupted_run_ends_at_the_same_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {**ROUGH, "train.patience": 3}
    straight = train(tiny(tmp_path / "straight", keys, batches=BATCHES))
    parts = tiny(tmp_path / "parts", keys, batches=BATCHES)
    for batch in (straight.batches - 2, straight.batches - 1):  # while it is running out
        train_until(resumed(parts), batch)
        best = content(checkpoints(tmp_path / "parts")[-1])["state.json"]["best"]
        assert best["since"] == batch - straight.best_batch
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    caplog.clear()
    assert train(resumed(parts)).batches == straight.batches
    assert f"nothing left to do: {tmp_path / 'parts'} is finished (batch {straight.batches})" in caplog.text
    (tmp_path / "parts" / "result.json").unlink()  # as a kill before it leaves the run
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_more_patience_resumes_a_run_that_ended(tmp_path: Path) -> None:
    straight = train(tiny(tmp_path / "straight", {**ROUGH, "train.patience": 3}, batches=BATCHES))
    parts = tiny(tmp_path / "parts", {**ROUGH, "train.patience": 1}, batches=BATCHES)
    assert train(parts).batches < straight.batches
    assert train(resumed(parts, **{"train.patience": 3})).batches == straight.batches
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "parts")
    assert without_clock(result(tmp_path / "straight")) == without_clock(result(tmp_path / "parts"))


def test_validations_count_and_not_batches(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"evaluate.every_batches": 3, "optimizer.name": "sgd", "optimizer.lr": 1e-9}
    keys |= {"train.patience": 2, "fptt.alpha": 0.0}
    outcome = train(tiny(tmp_path / "run", keys, batches=BATCHES))
    values = validations(tmp_path / "run")
    assert (outcome.batches, outcome.stopped_early) == (3 * end_of(values, 2), True)


def test_a_run_whose_patience_ends_with_its_last_batch_did_not_stop_early(tmp_path: Path) -> None:
    end = train(tiny(tmp_path / "early", {**ROUGH, "train.patience": 2}, batches=BATCHES)).batches
    outcome = train(tiny(tmp_path / "exact", {**ROUGH, "train.patience": 2}, batches=end))
    assert (outcome.batches, outcome.stopped_early) == (end, False)


@pytest.mark.parametrize("strategy", ["data_parallel", "consensus"])
def test_all_workers_end_together(strategy: str, pool: Pool, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"parallel.strategy": strategy, "evaluate.every_batches": 1, "train.max_batches": 30}
    keys |= {"optimizer": {"name": "sgd", "lr": 0.5}, "train.patience": 2}
    outcomes = pool.run(on_workers, of_workers(tmp_path / "run", keys))
    values = validations(tmp_path / "run")
    assert result(tmp_path / "run")["stopped_early"]
    assert [outcome.batch for outcome in outcomes] == [end_of(values, 2)] * 2
    assert outcomes[0].values == outcomes[1].values
    assert strategy != "data_parallel" or same_bits(outcomes[0].weights, outcomes[1].weights)


def best(values: list[float], *, higher_is_better: bool) -> Best:
    found = None
    for batch, value in enumerate(values):
        found = best_after(found, Best(batch, value, {}), higher_is_better=higher_is_better)
    assert found is not None
    return found


def test_the_best_and_the_validations_since() -> None:
    nan = math.nan
    for values, batch, since in (
        ([3.0], 0, 0),
        ([3.0, 2.0, 2.0, 4.0], 1, 2),
        ([3.0, nan, nan], 0, 2),
        ([nan, nan, 2.0, nan], 2, 1),
        ([nan, nan, nan], 2, 2),
    ):
        for sign in (1.0, -1.0):
            found = best([sign * value for value in values], higher_is_better=sign < 0)
            assert (found.batch, found.since) == (batch, since)
