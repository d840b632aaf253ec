"""What the tests of sharded runs share: which they are, and a run's state put together from its workers' parts."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment, ParameterShard
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.checkpoint.store import read_tensors, read_values
from fptt_dist.training.process.signals import StopFlag
from fptt_dist.training.trainer import Trainer
from tests.parallel.fault_driver import until
from tests.parallel.runs import Outcome, Watched, folder_of, open_trainer
from tests.parallel.runs import records as records
from tests.parallel.runs import train as train  # for test_offload.py

SHARDED: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
PARALLEL: dict[str, dict[str, Any]] = {
    **SHARDED,
    "single": {"strategy": "single"},
    "gradient": {"strategy": "data_parallel"},
    "consensus": {"strategy": "consensus", "sync_every": 3},
}
CLASSES = {how: "FullyShard NoSync" if how == "fsdp" else "DeepspeedZero NoSync" for how in SHARDED}
ADAM = {"name": "adam", "lr": 1e-3}


@dataclass
class Part:
    """What one worker holds: by parameter, where its run of elements starts, and the run of each tensor (flat).

    Attributes:
        shapes: of the whole parameters.
        starts: the first element's place.
        runs: `weight`, or the key of the optimizer's state, by parameter; 0-dimensional where it is one number.
        rates: the reference rate of the preconditioned metric, by parameter.
        random: torch's random stream.
        batch: batches trained.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    runs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    random: Tensor = field(default_factory=lambda: torch.empty(0))
    batch: int = 0


def part_of(trainer: Trainer) -> Part:
    """What this worker holds now."""
    pieces = trainer.engine.placement.shards()
    part = Part(random=torch.get_rng_state(), batch=trainer.state.position.batch)
    optimizer, plain = state_dict.optimizer_files(pieces, trainer.optimizer)
    part.rates = {name: entry["reference_rate"] for name, entry in plain["entries"].items()}
    weights = state_dict.model_tensors(pieces, trainer.network, trainer.shapes, trainer.dtypes)
    for piece in pieces:
        part.shapes[piece.name], part.starts[piece.name] = piece.shape, piece.start
        runs = {"weight": weights[piece.name]}
        runs |= {name.rpartition("/")[2]: t for name, t in optimizer.items() if name.rpartition("/")[0] == piece.name}
        part.runs[piece.name] = {key: _flat(tensor, piece) for key, tensor in runs.items()}
    return part


def _flat(tensor: Tensor, piece: ParameterShard) -> Tensor:
    own = tensor.detach().clone()
    return own if own.dim() == 0 and piece.shape else own.reshape(-1)


def assembled(parts: Iterable[Part]) -> dict[str, Tensor]:
    """Whole weights, W̄, u and moments (`parameter/key`), once it is sure that the parts cover each element once."""
    parts = list(parts)
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, shape in part.shapes.items():
            assert shapes.setdefault(name, shape) == shape
    whole: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        holders = sorted((part for part in parts if name in part.runs), key=lambda part: part.starts[name])
        holders = [part for part in holders if part.runs[name]["weight"].numel()]
        end = 0
        for part in holders:
            assert part.starts[name] == end, f"{name} has a gap, or an element twice, at {end}"
            end += part.runs[name]["weight"].numel()
        assert end == math.prod(shape), name
        for key, first in holders[0].runs[name].items():
            runs = [part.runs[name][key] for part in holders]
            if first.dim() == 0:
                assert all(torch.equal(run, first) for run in runs), f"{name}/{key}"
                whole[f"{name}/{key}"] = first
            else:
                whole[f"{name}/{key}"] = torch.cat(runs).view(shape)
    return whole


def saved(checkpoint: Path) -> dict[str, Tensor]:
    """The same from a checkpoint's files; where the workers have copies of their own, their mean."""
    values = read_values(checkpoint, "state.json")
    if values["replicated"]:
        return assembled([_written(checkpoint, values)])
    copies = [assembled(_written(checkpoint / "rank" / str(r), values) for r in ranks) for ranks in values["copies"]]
    shares = [math.fsum(values["shares"][rank] for rank in ranks) for ranks in values["copies"]]
    if len(copies) == 1:
        return copies[0]
    mean = {}
    for name, tensor in copies[0].items():
        sum_ = sum((copy[name].double() * s for copy, s in zip(copies, shares, strict=True)), torch.zeros(()))
        mean[name] = tensor if name.endswith("/step") else sum_.to(tensor.dtype)
    return mean


def _written(folder: Path, values: dict[str, Any]) -> Part:
    """A worker's files."""
    weights, optimizer = read_tensors(folder, "model.safetensors"), read_tensors(folder, "optimizer.safetensors")
    pieces = json.loads((folder / "pieces.json").read_text()) if (folder / "pieces.json").is_file() else {}
    part = Part()
    for name, weight in weights.items():
        shape = tuple(values["shapes"][name])
        start, stop = pieces.get(name, [0, math.prod(shape)])
        assert weight.numel() == stop - start
        part.shapes[name], part.starts[name] = shape, start
        runs = {"weight": weight}
        runs |= {key.rpartition("/")[2]: t for key, t in optimizer.items() if key.rpartition("/")[0] == name}
        part.runs[name] = {key: t if t.dim() == 0 and shape else t.reshape(-1) for key, t in runs.items()}
    return part


def saved_rates(checkpoint: Path) -> dict[str, float]:
    """The reference rates that a checkpoint's workers wrote, by parameter; each worker those of its own parts."""
    found: dict[str, float] = {}
    for state in sorted(checkpoint.glob("rank/*/state.json")):
        entries = json.loads(state.read_text())["optimizer"]["entries"]
        found |= {name: entry["reference_rate"] for name, entry in entries.items()}
    return found


def step(folder: Path, batch: int) -> Path:
    return folder / f"checkpoints/step-{batch:08d}"


def ended(outcomes: list[Outcome], batch: int = 10) -> dict[str, Tensor]:
    """The whole state at the end of a run."""
    return saved(step(folder_of(outcomes), batch))


def stopped(environment: LaunchEnvironment, config: Config, batch: int) -> Watched:
    """Start or resume a run, until the checkpoint of `batch` is written: the trainer as it is then."""
    trainer = open_trainer(environment, config)
    until(trainer, batch)
    return trainer


def broken(environment: LaunchEnvironment, config: Config, batch: int) -> Part:
    """The same as a job; what the worker holds."""
    return part_of(stopped(environment, config, batch))


def opened(environment: LaunchEnvironment, config: Config) -> Part:
    """What a worker holds when it has gone back to the newest checkpoint."""
    return part_of(open_trainer(environment, config))


def moved(environment: LaunchEnvironment, config: Config, checkpoint: Path | None = None) -> tuple[Part, Outcome]:
    """Resume a run, or start one at the checkpoint of another one, whose configuration is another: what a worker
    then holds, and what the run ends with.
    """
    trainer = open_trainer(environment, config)
    if checkpoint is not None:
        trainer.state.restore(checkpoint)
        trainer.state.best = None  # is in the other folder
    part = part_of(trainer)
    trainer.flag = StopFlag()
    result = trainer.fit(trainer.flag)
    trainer.outcome.values = (result.validation, result.value)
    return part, trainer.outcome


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    """The same names, and numbers to rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of what is not the same, bit for bit."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or not _bits_equal(one[name], other[name])
    ]


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
