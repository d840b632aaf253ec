"""A checkpoint folder is whole or not used."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fptt_dist
from fptt_dist.config import ConfigError
from fptt_dist.training.checkpoint import store as checkpoint_module
from fptt_dist.training.checkpoint.run_state import RunState
from fptt_dist.training.checkpoint.store import MANIFEST, CheckpointStore, validate
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup import task_factory
from tests.training.helpers import (
    assert_same_checkpoint,
    checkpoints,
    content,
    differing,
    resumed,
    steps,
    tiny,
    train_until,
    trainer_for,
    write_manifest,
)
from tests.training.toys import Stream

WEIGHTS = {"model.safetensors", "optimizer.safetensors"}
FILES = {
    "rank/0/loss.safetensors",
    "task.safetensors",
    "sync.safetensors",
    "state.json",
    "rank/0/random.safetensors",
    "rank/0/sync.safetensors",
    "rank/0/carried.safetensors",
    "rank/0/state.json",
}


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_schema(folder: Path) -> None:
    """Flip one bit of the schema's number: 6 becomes 7, or 4."""
    flip(folder / MANIFEST, (folder / MANIFEST).read_bytes().index(b'"schema_version": ') + len('"schema_version": '))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda f: flip(f / "model.safetensors"), "model.safetensors is corrupt"),
    "flipped_json": (lambda f: flip(f / "rank/0/state.json", 20), "rank/0/state.json is corrupt"),
    "truncated": (lambda f: truncate(f / "optimizer.safetensors"), r"optimizer.safetensors has \d+ bytes instead of"),
    "empty": (lambda f: (f / "state.json").write_bytes(b""), "state.json has 0 bytes instead of"),
    "missing": (lambda f: (f / "rank/0/random.safetensors").unlink(), "rank/0/random.safetensors is missing"),
    "no_manifest": (lambda f: (f / MANIFEST).unlink(), "no manifest.json: it was not finished"),
    "empty_manifest": (lambda f: (f / MANIFEST).write_bytes(b""), "manifest.json cannot be read"),
    "binary_manifest": (lambda f: (f / MANIFEST).write_bytes(b"\xff\x00\xfe"), "manifest.json cannot be read"),
    "list_manifest": (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
    "null_manifest": (lambda f: (f / MANIFEST).write_text("null"), "manifest.json cannot be read"),
    "no_checksum": (lambda f: (f / MANIFEST).write_text('{"schema_version": 7}'), "manifest.json is corrupt"),
    "flipped_schema": (flip_schema, "manifest.json is corrupt: its own checksum differs"),
    "null_files": (lambda f: write_manifest(f, files=None), "manifest.json cannot be read"),
    "list_files": (lambda f: write_manifest(f, files=[]), "manifest.json cannot be read"),
    "strange_file": (lambda f: write_manifest(f, files={"model.safetensors": 3}), "manifest.json cannot be read"),
    "half_file": (lambda f: write_manifest(f, files={"state.json": {"bytes": 3}}), "manifest.json cannot be read"),
    "strange_version": (lambda f: write_manifest(f, schema_version="new"), "manifest.json cannot be read"),
    "infinite_version": (lambda f: write_manifest(f, schema_version=float("inf")), "manifest.json cannot be read"),
}


def test_a_damaged_checkpoint_is_skipped(
    subtests: pytest.Subtests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tiny(tmp_path / "parts", {"checkpoint.every_batches": 2}, batches=6)
    train_until(parts, 4)
    for damage, (harm, problem) in DAMAGE.items():
        with subtests.test(damage=damage):
            found = CheckpointStore(Path(shutil.copytree(tmp_path / "parts" / "checkpoints", tmp_path / damage)))
            harm(found.path_of(4))
            caplog.clear()
            assert found.newest() == found.path_of(2)
            (said,) = caplog.messages
            assert re.search(rf"step-00000004 is skipped, the previous one is used: {problem}", said)
    flip(checkpoints(tmp_path / "parts")[-1] / "model.safetensors")
    caplog.clear()
    train(resumed(parts))
    assert any(text.endswith("step-00000002") and text.startswith("resumed from") for text in caplog.messages)
    train(tiny(tmp_path / "straight", batches=6))
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "parts")


def test_a_run_without_a_valid_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    """It would replace what a copy of a checkpoint could still bring back."""
    run = tmp_path / "run"
    config = tiny(run, {"checkpoint.every_batches": 2}, batches=4)
    train(config)
    for folder in checkpoints(run):
        flip(folder / "model.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in (lambda: train(resumed(config)), lambda: evaluate_run(run), lambda: evaluate_run(run, "latest")):
        with pytest.raises(ConfigError, match=rf"^none of the checkpoints (in|of) {run}.* is valid, for the reasons"):
            command()
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert changed <= {run / "config.yaml"}  # which has resume=auto now


def test_a_pointer_leads_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("run", "other"):
        train(tiny(tmp_path / name, batches=2))
    pointer = tmp_path / "run/checkpoints/best"
    store = CheckpointStore(pointer.parent)
    assert store.resolve_pointer("best") == pointer.parent / "step-00000002"
    elsewhere = ["../../other/checkpoints/step-00000002", str(tmp_path / "other/checkpoints/step-00000002"), "step-2"]
    for text in (*elsewhere, "", ".", "step-00000002/../../..", "step-00000002\nstep-00000002", "\0", "9" * 10**6):
        pointer.write_text(f"{text}\n")
        assert store.resolve_pointer("best") is None
        assert "is skipped: it names" in caplog.messages[-1]
        assert len(caplog.messages[-1]) < 400
    pointer.write_bytes(b"\xff\xfe")
    assert store.resolve_pointer("best") is None


def test_every_byte_of_a_manifest_may_be_wrong(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=1))
    folder = checkpoints(tmp_path / "run")[-1]
    whole = (folder / MANIFEST).read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        flip(folder / MANIFEST, place)
        if validate(folder) is None:
            unnoticed.append(place)
        (folder / MANIFEST).write_bytes(whole)
    assert unnoticed == []


def test_leftovers_of_a_killed_save_are_no_checkpoint(tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", {"checkpoint.every_batches": 2}, batches=6)
    train_until(parts, 3)
    left = tmp_path / "run" / "checkpoints" / "step-00000004.tmp"
    shutil.copytree(checkpoints(tmp_path / "run")[-1], left)
    (left / "extra.safetensors").write_bytes(b"half")
    train(resumed(parts))
    assert steps(tmp_path / "run") == [4, 6] or steps(tmp_path / "run") == [5, 6]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not list((tmp_path / "run").rglob("extra*"))


@pytest.mark.parametrize("version", [8, 11])
def test_a_newer_schema_is_refused(version: int, tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=6)
    train_until(parts, 3)
    folder = checkpoints(tmp_path / "run")[-1]
    write_manifest(folder, schema_version=version)
    before = content(folder)
    with pytest.raises(ConfigError) as caught:
        train(resumed(parts))
    assert str(caught.value) == (
        f"{folder} has checkpoint schema {version}, and this version of fptt_dist reads up to 7: update fptt_dist"
    )
    assert differing(content(folder), before) == []


@pytest.mark.parametrize("version", [5, 0])
def test_an_older_schema_is_refused(version: int, tmp_path: Path) -> None:
    parts = tiny(tmp_path / "run", batches=6)
    train_until(parts, 3)
    folder = checkpoints(tmp_path / "run")[-1]
    write_manifest(folder, schema_version=version)
    before = content(folder)
    with pytest.raises(ConfigError) as caught:
        train(resumed(parts))
    assert str(caught.value) == (
        f"{folder} has checkpoint schema {version} of an earlier fptt_dist, this one reads 7: continue with the "
        "version in versions.json, or type run.dir=… for a new run"
    )
    assert differing(content(folder), before) == []


def test_an_older_schema_is_no_damage_that_may_be_skipped(tmp_path: Path) -> None:
    """Earlier whole checkpoints do not save a folder of another version; a folder that is not whole is only skipped."""
    parts = tiny(tmp_path / "run", {"checkpoint.every_batches": 2}, batches=6)
    train_until(parts, 4)
    write_manifest(checkpoints(tmp_path / "run")[-1], schema_version=1)
    with pytest.raises(ConfigError, match=r"step-00000004 has checkpoint schema 1 of an earlier fptt_dist"):
        train(resumed(parts))
    with pytest.raises(ConfigError, match=r"step-00000004 has checkpoint schema 1 of an earlier fptt_dist"):
        evaluate_run(tmp_path / "run", "latest")


@pytest.mark.parametrize("strategy", ["single", "data_parallel", "consensus", "hierarchical"])
def test_the_manifest_is_written_last_and_lists_the_rest(strategy: str, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", {"parallel.strategy": strategy}, batches=2))
    (folder,) = checkpoints(tmp_path / "run")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {key: manifest[key] for key in ("schema_version", "step", "world")} == {
        "schema_version": 7,
        "step": 2,
        "world": 1,
    }
    apart = "rank/0/" if strategy in ("consensus", "hierarchical") else ""
    assert set(manifest["files"]) == FILES | {f"{apart}{name}" for name in WEIGHTS}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert max(times, key=lambda path: times[path]).name == MANIFEST
    for name, described in manifest["files"].items():
        assert described["bytes"] == (folder / name).stat().st_size


def test_nothing_is_pickled(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=2))
    files = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ""}
    assert {path.name for path in files if not path.suffix} == {"latest", "best"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK"))  # a pickle, and the archive of torch.save
    source = Path(fptt_dist.__file__).parent
    in_memory = source / "training" / "data_workers.py"  # what a run sends to processes that it starts itself
    for path in (path for path in source.rglob("*.py") if source / "configs" not in path.parents and path != in_memory):
        assert not re.search(r"torch\.(load|save)\(|^\s*(import|from) (pickle|dill|joblib)", path.read_text(), re.M), (
            path
        )


def store(tmp_path: Path, keep_last: int) -> CheckpointStore:
    return CheckpointStore(tmp_path, keep_last=keep_last)


def save(store: CheckpointStore, step: int, *, best: bool = False) -> None:
    store.save(step, {"model.safetensors": {"w": torch.full((3,), float(step))}}, {"state.json": {}}, best=best)


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [2, 7]), (2, [2, 6, 7]), (9, [1, 2, 3, 4, 5, 6, 7])])
def test_the_newest_and_the_best_are_kept(keep_last: int, kept: list[int], tmp_path: Path) -> None:
    checkpoint_store = store(tmp_path, keep_last)
    for step in range(1, 8):
        save(checkpoint_store, step, best=step == 2)
    assert sorted(int(folder.name[5:]) for folder in tmp_path.glob("step-*")) == kept
    assert checkpoint_store.resolve_pointer("best") == checkpoint_store.path_of(2)
    assert checkpoint_store.resolve_pointer("latest") == checkpoint_store.newest() == checkpoint_store.path_of(7)


def test_a_damaged_later_folder_does_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    checkpoint_store = store(tmp_path, 1)
    save(checkpoint_store, 4)
    save(checkpoint_store, 8)
    truncate(tmp_path / "step-00000008" / "model.safetensors")
    save(checkpoint_store, 5)
    assert checkpoint_store.newest() == checkpoint_store.path_of(5)


def test_a_whole_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    checkpoint_store = store(tmp_path, 2)
    save(checkpoint_store, 3)
    before = (tmp_path / "step-00000003" / MANIFEST).stat().st_mtime_ns
    save(checkpoint_store, 3, best=True)
    assert (tmp_path / "step-00000003" / MANIFEST).stat().st_mtime_ns == before
    assert checkpoint_store.resolve_pointer("best") == checkpoint_store.path_of(3)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tiny(tmp_path / "small", batches=2))
    large = tiny(tmp_path / "large", {"model.hidden": 5}, batches=2)
    train_until(large, 1)
    shutil.rmtree(tmp_path / "large" / "checkpoints")
    shutil.copytree(tmp_path / "small" / "checkpoints", tmp_path / "large" / "checkpoints")
    with pytest.raises(ConfigError) as caught:
        train(resumed(large))
    assert "is a checkpoint of another model:" in str(caught.value)
    assert "recurrent.weight_ih_l0: (16, 2) in the checkpoint, (20, 2) in the model" in str(caught.value)
    assert "readout.weight: (1, 4) in the checkpoint, (1, 5) in the model" in str(caught.value)


def test_another_cells_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tiny(tmp_path / "one", batches=2))
    deep = tiny(tmp_path / "two", {"model.layers": 2}, batches=2)
    train_until(deep, 1)
    shutil.rmtree(tmp_path / "two" / "checkpoints")
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints")
    with pytest.raises(ConfigError, match=r"recurrent.weight_hh_l1: nothing in the checkpoint, \(16, 4\) in the model"):
        train(resumed(deep))


def as_if_by_three(folder: Path) -> None:
    """Make one process's checkpoint one of three, whose shares of the batch were 2, 1 and 1 of 4 sequences."""
    values = json.loads((folder / "state.json").read_text())
    by_three = {"shares": [0.5, 0.25, 0.25], "num_replicas": 3, "copies": [[0], [1], [2]]}
    (folder / "state.json").write_text(json.dumps({**values, **by_three}))
    for rank in (1, 2):
        shutil.copytree(folder / "rank/0", folder / f"rank/{rank}")
    write_manifest(folder, world=3)
    assert validate(folder) is None


def test_the_number_of_processes_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was equal everywhere stays as it is; only the random streams, which nothing here draws from, are new."""
    train(tiny(tmp_path / "straight", batches=6))
    parts = tiny(tmp_path / "parts", batches=6)
    train_until(parts, 3)
    folder = checkpoints(tmp_path / "parts")[-1]
    as_if_by_three(folder)
    with caplog.at_level(logging.WARNING):
        train(resumed(parts))
    assert (
        f"{folder} was written by 3 workers, this run has 1: weights and optimizer state are theirs, random "
        "streams start afresh"
    ) in caplog.text
    one, other = (content(checkpoints(tmp_path / name)[-1]) for name in ("straight", "parts"))
    assert differing(one, other) == ["rank/0/random.safetensors:torch", "rank/0/state.json"]
    states = [values["rank/0/state.json"] for values in (one, other)]
    for state in states:
        assert set(state.pop("random")) == {"python", "numpy"}
    assert states[0] == states[1]


def test_states_that_go_on_from_batch_to_batch_cannot_be_dealt_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Stream())
    parts = tiny(tmp_path / "run", batches=8)
    train_until(parts, 3)
    folder = checkpoints(tmp_path / "run")[-1]
    as_if_by_three(folder)
    with pytest.raises(ConfigError) as caught:
        train(resumed(parts))
    assert str(caught.value) == (
        f"{folder} was written by 3 workers, this run has 1, and the recurrent states carried from batch to batch "
        "cannot be redistributed: start 3, or save at an epoch's end, where there are none"
    )


def test_at_an_epochs_end_there_are_no_such_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Stream())
    parts = tiny(tmp_path / "run", batches=8)
    train_until(parts, 5)
    as_if_by_three(checkpoints(tmp_path / "run")[-1])
    assert train(resumed(parts)).batches == 8


def test_each_byte_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a save, and by a resume, also where the checkpoint is the best one too."""
    hashed: list[Path] = []
    real = checkpoint_module._checksum
    monkeypatch.setattr(checkpoint_module, "_checksum", lambda path: hashed.append(path) or real(path))
    collected: list[int] = []
    collect = RunState.collect
    monkeypatch.setattr(RunState, "collect", lambda self, run_id: collected.append(1) or collect(self, run_id))
    config = tiny(tmp_path / "run", {"checkpoint.every_batches": 3, "evaluate.every_batches": 3}, batches=6)
    train_until(config, 3)
    (folder,) = checkpoints(tmp_path / "run")
    files = sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    assert sorted(path.name for path in hashed) == files
    assert (folder.parent / "best").read_text().strip() == folder.name
    assert collected == [1]
    hashed.clear()
    trainer_for(resumed(config))
    assert sorted(path.name for path in hashed) == files
