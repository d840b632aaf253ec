"""Faults that are known and not mended yet. Each test says what is right and is expected to fail.

They are strict: whoever mends a fault, knowingly or not, is told, and moves the test to its subject without the mark.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fptt_dist import train
from fptt_dist.training.checkpoint.store import MANIFEST, CheckpointStore, entry
from tests.training.helpers import checkpoints, resumed, steps, tiny, trainer_for


def known(fault: str, *errors: type[BaseException]) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=errors or AssertionError, reason=fault)


def _edit(checkpoint: Path, change: Callable[[Path], None] | None) -> None:
    """Change a checkpoint's files and make its manifest right for them again, or let it list none."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).unlink()
    if change is not None:
        change(checkpoint)
    written = (path for path in checkpoint.rglob("*") if path.is_file() and change is not None)
    files = {path.relative_to(checkpoint).as_posix(): entry(path) for path in written}
    (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "files": files}))


def _set(name: str, key: str, value: Any) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        values = json.loads((checkpoint / name).read_text())
        holder = values if key in values else values["position"]
        assert key in holder
        holder[key] = value
        (checkpoint / name).write_text(json.dumps(values))

    return change


def _tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / "model.safetensors")
        tensors["readout.weight"] = change(tensors["readout.weight"])
        save_file(tensors, checkpoint / "model.safetensors")

    return edit


CHANGES = {
    "a manifest that lists no files": None,
    "a tensor of another shape": _tensor(lambda weight: weight[:, :-1].contiguous()),
    "a tensor of another type": _tensor(torch.Tensor.double),
    "a batch below 0": _set("state.json", "batch", -5),
    "a cursor past the end": _set("state.json", "cursor", 10**9),
}


@pytest.mark.parametrize("change", CHANGES)
@known("content with right checksums is trusted", AssertionError, RuntimeError)
def test_a_checkpoint_that_makes_no_sense_is_skipped(change: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"checkpoint.every_batches": 2}, batches=4)
    train(config)
    (tmp_path / "run" / "result.json").unlink()
    newest = checkpoints(tmp_path / "run")[-1]
    assert steps(tmp_path / "run") == [2, 4]
    _edit(newest, CHANGES[change])
    assert trainer_for(resumed(config)).state.position.batch == 2


@known("the pointer to the best checkpoint may lead out of the run's folder")
def test_a_pointer_leads_nowhere_else(tmp_path: Path) -> None:
    for name in ("run", "other"):
        train(tiny(tmp_path / name, batches=2))
    (tmp_path / "run/checkpoints/best").write_text("../../other/checkpoints/step-00000002\n")
    best = CheckpointStore(tmp_path / "run/checkpoints").resolve_pointer("best")
    assert best is None or best.parent == tmp_path / "run/checkpoints"
