"""A run that is killed at any step of its start or of a save goes on, and ends as if nothing had happened."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fptt_dist import train
from tests.training.helpers import MEMORY, assert_same_run, resumed, tiny, train_until

STARTING = ["versions.json", "config.yaml"]
SAVED = ["model.safetensors", "optimizer.safetensors", "task.safetensors", "state.json"]
OWN = ["own loss.safetensors", "own random.safetensors", "own state.safetensors", "own state.json"]


def _written(name: str) -> list[str]:
    return [f"write {name}", f"half of write {name}"]


def _replaced(name: str) -> list[str]:
    return [*_written(f"{name}.tmp"), f"rename {name}"]


NAMES = [
    *(step for name in STARTING for step in _replaced(name)),
    "remove step-00000004.tmp",
    *(step for name in [*SAVED, *OWN, "manifest.json"] for step in _written(name)),
    "remove step-00000004",
    "rename step-00000004",
    *_replaced("latest"),
    *_replaced("best"),
    "remove step-00000002",
    *_replaced("result.json"),
]
STEPS = [f"{number} {name}" for number, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    """What a program that kills a run at each step, each time a new one, saw."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.training.kill_driver", folder],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            check=True,
            timeout=240,
        )
        yield json.loads(done.stdout)


@pytest.mark.slow
def test_every_step_was_killed_once(report: dict[str, Any]) -> None:
    assert report["errors"] == ""
    assert list(report["steps"]) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_goes_on_after_a_kill(step: str, report: dict[str, Any]) -> None:
    seen = report["steps"][step]
    assert seen["killed"]
    assert seen["resumed"]
    assert seen["differing"] == []
    assert seen["result"]
    assert seen["leftovers"] == []


WANDERING = {"evaluate.every": 1, "optimizer.lr": 0.05, "checkpoint.keep_last": 1}  # validation gets better and worse


@pytest.mark.parametrize("pointer", ["gone", "stale", "empty"])
def test_the_best_checkpoint_is_known_without_its_pointer(pointer: str, tmp_path: Path) -> None:
    best = train(tiny(tmp_path / "straight", WANDERING, batches=20)).best_batch
    assert 1 < best < 18
    parts = tiny(tmp_path / "parts", WANDERING, batches=20)
    train_until(parts, best)
    path = tmp_path / "parts" / "checkpoints" / "best"
    if pointer == "gone":
        path.unlink()
    else:
        path.write_text("step-00000001\n" if pointer == "stale" else "")
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_a_best_checkpoint_that_is_lost_is_sought_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = train(tiny(tmp_path / "straight", WANDERING, batches=20)).best_batch
    parts = tiny(tmp_path / "parts", WANDERING, batches=20)
    train_until(parts, best + 2)
    (tmp_path / "parts" / "checkpoints" / f"step-{best:08d}" / "model.safetensors").unlink()
    outcome = train(resumed(parts))
    assert outcome.best_batch > best + 2
    assert f"step-{best:08d}, is lost (model.safetensors is missing): the best is sought anew" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS[NAMES.index("remove step-00000004.tmp") :])
def test_a_kill_leaves_the_earlier_checkpoint_or_the_later_one(step: str, report: dict[str, Any]) -> None:
    number = STEPS.index(step)
    left = report["steps"][step]["left"]
    whole = {name.split("/")[1] for name in left if name.endswith("manifest.json")}
    renamed = number > NAMES.index("rename step-00000004")
    pruned = number > NAMES.index("remove step-00000002")
    expected = {"step-00000002"} - ({"step-00000002"} if pruned else set()) | ({"step-00000004"} if renamed else set())
    assert whole - {"step-00000004.tmp"} == expected
