"""Every cell in a run: resumed it is the run that went straight on; one cell of each kind learns."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.models.recurrent import LAYERS
from fptt_dist.training.run import train
from tests.training.helpers import assert_same_run, resumed, tiny, train_until

LEARNING: dict[str, tuple[str, int, dict[str, Any]]] = {  # by kind: the algorithm, the batches and what else it needs
    "lstm": ("fptt", 200, {}),
    "fastgrnn": ("bptt", 200, {}),
    "orthogonal": ("fptt", 200, {}),
    "trellis": ("bptt", 200, {}),
    "lru": ("fptt", 200, {}),
    "alif": ("fptt", 400, {"model.hidden": 64}),
}


def test_interrupted_is_uninterrupted(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for cell in LAYERS:
        with subtests.test(cell=cell):
            overrides = {"model.layer": cell, "model.layers": 2, "model.dropout": 0.3, "task.validation": 4}
            straight, parts = tmp_path / cell / "straight", tiny(tmp_path / cell / "parts", overrides, batches=2)
            train(tiny(straight, overrides, batches=2))
            train_until(parts, 1)
            train(resumed(parts))
            assert_same_run(straight, tmp_path / cell / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("cell", LEARNING)
def test_it_learns(cell: str, tmp_path: Path) -> None:
    algorithm, batches, more = LEARNING[cell]
    overrides: dict[str, Any] = {
        "algorithm": algorithm,
        "model.layer": cell,
        "model.hidden": 16,
        "task.length": 8,
        "task.examples": 32 * batches,
        "task.validation": 400,
        "fptt.windows": 2,
        "fptt.alpha": 0.5,
        "fptt.metric": "preconditioned",
        "train.batch_size": 32,
        "checkpoint.every_batches": batches,
        "evaluate.every_batches": batches,
        **more,
    }
    assert train(tiny(tmp_path, overrides, batches=batches)).value < 0.12, "who predicts the mean has 1/6"
