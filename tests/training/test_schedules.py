"""The learning rate and α of every batch against their formulas."""

import math
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.training.run import train
from fptt_dist.training.schedulers import cosine_factor
from tests.training.helpers import records, tiny

LR, N = 0.01, 12


def rates(folder: Path, overrides: dict[str, Any], field: str, batches: int = N) -> list[float]:
    train(tiny(folder / "run", overrides, batches=batches))
    return [record[field] for record in records(folder / "run", "train")]


def test_constant(tmp_path: Path) -> None:
    assert rates(tmp_path, {}, "lr") == [LR] * N


def test_step_falls_after_its_epochs(tmp_path: Path) -> None:
    overrides = {"schedule.name": "step", "schedule.milestones": [1, 2], "schedule.factor": 0.5}
    assert rates(tmp_path, overrides, "lr") == pytest.approx([LR] * 5 + [LR / 2] * 5 + [LR / 4] * 2)


def test_cosine_warms_up_and_ends_at_its_final_share(tmp_path: Path) -> None:
    overrides = {"schedule.name": "cosine", "schedule.warmup_batches": 3, "schedule.final_lr_ratio": 0.2}
    values = rates(tmp_path, overrides, "lr")
    rise = [LR * n / 4 for n in (1, 2, 3)]
    fall = [LR * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * n / 8))) for n in range(9)]
    assert values == pytest.approx(rise + fall)
    assert values[3] == LR
    assert values[-1] == pytest.approx(0.2 * LR)


def test_cosine_at_its_edges() -> None:
    assert cosine_factor(0, 0.0, 1)(0) == 1.0
    assert cosine_factor(5, 0.0, 3)(2) == 0.5
    assert cosine_factor(0, 0.1, 10)(500) == pytest.approx(0.1)


@pytest.mark.parametrize(("patience", "falls"), [(0, [10, 15, 20]), (1, [15])])
def test_plateau_falls_when_validation_stands_still(patience: int, falls: list[int], tmp_path: Path) -> None:
    # Without a step to speak of, validation never gets better after the first epoch.
    start = 1e-6
    overrides = {"schedule.name": "plateau", "schedule.factor": 0.5, "schedule.patience": patience}
    overrides = {**overrides, "optimizer.name": "sgd", "optimizer.lr": start, "evaluate.every_batches": 3}
    values = rates(tmp_path, overrides, "lr", batches=24)
    expected = [start * 0.5 ** sum(batch > fall for fall in falls) for batch in range(1, 25)]
    assert values == pytest.approx(expected)


def test_alpha_linear(tmp_path: Path) -> None:
    overrides = {"fptt.schedule.name": "linear", "fptt.schedule.start": 0.1, "fptt.alpha": 0.8}
    assert rates(tmp_path, overrides, "alpha") == pytest.approx([0.1 + 0.7 * n / 11 for n in range(N)])


def test_alpha_cosine(tmp_path: Path) -> None:
    overrides = {"fptt.schedule.name": "cosine", "fptt.alpha": 0.8}
    expected = [0.4 * (1 - math.cos(math.pi * n / 11)) for n in range(N)]
    assert rates(tmp_path, overrides, "alpha") == pytest.approx(expected)


@pytest.mark.parametrize("maximum", [None, 1.5])
def test_alpha_grows_as_the_learning_rate_falls(maximum: float | None, tmp_path: Path) -> None:
    overrides = {"schedule.name": "step", "schedule.milestones": [1, 2], "schedule.factor": 0.5, "fptt.alpha": 0.5}
    overrides = {**overrides, "fptt.schedule.name": "inverse_lr", "fptt.schedule.maximum": maximum}
    last = 2.0 if maximum is None else maximum
    assert rates(tmp_path, overrides, "alpha") == pytest.approx([0.5] * 5 + [1.0] * 5 + [last] * 2)


def test_alpha_is_constant_unless_told(tmp_path: Path) -> None:
    assert rates(tmp_path, {"fptt.alpha": 0.3}, "alpha") == [0.3] * N
