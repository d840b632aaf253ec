"""A loss or weight that is not finite stops the run, says where, and never reaches a checkpoint."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.algorithm.windows import sequence_windows
from fptt_dist.launchers.ray import trainable
from fptt_dist.parallel import Communicator
from fptt_dist.tasks import Adding, Batch
from fptt_dist.training.non_finite import NonFiniteError, fault_in_data
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup import task_factory
from tests.training.helpers import checkpoints, content, records, steps, tiny
from tests.training.toys import Majority, Overflowing


def assert_only_finite(run: Path) -> None:
    for folder in checkpoints(run):
        for name, tensor in content(folder).items():
            if isinstance(tensor, Tensor):
                assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize(
    ("strategy", "algorithm", "step", "where"),
    [
        ("single", "fptt", 0, "window 1 of 3 of batch 3, epoch 0"),
        ("data_parallel", "fptt", 11, "window 3 of 3 of batch 3, epoch 0"),
        ("consensus", "tbptt", 5, "window 2 of 3 of batch 3, epoch 0"),
        ("single", "bptt", 0, "the update of batch 3, epoch 0"),
        ("data_parallel", "bptt_aux", 5, "the update of batch 3, epoch 0"),
        ("consensus", "tbptt_accumulated", 11, "the update of batch 3, epoch 0"),
    ],
)
def test_the_place_is_named(
    strategy: str, algorithm: str, step: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        task_factory, "build_task", lambda config: Overflowing(3, step, length=12, examples=20, test=16)
    )
    overrides = {"algorithm": algorithm, "parallel.strategy": strategy, "checkpoint.every_batches": 1}
    with pytest.raises(NonFiniteError) as caught:
        train(tiny(tmp_path / "run", overrides))
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    window = "" if algorithm == "bptt" else f", in window {step // 4 + 1} of 3"
    assert str(caught.value) == (
        f"the loss is not finite in {where}. The newest checkpoint is {newest}. The cause is in that batch: the inputs "
        f"have inf at step {step + 1} of 12{window}, sequence 1. Correct the data"
    )
    assert steps(tmp_path / "run") == [1, 2]
    assert not (tmp_path / "run" / "result.json").exists()
    assert_only_finite(tmp_path / "run")


def test_a_target_that_is_not_a_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Undefined(Adding):
        def generate(self, seed: list[int], size: int) -> Batch:
            batch = super().generate(seed, size)
            if size == 4:
                batch.targets[2] = math.nan
            return batch

    monkeypatch.setattr(task_factory, "build_task", lambda config: Undefined(length=12, examples=20, test=16))
    with pytest.raises(NonFiniteError) as caught:
        train(tiny(tmp_path / "run"))
    assert str(caught.value) == (
        "the loss is not finite in window 1 of 3 of batch 1, epoch 0. The newest checkpoint is none. The cause is in "
        "that batch: the targets have nan in sequence 3. Correct the data"
    )


@pytest.mark.parametrize(
    ("inputs", "targets", "said"),
    [
        ([], [], None),
        ([(4, 1, 0), (9, 0, 1)], [], "the inputs have nan at step 5 of 10, in window 2 of 3, sequence 2"),
        ([], [(8, 2)], "the targets have nan at step 9 of 10, in window 3 of 3, sequence 3"),
        ([(9, 0, 0)], [(0, 0)], "the inputs have nan at step 10 of 10, in window 3 of 3, sequence 1"),
    ],
)
def test_the_place_in_the_data_is_named(
    inputs: list[tuple[int, ...]], targets: list[tuple[int, ...]], said: str | None
) -> None:
    batch = Batch(torch.ones(10, 3, 2), torch.ones(10, 3), per_step_targets=True)
    for tensor, places in ((batch.inputs, inputs), (batch.targets, targets)):
        for place in places:
            tensor[place] = math.nan
    assert fault_in_data(batch, [sequence_windows(10, 3)], Communicator()) == said
    ids = Batch(torch.ones(10, 3, dtype=torch.int64), torch.full((10, 3), -100), per_step_targets=True)
    assert fault_in_data(ids, [[window] for window in sequence_windows(10, 3)], Communicator()) is None


DIVERGING: dict[str, dict[str, Any]] = {
    "adam": {"optimizer.lr": 1e30},
    "bptt": {"optimizer.lr": 1e30, "algorithm": "bptt"},
    "sgd": {"optimizer.name": "sgd", "optimizer.lr": 1e25, "algorithm": "tbptt"},
    "second_gradient": {"optimizer.lr": 1e30, "fptt.update_rule": "second_gradient"},
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_learning_rate_too_large(case: str, tmp_path: Path) -> None:
    overrides = {
        **DIVERGING[case],
        "train.max_norm": None,
        "checkpoint.every_batches": 1,
        "evaluate.every_batches": 100,
    }
    with pytest.raises(NonFiniteError, match=r"Lower optimizer.lr \(now .*\) or set train.max_norm=1"):
        train(tiny(tmp_path / "run", overrides))
    assert_only_finite(tmp_path / "run")


def test_a_validation_that_is_not_a_number_is_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Undefined(Majority):
        calls = 0

        def value(self, mean: float) -> float:
            self.calls += 1
            return math.nan if self.calls == 1 else mean

    monkeypatch.setattr(task_factory, "build_task", lambda config: Undefined(config.windows))
    outcome = train(tiny(tmp_path / "run", {"evaluate.every_batches": 1}, batches=3))
    assert outcome.best_batch > 1
    assert not math.isnan(outcome.validation)
    assert [line["best"] for line in records(tmp_path / "run", "evaluation")[:2]] == [True, True]


def test_a_center_that_overflows_in_the_last_update_is_not_saved(tmp_path: Path) -> None:
    # W moves by 3e38, which float32 holds; W̄ is renewed by W − u, twice as far away, which it does not.
    overrides = {
        "optimizer.lr": 3e38,
        "optimizer.betas": [0.0, 0.999],
        "fptt.windows": 1,
        "checkpoint.every_batches": 1,
    }
    with pytest.raises(NonFiniteError, match=r"/center is not finite after batch 1. The newest checkpoint is none."):
        train(tiny(tmp_path / "run", overrides))
    assert steps(tmp_path / "run") == []


class Infinite(Majority):
    """Its loss is finite, its metric is not: as the perplexity of a large loss."""

    def value(self, mean: float) -> float:
        return math.inf


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_a_metric_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Infinite(config.windows))
    finished = train(tiny(tmp_path / "run", batches=2))
    assert finished.diverged is not None
    assert finished.diverged.startswith("the run diverged: validation accuracy inf, test accuracy inf: lower optimizer")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)
    written = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=no_constant)
    places = ("value", "validation", "metrics/validation/accuracy", "metrics/test/accuracy")
    assert (written["value"], written["non_finite"]) == (None, dict.fromkeys(places, "inf"))
    assert RunDirectory(tiny(tmp_path / "run")).read_result() == finished


@pytest.mark.parametrize(("higher", "worst"), [(False, 1e100), (True, -1e100)])
def test_ray_tune_gets_finite_values(higher: bool, worst: float, tmp_path: Path) -> None:
    finished = train(tiny(tmp_path / "run", batches=1))
    told = trainable._final(finished, tmp_path / "run", higher)
    assert told["value"] == told["best"] == finished.validation
    assert finished.diverged is None
    for value in (math.inf, -math.inf, math.nan):
        told = trainable._final(replace(finished, validation=value), tmp_path / "run", higher)
        assert told["value"] == told["best"] == worst
