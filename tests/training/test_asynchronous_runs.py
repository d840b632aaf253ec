"""Whole runs that save in the background: they end, resume and fail as those that wait for the disk."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import apply_overrides
from fptt_dist.training.checkpoint.store import validate
from fptt_dist.training.run import train
from tests.parallel import runs
from tests.parallel.fault_driver import WORDS, broken, whole
from tests.parallel.pool import Pool
from tests.training.helpers import (
    assert_same_run,
    checkpoints,
    content,
    differing,
    isolated,
    resumed,
    steps,
    tiny,
    train_until,
)

BEHIND = {"checkpoint.async_save": True}
PARALLEL: dict[str, dict[str, Any]] = {
    "gradient": {"strategy": "data_parallel"},
    "consensus": {"strategy": "consensus", "sync_every": 7, "sync_delay": 2},
    "fsdp": {"strategy": "fsdp"},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_ends_as_one_that_waits(tmp_path: Path, every: int) -> None:
    keys = {"checkpoint.every_batches": every, "evaluate.every_batches": 2, "checkpoint.keep_last": 20}
    with isolated():
        train(tiny(tmp_path / "waits", keys, batches=7))
        train(tiny(tmp_path / "behind", {**keys, **BEHIND}, batches=7))
    assert_same_run(tmp_path / "waits", tmp_path / "behind")
    assert steps(tmp_path / "waits") == steps(tmp_path / "behind")
    for one, other in zip(checkpoints(tmp_path / "waits"), checkpoints(tmp_path / "behind"), strict=True):
        assert differing(content(one), content(other)) == []
        assert validate(other) is None


def test_a_stopped_run_is_whole_when_it_leaves(tmp_path: Path) -> None:
    with isolated():
        train(tiny(tmp_path / "straight"))
        parts = tiny(tmp_path / "parts", BEHIND)
        said = train_until(parts, 4)
        [newest] = checkpoints(tmp_path / "parts")[-1:]
        assert newest.name == "step-00000004"
        assert validate(newest) is None
        assert str(newest) in said
        train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_a_save_that_fails_ends_the_run(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {**BEHIND, "checkpoint.every_batches": 1}, batches=6)
    with isolated():
        train_until(config, 2)
        earlier = checkpoints(tmp_path / "run")[-1]
        (tmp_path / "run/checkpoints/step-00000004.tmp").write_text("in the way")
        with pytest.raises(OSError, match=r"step-00000004 could not be written, earlier ones are untouched"):
            train(resumed(config))
    assert validate(earlier) is None
    assert validate(tmp_path / "run/checkpoints/step-00000003") is None
    assert not (tmp_path / "run/checkpoints/step-00000006").exists()
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("kind", PARALLEL)
def test_workers_save_in_the_background_what_they_would_have_waited_for(pool: Pool, tmp_path: Path, kind: str) -> None:
    words = {**WORDS, "parallel": PARALLEL[kind], "checkpoint.every_batches": 1, "train.max_batches": 5}
    pool.run(whole, runs.tiny(tmp_path / "waits", words))
    pool.run(whole, runs.tiny(tmp_path / "behind", {**words, **BEHIND}))
    assert steps(tmp_path / "waits") == steps(tmp_path / "behind") == list(range(1, 6))
    for one, other in zip(checkpoints(tmp_path / "waits"), checkpoints(tmp_path / "behind"), strict=True):
        assert differing(content(one), content(other)) == []
        assert validate(other) is None


def test_workers_go_on_from_a_save_in_the_background(pool: Pool, tmp_path: Path) -> None:
    words = {**WORDS, "parallel": PARALLEL["fsdp"], "checkpoint.every_batches": 1, **BEHIND}
    pool.run(whole, runs.tiny(tmp_path / "straight", words))
    config = runs.tiny(tmp_path / "run", words)
    pool.run(broken, config, 4)
    pool.run(whole, apply_overrides(config, {"resume": "auto"}))
    one, other = (checkpoints(tmp_path / name)[-1] for name in ("straight", "run"))
    assert differing(content(one), content(other)) == []
