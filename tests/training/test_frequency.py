"""How often a run validates, saves and records changes no weight."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.training.run import train
from tests.training.helpers import checkpoints, content, differing, records, tiny

BASE: dict[str, Any] = {"model.layers": 2, "model.dropout": 0.5, "fptt.metric": "preconditioned"}
CASES: dict[str, dict[str, Any]] = {
    "validation": {"evaluate.every_batches": 1},
    "rare_validation": {"evaluate.every_batches": 100},
    "weights": {"evaluate.weights": "weights"},
    "checkpoints": {"checkpoint.every_batches": 1, "checkpoint.keep_last": 1},
    "rare_checkpoints": {"checkpoint.every_batches": 100},
    "logging": {"logging.every_batches": 100},
    "tensorboard": {"logging.tensorboard": True},
    "sizes": {"task.validation": 5, "task.test": 7},
}


def test_changes_no_weight(subtests: pytest.Subtests, tmp_path: Path) -> None:
    found = {}
    for case, keys in {"base": {}, **CASES}.items():
        with subtests.test(case=case):
            train(tiny(tmp_path / case, {**BASE, **keys}, batches=7))
            found[case] = content(checkpoints(tmp_path / case)[-1])
            del found[case]["state.json"]["best"]
            assert differing(found["base"], found[case]) == []


def test_plateau_looks_at_epochs_ends_alone(tmp_path: Path) -> None:
    plateau = {"schedule.name": "plateau", "optimizer.lr": 1e-6}  # so small that validation gets no better
    train(tiny(tmp_path / "base", plateau, batches=20))
    train(tiny(tmp_path / "often", {**plateau, "evaluate.every_batches": 1}, batches=20))
    rates = [[record["lr"] for record in records(tmp_path / name, "train")] for name in ("base", "often")]
    assert rates[0] == rates[1]
    falls = [batch for batch, (one, other) in enumerate(zip(rates[0], rates[0][1:], strict=False), 1) if one != other]
    assert falls
    assert all(batch % 5 == 0 for batch in falls)


def test_the_gradient_strategy_on_one_process_is_the_single_one(tmp_path: Path) -> None:
    train(tiny(tmp_path / "single", {"parallel.strategy": "single"}, batches=7))
    train(tiny(tmp_path / "gradient", {"parallel.strategy": "data_parallel"}, batches=7))
    one, other = (content(checkpoints(tmp_path / name)[-1]) for name in ("single", "gradient"))
    kinds = [values["state.json"].pop("engine") for values in (one, other)]
    assert kinds == [
        "Replicated NoSync",
        "Replicated GradientSync",
    ]
    assert differing(one, other) == []
