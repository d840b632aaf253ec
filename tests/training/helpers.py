"""What these tests share: tiny runs, how one is interrupted, and how two are compared at tolerance 0."""

import json
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fptt_dist.config import Config, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.callbacks import Callback
from fptt_dist.training.checkpoint.store import MANIFEST, OWN_CHECKSUM, checksum_of_manifest, entry
from fptt_dist.training.given import Given
from fptt_dist.training.network_file import keep_network
from fptt_dist.training.process.signals import Interrupted, StopFlag
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.device import build_device
from fptt_dist.training.trainer import Trainer
from fptt_dist.training.vocabulary import keep_vocabulary

TINY: dict[str, Any] = {
    "task.length": 12,
    "task.examples": 20,  # 5 batches an epoch
    "task.validation": 16,
    "task.test": 16,
    "model.hidden": 4,
    "fptt.windows": 3,
    "optimizer.lr": 1e-2,
    "train.batch_size": 4,
    "logging.every_batches": 1,
    "logging.tensorboard": False,
    "device": "cpu",
}
CLOCK = ("time", "seconds", "sequences_per_second", "data_wait", "memory_bytes", "peak_memory_bytes", "run_id")
Overrides = Mapping[str, Any]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a folder that needs no disk


def tiny(folder: Path, overrides: Overrides | None = None, *, batches: int = 10) -> Config:
    """A run of a second in `folder`."""
    base = Config(train=TrainSection(max_batches=batches))
    return apply_overrides(base, {**TINY, "run.dir": str(folder), **(overrides or {})})


@contextmanager
def isolated() -> Iterator[None]:
    """Put back what a run changes in its process: random streams, denormals, signal handlers; on one thread."""
    threads, torch_state, state, numpy_state = (
        torch.get_num_threads(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)  # the same sums everywhere, and quicker for tiny tensors
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(torch_state)
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_flush_denormal(False)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class StopAt(StopFlag):
    """As if SIGTERM arrived while the trainer was training its batch number `batch`."""

    def __init__(self, trainer: Trainer, batch: int) -> None:
        self.trainer = trainer
        self.batch = batch
        self.requeue = False

    @property
    def number(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return signal.SIGTERM if self.trainer.state.position.batch >= self.batch else None


def trainer_for(config: Config, callbacks: Sequence[Callback] = ()) -> Trainer:
    """The trainer of a run that starts or resumes, before its first batch."""
    folder = RunDirectory(config)
    device = build_device(config, LaunchEnvironment())
    trainer = Trainer(folder, LaunchEnvironment(), device, given=Given(callbacks=tuple(callbacks)))
    folder.open()
    keep_vocabulary(folder.path, trainer.task)
    keep_network(folder.path, trainer.task)
    newest = trainer.store.newest()
    if newest is not None:
        trainer.restore(newest)
    return trainer


def train_until(config: Config, batch: int) -> str:
    """Start or resume a run, and interrupt it after `batch`; the message a user reads."""
    torch.set_flush_denormal(True)
    trainer = trainer_for(config)
    try:
        trainer.fit(StopAt(trainer, batch))
    except Interrupted as interrupted:
        assert trainer.state.position.batch == batch
        return str(interrupted)
    raise AssertionError(f"the run was not interrupted at batch {batch}")


def resumed(config: Config, **overrides: Any) -> Config:
    """The same run with resume=auto."""
    return apply_overrides(config, {"resume": "auto", **overrides})


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def steps(run: Path) -> list[int]:
    """Their numbers of batches."""
    return [int(folder.name.removeprefix("step-")) for folder in checkpoints(run)]


def write_manifest(checkpoint: Path, **values: object) -> None:
    """Change values of a manifest, and make all its checksums right: those of the files, unless given, and its own."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).unlink()
    written = (path for path in checkpoint.rglob("*") if path.is_file())
    files = {path.relative_to(checkpoint).as_posix(): entry(path) for path in written}
    manifest = {**manifest, "files": files, **values}
    (checkpoint / MANIFEST).write_text(json.dumps({**manifest, OWN_CHECKSUM: checksum_of_manifest(manifest)}))


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """The records of metrics.jsonl of one kind: "train" or "evaluation"."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def without_clock(value: Any) -> Any:
    """The same values without what a clock, or the memory of the process, decides."""
    if isinstance(value, dict):
        return {key: without_clock(item) for key, item in value.items() if key not in CLOCK}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def content(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and value of a checkpoint by `file:name`."""
    everything: dict[str, Any] = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.suffix == ".safetensors":
            everything.update({f"{name}:{key}": tensor for key, tensor in load_file(path).items()})
        elif path.suffix == ".json" and path.name != "manifest.json":
            everything[name] = without_clock(json.loads(path.read_text()))
    return everything


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not the same, bit for bit."""
    return [name for name in sorted(one.keys() | other.keys()) if not _same(one.get(name), other.get(name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and hold what a checkpoint must hold."""
    newest = checkpoints(one)[-1], checkpoints(other)[-1]
    assert newest[0].name == newest[1].name
    left, right = content(newest[0]), content(newest[1])
    apart = "" if left["state.json"]["replicated"] else "rank/0/"
    weights = tuple(f"{apart}model.safetensors:{part}" for part in ("recurrent.", "module.gru."))
    centers = [f"{apart}optimizer.safetensors:{part}.weight/center" for part in ("readout", "module.head.0")]
    assert any(name.startswith(weights) for name in left)
    assert any(name in left for name in centers)
    assert differing(left, right) == []


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, estimates, random streams, metrics and result of two finished runs are equal bit for bit."""
    assert_same_checkpoint(one, other)
    for kind in ("train", "evaluation"):
        assert without_clock(records(one, kind)) == without_clock(records(other, kind))
    assert without_clock(result(one)) == without_clock(result(other))
