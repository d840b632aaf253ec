"""What sharded strategies refuse, and what they are for one process."""

import json
import sys
from pathlib import Path

import pytest

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from tests.parallel.pool import Pool
from tests.parallel.runs import refusal, same_bits, tiny, train
from tests.sharded.helpers import SHARDED


def without_deepspeed(environment: LaunchEnvironment, config: Config) -> str:
    """The refusal where DeepSpeed cannot be imported."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "deepspeed"}
    for name in kept:
        del sys.modules[name]
    sys.modules["deepspeed"] = None  # pyright: ignore[reportArgumentType] - as Python marks what is not there
    try:
        return refusal(environment, config)
    finally:
        del sys.modules["deepspeed"]
        sys.modules.update(kept)


def test_without_deepspeed_the_line_to_type_is_said(pool: Pool, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"parallel.strategy": "deepspeed"})
    said = pool.run(without_deepspeed, config)
    assert said == ["parallel.strategy=deepspeed needs DeepSpeed: pip install -e '.[deepspeed]'"] * 2


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_offload_without_a_gpu(pool: Pool, tmp_path: Path, strategy: str) -> None:
    several, one = (
        tiny(tmp_path / name, {"parallel": {"strategy": strategy, "offload": True}}) for name in ("several", "one")
    )
    message = (
        "parallel.offload=true moves the shards from GPU memory to host memory, and device=cpu computes there: "
        "type parallel.offload=false"
    )
    assert pool.run(refusal, several) == [message] * 2
    assert pool.run(refusal, one, world=1) == [message]


def test_a_file_that_asks_for_what_cannot_be(pool: Pool, tmp_path: Path) -> None:
    given = tmp_path / "ds.json"
    given.write_text(json.dumps({"gradient_clipping": 1.0, "optimizer": {"type": "Adam"}, "zero_optimisation": True}))
    config = tiny(tmp_path / "run", {"parallel": {"strategy": "deepspeed", "deepspeed_config": str(given)}})
    one, other = pool.run(refusal, config)
    assert one == other
    loop = f"in {given} is not among what a DeepSpeed file may set here"
    assert f"gradient_clipping=1.0 {loop}, where train.max_norm decides: take it out" in one
    assert f"optimizer {loop}, where optimizer.name decides" in one
    assert "did you mean zero_optimization?" in one
    assert len(one.splitlines()) == 3 + 1


def test_a_file_that_passes_reaches_the_engine(pool: Pool, tmp_path: Path) -> None:
    """A tiny bucket, so that gradients are sent in many: the same numbers."""
    given = tmp_path / "ds.json"
    given.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 50, "allgather_bucket_size": 50}}))
    plain = {"strategy": "deepspeed", "zero_stage": 2}
    outcomes = [
        pool.run(train, tiny(tmp_path / name, {"parallel": parallel, "train.max_batches": 4}))
        for name, parallel in [("plain", plain), ("given", {**plain, "deepspeed_config": str(given)})]
    ]
    for one, other in zip(*outcomes, strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)


def test_one_process_is_single_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    [single], *others = (
        pool.run(train, tiny(tmp_path / name, {"parallel": parallel, "train.max_batches": 3}), world=1)
        for name, parallel in [("single", {"strategy": "single"}), *SHARDED.items()]
    )
    for [alone] in others:
        assert alone.engine == "Replicated NoSync"
        assert same_bits(alone.weights, single.weights)
        assert same_bits(alone.optimizer, single.optimizer)
        assert alone.values == single.values
