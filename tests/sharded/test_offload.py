"""Parts in the host's memory: on a CPU nothing moves, so the numbers are the same; a user is refused it there."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training import build_strategy
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, same_bits, tiny
from tests.sharded.helpers import SHARDED, train


def allowed(environment: LaunchEnvironment, config: Config) -> Outcome:
    """Train without the check of the device."""
    check = build_strategy._check_offload
    build_strategy._check_offload = lambda offload, everyone: None
    try:
        return train(environment, config)
    finally:
        build_strategy._check_offload = check


@pytest.mark.parametrize("more", [{}, {"train.micro_batch_size": 2, "train.max_norm": 0.02}], ids=["whole", "micro"])
@pytest.mark.parametrize("kind", [kind for kind in SHARDED if kind != "fsdp"])  # whose pages are locked for a GPU
def test_offloaded_parts_train_the_same(pool: Pool, tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    words = {**more, "optimizer": {"name": "adam", "lr": 1e-3}, "train.batches": 5, "checkpoint.every": 5}
    here, there = (
        pool.run(allowed, tiny(tmp_path / name, {**words, "parallel": {**SHARDED[kind], "offload": offload}}))
        for name, offload in [("here", False), ("there", True)]
    )
    for one, other in zip(here, there, strict=True):
        assert same_bits(other.weights, one.weights)
        assert same_bits(other.optimizer, one.optimizer)
        assert other.values == one.values
