"""A run that is killed at any step of its start or of a save resumes, and ends as if nothing had happened."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fptt_dist.training.run import train
from tests.training.helpers import MEMORY, assert_same_run, resumed, tiny, train_until
from tests.training.kill_driver import CASES

STARTING = ["versions.json", "config.yaml", "network.json"]
SAVED = ["task.safetensors", "sync.safetensors", "state.json"]
OWN = [
    *("own loss.safetensors", "own random.safetensors", "own sync.safetensors", "own carried.safetensors"),
    "own state.json",
]
WEIGHTS = ["model.safetensors", "optimizer.safetensors"]
FILES = {
    "single": [*SAVED, *WEIGHTS, *OWN],
    "consensus": [*SAVED, *OWN, *(f"own {name}" for name in WEIGHTS)],  # where each worker has its own
}


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


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_goes_on_after_a_kill_at_every_step(case: str, subtests: pytest.Subtests) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        program = subprocess.run(
            [sys.executable, "-m", "tests.training.kill_driver", folder, case],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            check=True,
            timeout=240,
        )
    report = json.loads(program.stdout)
    assert report["errors"] == ""
    names = NAMES[case]
    assert list(report["steps"]) == [f"{number} {name}" for number, name in enumerate(names)]
    saving, renamed, pruned = (
        names.index(name) for name in ("remove step-00000004.tmp", "rename step-00000004", "remove step-00000002")
    )
    for number, (step, seen) in enumerate(report["steps"].items()):
        with subtests.test(step=step):
            left = seen.pop("left")
            assert seen == {"killed": True, "resumed": True, "differing": [], "result": True, "leftovers": []}
            if number >= saving:  # the earlier checkpoint is whole until the later one is
                whole = {name.split("/")[1] for name in left if name.endswith("manifest.json")}
                expected = {"step-00000002"} if number <= pruned else set()
                expected |= {"step-00000004"} if number > renamed else set()
                assert whole - {"step-00000004.tmp"} == expected


WANDERING = {
    "evaluate.every_batches": 1,
    "optimizer.lr": 0.05,
    "checkpoint.keep_last": 1,
}  # validation gets better and worse


def test_the_best_checkpoint_is_known_without_its_pointer(subtests: pytest.Subtests, tmp_path: Path) -> None:
    best = train(tiny(tmp_path / "straight", WANDERING, batches=20)).best_batch
    assert 1 < best < 18
    for pointer, text in {"gone": None, "stale": "step-00000001\n", "empty": ""}.items():
        with subtests.test(pointer=pointer):
            parts = tiny(tmp_path / pointer, WANDERING, batches=20)
            train_until(parts, best)
            path = tmp_path / pointer / "checkpoints" / "best"
            path.unlink() if text is None else path.write_text(text)
            train(resumed(parts))
            assert_same_run(tmp_path / "straight", tmp_path / pointer)


def test_a_best_checkpoint_that_is_lost_is_sought_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = train(tiny(tmp_path / "straight", WANDERING, batches=20)).best_batch
    parts = tiny(tmp_path / "parts", WANDERING, batches=20)
    train_until(parts, best + 2)
    (tmp_path / "parts" / "checkpoints" / f"step-{best:08d}" / "model.safetensors").unlink()
    outcome = train(resumed(parts))
    assert outcome.best_batch > best + 2
    assert f"step-{best:08d}, is lost (model.safetensors is missing): the best is sought anew" in caplog.text
