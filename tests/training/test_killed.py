"""A run that is killed at any step of its start or of a save goes on, and ends as if nothing had happened."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fptt_dist import train
from tests.training.helpers import MEMORY, assert_same_run, resumed, tiny, train_until
from tests.training.kill_driver import CASES

STARTING = ["versions.json", "config.yaml"]
SAVED = ["task.safetensors", "strategy.safetensors", "state.json"]
OWN = [
    *("own loss.safetensors", "own random.safetensors", "own strategy.safetensors", "own carried.safetensors"),
    "own state.json",
]
WEIGHTS = ["model.safetensors", "optimizer.safetensors"]
FILES = {
    "single": [*SAVED, *WEIGHTS, *OWN],
    "consensus": [*SAVED, *OWN, *(f"own {name}" for name in WEIGHTS)],  # where each worker has its own
}
Reports = Callable[[str], dict[str, Any]]


def _written(name: str) -> list[str]:
    return [f"write {name}", f"half of write {name}"]


def _replaced(name: str) -> list[str]:
    return [*_written(f"{name}.tmp"), f"rename {name}"]


NAMES = {
    case: [
        "link .lock",
        *(step for name in STARTING for step in _replaced(name)),
        "remove step-00000004.tmp",
        *(step for name in [*files, "manifest.json"] for step in _written(name)),
        "remove step-00000004",
        "rename step-00000004",
        *_replaced("latest"),
        *_replaced("best"),
        "remove step-00000002",
        *_replaced("result.json"),
    ]
    for case, files in FILES.items()
}
STEPS = {case: [f"{number} {name}" for number, name in enumerate(names)] for case, names in NAMES.items()}
SAVING = [  # from the first step of the save on
    (case, step) for case in CASES for step in STEPS[case][NAMES[case].index("remove step-00000004.tmp") :]
]


@pytest.fixture(scope="module")
def report() -> Reports:
    """What a program that kills a run of a case at each step, each time a new one, saw."""
    done: dict[str, dict[str, Any]] = {}

    def of(case: str) -> dict[str, Any]:
        if case not in done:
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                program = subprocess.run(
                    [sys.executable, "-m", "tests.training.kill_driver", folder, case],
                    cwd=Path(__file__).parents[2],
                    stdout=subprocess.PIPE,
                    check=True,
                    timeout=240,
                )
            done[case] = json.loads(program.stdout)
        return done[case]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_step_was_killed_once(case: str, report: Reports) -> None:
    assert report(case)["errors"] == ""
    assert list(report(case)["steps"]) == STEPS[case]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [(case, step) for case in CASES for step in STEPS[case]])
def test_goes_on_after_a_kill(case: str, step: str, report: Reports) -> None:
    seen = report(case)["steps"][step]
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
@pytest.mark.parametrize(("case", "step"), SAVING)
def test_a_kill_leaves_the_earlier_checkpoint_or_the_later_one(case: str, step: str, report: Reports) -> None:
    number = STEPS[case].index(step)
    left = report(case)["steps"][step]["left"]
    whole = {name.split("/")[1] for name in left if name.endswith("manifest.json")}
    renamed = number > NAMES[case].index("rename step-00000004")
    pruned = number > NAMES[case].index("remove step-00000002")
    expected = {"step-00000002"} - ({"step-00000002"} if pruned else set()) | ({"step-00000004"} if renamed else set())
    assert whole - {"step-00000004.tmp"} == expected
