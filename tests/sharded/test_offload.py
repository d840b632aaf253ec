"""Parts in the host's memory: on a CPU nothing moves, so the numbers are the same; a user is refused it there."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.setup import engine
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, same_bits, tiny
from tests.sharded.helpers import SHARDED, train


def allowed(environment: LaunchEnvironment, config: Config) -> Outcome:
    """Train without the check of the device."""
    check = engine._check_offload
    engine._check_offload = lambda offload, everyone: None
    try:
        return train(environment, config)
    finally:
        engine._check_offload = check


MICRO = {"train.micro_batch_size": 2, "train.max_norm": 0.02}


@pytest.mark.parametrize(
    ("kind", "more"),
    [("zero 1", {}), pytest.param("zero 2", MICRO, marks=pytest.mark.slow), ("zero 3", MICRO)],  # fsdp needs a GPU
    ids=["zero 1", "zero 2 micro", "zero 3 micro"],
)
def test_offloaded_parts_train_the_same(pool: Pool, tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    words = {**more, "optimizer": {"name": "adam", "lr": 1e-3}, "train.max_batches": 3, "checkpoint.every_batches": 3}
    here, there = (
        pool.run(allowed, tiny(tmp_path / name, {**words, "parallel": {**SHARDED[kind], "offload": offload}}))
        for name, offload in [("here", False), ("there", True)]
    )
    for one, other in zip(here, there, strict=True):
        assert same_bits(other.weights, one.weights)
        assert same_bits(other.optimizer, one.optimizer)
        assert other.values == one.values
