"""A whole network from a user's file under every kind of strategy: the same bits after an interruption."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import Config, apply_overrides
from fptt_dist.training.saved_run import evaluate_run
from tests.parallel.fault_driver import copied, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, same_bits, tiny
from tests.program import ROOT
from tests.sharded.helpers import ADAM, PARALLEL, same, step
from tests.training.helpers import content, differing

BATCHES, CUT = 6, 3


@pytest.mark.parametrize(
    "how",
    [
        "consensus",
        "fsdp",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("gradient", "zero 1", "zero 2", "zero 3")),
    ],
)
def test_interrupted_is_uninterrupted(how: str, pool: Pool, tmp_path: Path) -> None:
    file = shutil.copy(ROOT / "examples" / "own_network.py", tmp_path)
    keys: dict[str, Any] = {
        "model": {"network": f"{file}:ConvGRU", "options": {"width": 6}},
        "optimizer": ADAM,
        "fptt.metric": "preconditioned",
        "parallel": PARALLEL[how],
        "train.max_batches": BATCHES,
        "checkpoint.every_batches": 1,
        "checkpoint.keep_last": 20,
    }

    def run(name: str, **more: Any) -> Config:
        return apply_overrides(tiny(tmp_path / name), {**keys, **more})

    straight: list[Outcome] = pool.run(copied, run("run"), [CUT], world=2)
    again: list[Outcome] = pool.run(whole, run(f"run-{CUT}", resume="auto"), world=2)
    for one, other in zip(straight, again, strict=True):
        assert one.batch == other.batch == BATCHES
        assert same(one.weights, other.weights) == same(one.optimizer, other.optimizer) == []
        assert same_bits(one.random, other.random)
        assert one.values == other.values
        assert any(name.startswith("module.gru.") for name in one.weights)
    paths = [step(tmp_path / name, BATCHES) for name in ("run", f"run-{CUT}")]
    assert differing(*map(content, paths)) == []
    assert straight[0].values is not None
    assert evaluate_run(tmp_path / "run")["test"] == pytest.approx(straight[0].values[1])
