"""What a thread writes is what `save` was given, byte for byte, and what goes wrong on it is said."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.training.checkpoint import store as checkpoint
from fptt_dist.training.checkpoint.async_store import AsyncCheckpointStore
from fptt_dist.training.checkpoint.store import CheckpointStore, Files, read_tensors, read_values, validate
from tests.training.helpers import resumed, tiny, train_until, trainer_for

SECONDS = 60.0  # until a test has failed that waits for something that does not come


class Gate:
    """Holds every write of a checkpoint's file until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._write = checkpoint._write
        monkeypatch.setattr(checkpoint, "_write", self)

    def __call__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.reached.set()
        assert self.opened.wait(SECONDS)
        self._write(path, content)


class Opening(AsyncCheckpointStore):
    """Opens the gate when somebody waits for the save that it holds, and not before."""

    gate: Gate

    def _join(self) -> None:
        if self._thread is not None and threading.current_thread() is threading.main_thread():
            self.gate.opened.set()
        super()._join()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def contents(value: float = 1.0) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    return (
        {"model.safetensors": {"w": torch.full((3,), value)}, "state.json": {"batch": value}},
        {"own.safetensors": {"m": torch.full((2,), -value)}, "state.json": {"random": [value]}},
    )


def save(store: CheckpointStore, step: int, *, best: bool = False) -> Path:
    return store.save(step, *contents(float(step)), best=best)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def awkward(folder: Path) -> tuple[Files, Files]:
    whole = torch.arange(60.0).view(6, 10)
    tensors = {
        "strided": whole[:, ::2],
        "transposed": whole.t(),
        "expanded": torch.ones(3, 1).expand(3, 4),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "half": torch.tensor([1.0, float("inf")], dtype=torch.bfloat16),
        "bits": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.tensor([-0.0, float("nan"), 1e-42])),
        "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    return {"model.safetensors": tensors, "none.safetensors": {}}, {"state.json": {"a": [1, {"b": (None, 0.1)}]}}


def of_a_run(folder: Path) -> tuple[Files, Files]:
    config = tiny(folder, batches=6)
    train_until(config, 3)
    trainer = trainer_for(resumed(config))
    return trainer.state.collect(trainer.folder.run_id)


@pytest.mark.parametrize("given", [awkward, of_a_run])
def test_the_files_are_the_same(given: Callable[[Path], tuple[Files, Files]], tmp_path: Path) -> None:
    shared, own = given(tmp_path / "run")
    stores = [CheckpointStore(tmp_path / "now"), AsyncCheckpointStore(tmp_path / "behind")]
    for store in stores:
        assert store.save(7, shared, own, best=True) == store.root / "step-00000007"
        store.wait()
    assert validate(stores[1].path_of(7)) is None
    now, behind = (files(store.root) for store in stores)
    assert behind == now
    assert {"step-00000007/manifest.json", "latest", "best"} < now.keys()


def test_what_changes_after_save_returned_is_not_written(tmp_path: Path, gate: Gate) -> None:
    store = AsyncCheckpointStore(tmp_path)
    shared, own = contents()
    folder = store.save(1, shared, own)
    assert gate.reached.wait(SECONDS)
    assert files(tmp_path) == {}
    assert store.saved is None
    shared["model.safetensors"]["w"].fill_(2.0)
    own["own.safetensors"]["m"].zero_()
    own["state.json"]["random"].append(3.0)
    shared["state.json"]["batch"] = 4.0
    shared["late.json"] = {}
    gate.opened.set()
    store.wait()
    assert store.saved == folder
    CheckpointStore(tmp_path / "now").save(1, *contents())
    assert files(tmp_path / "now" / folder.name) == files(folder)
    store.save(2, shared, own)
    store.wait()
    assert read_tensors(store.path_of(2), "model.safetensors")["w"].tolist() == [2.0] * 3
    assert read_values(store.path_of(2), "rank/0/state.json") == {"random": [1.0, 3.0]}


def test_one_save_at_a_time(tmp_path: Path, gate: Gate) -> None:
    names: list[str] = []
    store = Opening(tmp_path, wait_for_all=names.append)
    store.gate = gate
    save(store, 1)
    assert gate.reached.wait(SECONDS)
    assert names == ["checkpoint begins"]
    save(store, 2)
    assert validate(store.path_of(1)) is None
    for step in range(3, 6):
        save(store, step)
        assert store.saved == store.path_of(step - 1) or store.saved == store.path_of(step)
    store.wait()
    assert names == ["checkpoint begins", "checkpoint written", "checkpoint done"] * 5


LOOKS: dict[str, Callable[[CheckpointStore], Path | None]] = {
    "newest": lambda store: store.newest(),
    "pointed": lambda store: store.resolve_pointer("latest"),
    "point": lambda store: store.set_pointer("latest", store.path_of(1)),
}


@pytest.mark.parametrize("look", LOOKS)
def test_who_looks_waits_and_leaves_the_error(look: str, tmp_path: Path, gate: Gate) -> None:
    store = Opening(tmp_path)
    store.gate = gate
    save(store, 1)
    seen = LOOKS[look](store)
    assert store.saved == store.path_of(1)
    assert look == "point" or seen == store.path_of(1)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    (tmp_path / "step-00000002.tmp").write_text("in the way")
    save(store, 2)
    assert LOOKS[look](store) == seen
    with pytest.raises(OSError, match=r"step-00000002 could not be written"):
        store.wait()


@pytest.mark.parametrize("next_call", ["wait", "save"])
def test_an_error_is_said_as_if_it_were_now_and_once(next_call: str, tmp_path: Path) -> None:
    store = AsyncCheckpointStore(tmp_path)
    save(store, 1, best=True)
    store.wait()
    before = files(tmp_path)
    (tmp_path / "step-00000002.tmp").write_text("in the way")
    with pytest.raises(OSError, match="earlier ones are untouched") as now:
        save(CheckpointStore(tmp_path), 2)
    save(store, 2)
    with pytest.raises(OSError) as behind:
        store.wait() if next_call == "wait" else save(store, 3)
    assert str(behind.value) == str(now.value)
    assert type(behind.value) is type(now.value)
    store.wait()
    (tmp_path / "step-00000002.tmp").unlink()
    assert files(tmp_path) == before  # the third was not begun either
    save(store, 4)
    assert store.newest() == store.path_of(4)


def test_no_error_is_lost(tmp_path: Path) -> None:
    store = AsyncCheckpointStore(tmp_path)
    store.save(1, {"state.json": {"no JSON": object()}}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.wait()
    store.wait()
    assert store.newest() is store.saved is None


def test_a_context_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointStore(tmp_path) as plain, AsyncCheckpointStore(tmp_path) as store:
        save(plain, 1)
        save(store, 2)
    assert validate(store.path_of(2)) is None
    (tmp_path / "step-00000003.tmp").write_text("in the way")
    with pytest.raises(OSError, match=r"step-00000003 could not be written"), AsyncCheckpointStore(tmp_path) as store:
        save(store, 3)
    with pytest.raises(ZeroDivisionError), AsyncCheckpointStore(tmp_path) as store:
        _ = save(store, 3), 1 / 0
    assert "step-00000003 could not be written, earlier ones are untouched" in caplog.messages[-1]
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [2, 7]), (2, [2, 6, 7]), (9, [1, 2, 3, 4, 5, 6, 7])])
def test_the_newest_and_the_best_are_kept(keep_last: int, kept: list[int], tmp_path: Path) -> None:
    store = AsyncCheckpointStore(tmp_path, keep_last=keep_last)
    for step in range(1, 8):
        save(store, step, best=step == 2)
    assert store.resolve_pointer("best") == store.path_of(2)
    assert store.resolve_pointer("latest") == store.newest() == store.path_of(7)
    assert sorted(int(folder.name[5:]) for folder in tmp_path.glob("step-*")) == kept


def run_code(code: str, folder: Path) -> str:
    head = (
        "import sys\nfrom pathlib import Path\nfrom tests.training.test_background import *\nroot = Path(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(folder)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
large = {"model.safetensors": {"w": torch.ones(1000)}}, {}
for store in CheckpointStore(root), AsyncCheckpointStore(root):
    save(store, 1)
    store.wait()
    before = files(root)
    try:
        store.save(2, *large)
        store.wait()
    except OSError as error:
        print(error)
    assert files(root) == before
    store.wait()
"""
    now, behind = run_code(code, tmp_path).splitlines()
    assert behind == now
    assert "step-00000002 could not be written, earlier ones are untouched: model.safetensors: " in now
    assert "File too large" in now


@pytest.mark.slow
def test_a_process_ends_without_its_save(tmp_path: Path) -> None:
    code = """
gate = Gate(pytest.MonkeyPatch())
gate.opened.set()
store = AsyncCheckpointStore(root)
save(store, 1)
store.wait()
gate.opened.clear()
gate.reached.clear()
save(store, 2)
assert gate.reached.wait(SECONDS)
"""
    run_code(code, tmp_path)
    assert CheckpointStore(tmp_path).newest() == tmp_path / "step-00000001"
    with AsyncCheckpointStore(tmp_path) as store:
        save(store, 2)
    assert CheckpointStore(tmp_path).newest() == tmp_path / "step-00000002"
