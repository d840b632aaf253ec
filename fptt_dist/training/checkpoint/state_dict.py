"""Contents of a checkpoint, taken from the objects of a run and restored into them, bit for bit."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.fptt import CENTER
from fptt_dist.config import ConfigError
from fptt_dist.parallel import ParameterShard
from fptt_dist.parallel.placement.shard import full_shard
from fptt_dist.training.checkpoint.reader import SavedState


def optimizer_files(pieces: list[ParameterShard], optimizer: FPTT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer state: tensors named `parameter/entry`, and the plain values beside them.

    An entry with one number per parameter is 0-dimensional; all others have the parameter's shape, or are flat where
    this worker holds a shard.
    """
    index = _index(optimizer)
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        for key, value in state["state"].get(index[id(piece.tensor)], {}).items():
            if isinstance(value, Tensor):
                tensors[f"{piece.name}/{key}"] = value if _is_number(value, piece) else piece.view(value)
            else:
                entries.setdefault(piece.name, {})[key] = value
    return tensors, {"param_groups": state["param_groups"], "entries": entries}


def joined(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the plain values of workers that had different shards, or copies of their own: of a number the largest.

    One of them is the reference rate of the preconditioned metric, which may only be too large.

    Args:
        values: what `optimizer_files` gave on each.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in (named for each in values for named in each["entries"].items()):
        own = entries.setdefault(name, {})
        for key, value in entry.items():
            own[key] = max(own[key], value) if isinstance(own.get(key), float) else value
    return {"param_groups": values[0]["param_groups"], "entries": entries}


def load_optimizer(pieces: list[ParameterShard], optimizer: FPTT, saved: SavedState, values: dict[str, Any]) -> None:
    """Restore what `optimizer_files` gave, on any workers."""
    index = _index(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        entry = state.setdefault(index[id(piece.tensor)], {})
        entry.update(values["entries"].get(piece.name, {}))
        for key, value in saved.entries(piece):
            if _is_number(value, piece):
                entry[key] = value
                continue
            if key not in entry:  # a shard without optimizer state so far has W̄ = W, and zeros
                like = piece.tensor.detach().to(value.device, value.dtype, copy=True)
                entry[key] = like if key == CENTER else torch.zeros_like(like)
            piece.view(entry[key]).copy_(value.view(piece.view(entry[key]).shape))
    now = optimizer.state_dict()["param_groups"]
    groups = [
        {**_with_tuples(group, live), "params": own["params"]}
        for group, live, own in zip(values["param_groups"], optimizer.param_groups, now, strict=True)
    ]
    optimizer.load_state_dict({"state": {i: entry for i, entry in state.items() if entry}, "param_groups": groups})


def model_tensors(
    pieces: list[ParameterShard], model: nn.Module, shapes: dict[str, list[int]], dtypes: dict[str, str]
) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a tied one once.

    Args:
        pieces: the parameters.
        model: has the buffers; one that autocast gave another type is converted back.
        shapes: of parameters and buffers when the model was built.
        dtypes: their types, such as "float32".

    Raises:
        ConfigError: a user's layer or network gave a buffer another shape, which a resumed run could not restore.
    """
    buffers = dict(model.named_buffers())
    for name, buffer in buffers.items():
        if list(buffer.shape) != shapes[name]:
            raise ConfigError(
                f"model: the buffer {name} had shape {tuple(shapes[name])} and has {tuple(buffer.shape)} now, "
                "which no checkpoint can restore: keep its shape, or do not register it as a buffer"
            )
        buffers[name] = buffer.to(getattr(torch, dtypes[name]))
    return {**{piece.name: piece.view(piece.tensor) for piece in pieces}, **buffers}


@torch.no_grad()
def load_model(pieces: list[ParameterShard], model: nn.Module, saved: SavedState) -> None:
    """Copy the tensors into the worker's own, in place."""
    for piece in (*pieces, *(full_shard(name, buffer) for name, buffer in model.named_buffers())):
        target = piece.view(piece.tensor)
        target.copy_(saved.weight(piece).view(target.shape))


def described(model: nn.Module) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return shape and type, such as "float32", of each parameter and buffer by name; a tied one once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: list(tensor.shape) for name, tensor in tensors.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    )


def check_model(values: dict[str, Any], shapes: dict[str, list[int]], dtypes: dict[str, str], folder: Any) -> None:
    """Compare the shapes and types by name of a checkpoint with those of the model.

    Args:
        values: the content of the checkpoint's `state.json`.
        shapes: the model's.
        dtypes: the model's.
        folder: the checkpoint, for the message.

    Raises:
        ConfigError: names, shapes or types are another model's.
    """
    saved, own = ((each["shapes"], each["dtypes"]) for each in (values, {"shapes": shapes, "dtypes": dtypes}))
    differing = [
        f"{name}: {_shown(name, *saved, own[1])} in the checkpoint, {_shown(name, *own, saved[1])} in the model"
        for name in sorted(shapes.keys() | saved[0].keys())
        if any(one.get(name) != other.get(name) for one, other in zip(saved, own, strict=True))
    ]
    if differing:
        raise ConfigError(
            f"{folder} is a checkpoint of another model:\n  "
            + "\n  ".join(differing)
            + "\nType the model's old keys, or run.dir=… for a new run"
        )


def random_files(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of torch's, Python's and numpy's random streams in this process."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - a user's layer may draw from it
    version, internal, second = random.getstate()
    return tensors, {
        "python": [version, list(internal), second],
        "numpy": [[int(key) for key in np.asarray(keys)], int(position), int(has_gauss), float(gauss)],
    }


def load_random(tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device) -> None:
    """Restore the random streams.

    Raises:
        ConfigError: the checkpoint was written without a GPU and the run is on one.
    """
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda":
        if "cuda" not in tensors:
            raise ConfigError(
                "the checkpoint was written without a GPU, so it has no GPU random state: type device=cpu"
            )
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, internal, second = values["python"]
    random.setstate((version, tuple(internal), second))
    keys, position, has_gauss, gauss = values["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002


def _with_tuples(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Restore the tuples that the optimizer had, as JSON has none."""
    return {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()}


def _is_number(value: Tensor, piece: ParameterShard) -> bool:
    """Return whether an entry of the optimizer state is one number for a full tensor, such as Adam's step."""
    return value.dim() == 0 and piece.tensor.dim() > 0


def _index(optimizer: FPTT) -> dict[int, int]:
    """Return the index that `state_dict` gives each of the optimizer's tensors, by identity."""
    return {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}


def _shown(name: str, shapes: dict[str, list[int]], dtypes: dict[str, str], others: dict[str, str]) -> str:
    """Return a tensor's shape in words, with its type where the other one's differs."""
    if name not in shapes:
        return "nothing"
    return str(tuple(shapes[name])) + (f" {dtypes[name]}" if dtypes[name] != others.get(name, dtypes[name]) else "")
