"""Checks that the content of a checkpoint makes sense: names, shapes, types and ranges, before anything is restored.

Right checksums say that the files are those that were written, or that somebody made them so. A checkpoint fits itself:
its tensors have the shapes and types that its own `state.json` states. One that does, and does not fit the model, is
another model's, which `state_dict.check_model` refuses by name.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from fptt_dist.algorithm.fptt import CENTER, SCALED_DUAL
from fptt_dist.config import ConfigError
from fptt_dist.tasks import DataError, Task
from fptt_dist.tasks.base import unlike
from fptt_dist.training.checkpoint.reader import MODEL, OPTIMIZER, PIECES, copies_of, rank_folder
from fptt_dist.training.checkpoint.store import MANIFEST, listed_files, read_tensors, read_values, step_of
from fptt_dist.training.train_state import Best, TrainState

SHARED = ("task.safetensors", "sync.safetensors", "state.json")
OWN = ("loss.safetensors", "random.safetensors", "sync.safetensors", "carried.safetensors", "state.json")
STATE = {
    *("run_id", "engine", "replicated", "copies", "shapes", "dtypes", "shares", "num_replicas", "position", "best"),
    *("schedulers", "validations"),
}
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, OSError)
"""Errors of reading JSON values of the wrong kind."""


@dataclass(frozen=True)
class ContentCheck:
    """The check of a run's checkpoints, apart from the workers that read them.

    Args:
        task: the run's, into which nothing is loaded; None: what belongs to it is not checked.
        batch_size: sequences per global batch.
    """

    task: Task | None
    batch_size: int

    def __call__(self, folder: Path) -> str | None:
        """Return why the content of a checkpoint with right checksums makes no sense; None if it does.

        Raises:
            ConfigError: it makes sense, but the task has other data now.
        """
        try:
            return self._problem(folder)
        except DataError as error:  # not skipped: an older checkpoint does not fit either
            raise ConfigError(f"{folder}: {error}") from error
        except (*DAMAGE, SafetensorError, RuntimeError) as error:
            return f"its content makes no sense ({type(error).__name__}: {error})"

    def _problem(self, folder: Path) -> str | None:
        values = read_values(folder, "state.json")
        _require(values.keys() == STATE, f"state.json has the keys {sorted(values)}")
        world = read_values(folder, MANIFEST)["world"]
        _check_workers(values, world)
        _check_files(folder, values, world)
        self._check_position(folder, values)
        _check_progress(values)
        for _, parts in copies_of(folder, values):
            _check_copy(parts, values["shapes"], values["dtypes"])
        if self.task is not None:
            problem = self.task.validate_state(read_tensors(folder, "task.safetensors"))
            _require(problem is None, f"task.safetensors: {problem}")
        _check_sync(read_tensors(folder, "sync.safetensors"), values["shapes"])
        for rank in range(world):
            self._check_rank(rank_folder(folder, rank), values)
        return None

    def _check_position(self, folder: Path, values: dict[str, Any]) -> None:
        position = values["position"]
        _require(position.keys() == {field.name for field in fields(TrainState)}, "position has other keys")
        for name, value in position.items():
            if name != "seconds":
                _require_count(f"position.{name}", value)
        _require_number("position.seconds", position["seconds"], least=0.0)
        batch, cursor, size = position["batch"], position["cursor"], self.batch_size
        _require(batch == step_of(folder), f"position.batch={batch} in {folder.name}")
        _require(position["epoch"] <= batch <= position["updates"], f"position={position}")
        _require(
            position["sequences"] == batch * size, f"{position['sequences']} sequences in {batch} batches of {size}"
        )
        within = cursor <= position["sequences"]
        if self.task is not None:
            # Twice: with data.partition=fixed the length of an epoch changes a little with the number of workers.
            within &= cursor < 2 * self.task.train_examples
        _require(within and cursor % size == 0, f"position.cursor={cursor}")

    def _check_rank(self, folder: Path, values: dict[str, Any]) -> None:
        """Check what one worker wrote for itself alone."""
        own = read_values(folder, "state.json")
        where = f"{folder.parent.name}/{folder.name}"
        _require(own.keys() == {"random", "carried", "optimizer"}, f"{where}/state.json has the keys {sorted(own)}")
        if self.task is not None:
            problem = unlike(read_tensors(folder, "loss.safetensors"), self.task.loss.state_dict())
            _require(problem is None, f"{where}/loss.safetensors: {problem}")
        _check_random(read_tensors(folder, "random.safetensors"), own["random"])
        _check_sync(read_tensors(folder, "sync.safetensors"), values["shapes"])
        _check_skeleton(own["carried"], read_tensors(folder, "carried.safetensors"))
        _require(isinstance(own["carried"], dict | None), "carried is no structure of states")
        _check_optimizer_values(own["optimizer"], values["shapes"])


def _check_workers(values: dict[str, Any], world: int) -> None:
    shares = values["shares"]
    _require_count("world", world, least=1)
    _require(isinstance(values["replicated"], bool), f"replicated={values['replicated']!r}")
    _require(len(shares) == world, f"{len(shares)} shares of {world} workers")
    for share in shares:
        _require_number("a worker's share", share, least=0.0)
    _require(math.isclose(math.fsum(shares), 1.0, rel_tol=1e-6), f"shares={shares}")
    _require_count("num_replicas", values["num_replicas"], least=1)
    ranks = sorted(rank for copy in values["copies"] for rank in copy)
    _require(ranks == list(range(world)), f"copies={values['copies']} of {world} workers")
    _require(values["shapes"].keys() == values["dtypes"].keys(), "shapes and dtypes have other names")
    for shape in values["shapes"].values():
        for size in shape:
            _require_count("a size in shapes", size)


def _check_files(folder: Path, values: dict[str, Any], world: int) -> None:
    """Check that the manifest lists every file that is read, and no other."""
    weights = {MODEL, OPTIMIZER}
    if len(values["copies"]) < world:
        weights.add(PIECES)
    apart = set() if values["replicated"] else weights
    names = {*SHARED, *(weights - apart)}
    names |= {f"rank/{rank}/{name}" for rank in range(world) for name in (*OWN, *apart)}
    listed = set(listed_files(folder))
    _require(listed == names, f"{MANIFEST} lists other files: {', '.join(sorted(listed ^ names))}")
    for part in (folder, *(rank_folder(folder, rank) for rank in range(world))):
        name = (part / PIECES).relative_to(folder).as_posix()
        _require(name in listed or not (part / PIECES).exists(), f"{name} is not in {MANIFEST}")


def _check_progress(values: dict[str, Any]) -> None:
    """Check the best validation and what the schedulers and the trigger have seen."""
    best = values["best"]
    if best is not None:
        _require(best.keys() == {field.name for field in fields(Best)}, "best has other keys")
        _require_count("best.batch", best["batch"], least=1)
        _require(best["batch"] <= values["position"]["batch"], f"best.batch={best['batch']} has not been trained yet")
        _require_count("best.since", best["since"])
        for name, value in {"value": best["value"], **best["metrics"]}.items():
            _require(_is_number(value), f"best has {name}={value!r}")
    schedulers = values["schedulers"]
    _require(all(isinstance(state, dict) for state in schedulers.values()), "schedulers have no values")
    _require(schedulers.keys() == {"lr", "alpha"}, f"schedulers of {sorted(schedulers)}")
    if "last_epoch" in schedulers["lr"]:
        _require_count("the scheduler's last_epoch", schedulers["lr"]["last_epoch"])
    for value in values["validations"] or ():
        _require(_is_number(value), f"a validation of {value!r}")


def _check_copy(parts: list[Path], shapes: Mapping[str, list[int]], dtypes: Mapping[str, str]) -> None:
    """Check the weights and the optimizer state of one copy, in one folder or sharded over several."""
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    for part in parts:
        pieces: dict[str, list[int]] = read_values(part, PIECES) if (part / PIECES).is_file() else {}
        tensors = read_tensors(part, MODEL)
        full = tensors.keys() - pieces.keys()
        _require(tensors.keys() <= shapes.keys(), f"{MODEL} has other names")
        _require(pieces.keys() <= tensors.keys(), f"{MODEL} has no {sorted(pieces.keys() - tensors.keys())}")
        held: dict[str, tuple[int, int]] = {}
        for name, tensor in tensors.items():
            count = math.prod(shapes[name])
            start, stop = held[name] = (0, count) if name in full else (pieces[name][0], pieces[name][1])
            _require(0 <= start <= stop <= count, f"{PIECES}: {name} from {start} to {stop} of {count}")
            _check_tensor(f"{MODEL}: {name}", tensor, shapes[name], stop - start)
            _require(str(tensor.dtype) == f"torch.{dtypes[name]}", f"{MODEL}: {name} is {tensor.dtype}")
            ranges[name].append((start, stop))
        _check_optimizer(read_tensors(part, OPTIMIZER), shapes, held)
    for name, found in ranges.items():
        _check_cover(name, found, math.prod(shapes[name]))


def _check_cover(name: str, found: list[tuple[int, int]], count: int) -> None:
    """Check that ranges of elements are all of a tensor, each once, or a copy of it in each folder."""
    _require(bool(found), f"{MODEL} has no {name}")
    if all(each == (0, count) for each in found):
        return
    end = 0
    for start, stop in sorted(each for each in found if each[0] < each[1]):
        _require(start == end, f"{PIECES}: {name} has a gap or an overlap at {start}")
        end = stop
    _require(end == count, f"{PIECES}: {name} ends at {end} of {count}")


def _check_optimizer(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]], held: Mapping[str, tuple[int, int]]
) -> None:
    """Check the optimizer state of the elements that a folder holds."""
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        _require(parameter in held, f"{OPTIMIZER}: {name} belongs to no parameter")
        start, stop = held[parameter]
        if tensor.dim() > 0 or key in (CENTER, SCALED_DUAL):
            _check_tensor(f"{OPTIMIZER}: {name}", tensor, shapes[parameter], stop - start)
        _require(tensor.is_floating_point(), f"{OPTIMIZER}: {name} is {tensor.dtype}")
        _require(bool(torch.isfinite(tensor).all()), f"{OPTIMIZER}: {name} is not finite")
        partner = {CENTER: SCALED_DUAL, SCALED_DUAL: CENTER}.get(key)
        _require(partner is None or f"{parameter}/{partner}" in tensors, f"{OPTIMIZER} has {name} alone")


def _check_tensor(name: str, tensor: Tensor, shape: list[int], count: int) -> None:
    """Check that a tensor has its full shape, or is flat with `count` elements, and is finite."""
    full = list(tensor.shape) == shape and tensor.numel() == count
    _require(full or list(tensor.shape) == [count], f"{name} has shape {tuple(tensor.shape)}")
    _require(bool(torch.isfinite(tensor).all()), f"{name} is not finite")


def _check_optimizer_values(values: dict[str, Any], shapes: Mapping[str, list[int]]) -> None:
    _require(values.keys() == {"param_groups", "entries"}, "the optimizer has other values")
    _require(len(values["param_groups"]) > 0, "the optimizer has no groups")
    for group in values["param_groups"]:
        _require_number("the learning rate", group["lr"], least=0.0)
        _require_number("alpha", group["alpha"], least=0.0)
    for name, entry in values["entries"].items():
        _require(name in shapes and isinstance(entry, dict), f"the optimizer has plain values of {name}")


def _check_random(tensors: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    """Check the states of the random streams, by loading them into streams that nothing draws from."""
    torch.Generator().set_state(tensors["torch"])
    if "cuda" in tensors:
        _require(tensors["cuda"].dtype == torch.uint8, f"the GPU's random state is {tensors['cuda'].dtype}")
    version, internal, second = values["python"]
    random.Random().setstate((version, tuple(internal), second))
    keys, position, has_gauss, gauss = values["numpy"]
    np.random.RandomState().set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))


def _check_sync(tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> None:
    """Check the state of the sync as far as names and counts say what it must be."""
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition("/")
        if kind in ("center", "dual", "mean_dual"):
            _require(parameter in shapes, f"sync.safetensors: {name} belongs to no parameter")
            shape = shapes[parameter]
            flat = tensor.dim() == 1 and tensor.numel() <= math.prod(shape)
            _require(flat or list(tensor.shape) == shape, f"sync.safetensors: {name} has shape {tuple(tensor.shape)}")
        if name in ("interval", "due", "counts"):
            _require(tensor.dim() == 1 and bool((tensor >= 0).all()), f"sync.safetensors: {name}={tensor}")
        integer = name in ("interval", "due")
        _require(tensor.is_floating_point() != integer, f"sync.safetensors: {name} is {tensor.dtype}")


def _check_skeleton(skeleton: Any, tensors: Mapping[str, Tensor]) -> None:
    """Check a structure for `unflatten_state`."""
    if skeleton is None:
        return
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        _require(content in tensors, f"carried.safetensors has no {content}")
        return
    _require(kind in ("dict", "list", "tuple"), f"a carried state is a {kind}")
    items: Iterable[Any] = content.values() if kind == "dict" else content
    for item in items:
        _check_skeleton(item, tensors)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_number(name: str, value: Any, *, least: float) -> None:
    _require(_is_number(value) and least <= value < math.inf, f"{name} is {value!r}")


def _require_count(name: str, value: Any, *, least: int = 0) -> None:
    _require(type(value) is int and least <= value < 2**63, f"{name} is {value!r}")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
