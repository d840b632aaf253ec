"""Every cell in a run: resumed it is the run that went straight on, and it learns."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist import train
from fptt_dist.models.recurrent import LAYERS
from tests.training.helpers import assert_same_run, resumed, tiny, train_until

SLOW_LEARNERS: dict[str, dict[str, Any]] = {
    # Its own state turns sign at each step: at a rate that stays it learns here or there, as the processor rounds.
    "incremental": {"train.batches": 1000, "fptt.alpha": 0.1, "schedule.name": "cosine"},
    "cornn": {"model.hidden": 64, "model.step_size": 0.5, "model.frequency": 1.0, "model.damping": 1.0},
    "lif": {"model.hidden": 64, "model.threshold": 0.3},
    "alif": {"model.hidden": 64},
}
EACH = pytest.mark.parametrize("cell", LAYERS)


@EACH
def test_interrupted_is_uninterrupted(cell: str, tmp_path: Path) -> None:
    overrides = {"model.cell": cell, "model.layers": 2, "model.dropout": 0.3}
    train(tiny(tmp_path / "straight", overrides, batches=4))
    parts = tiny(tmp_path / "parts", overrides, batches=4)
    train_until(parts, 2)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("algorithm", ["bptt", "fptt"])
def test_it_learns(cell: str, algorithm: str, tmp_path: Path) -> None:
    batches = SLOW_LEARNERS[cell].get("train.batches", 400) if cell in SLOW_LEARNERS else 200
    overrides: dict[str, Any] = {
        "algorithm": algorithm,
        "model.cell": cell,
        "model.hidden": 16,
        "task.length": 8,
        "task.examples": 32 * batches,
        "task.validation": 400,
        "fptt.windows": 2,
        "fptt.alpha": 0.5,
        "fptt.metric": "preconditioned",
        "train.batch_size": 32,
        "checkpoint.every": batches,
        "evaluate.every": batches,
        **SLOW_LEARNERS.get(cell, {}),
    }
    assert train(tiny(tmp_path, overrides, batches=batches)).value < 0.12, "who predicts the mean has 1/6"
