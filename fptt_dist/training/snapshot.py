"""What a checkpoint holds, taken from the objects of a run and put back into them, bit for bit."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT
from fptt_dist.config import ConfigError


def optimizer_files(model: nn.Module, optimizer: FPTT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors named `parameter/entry`, and the plain values beside them."""
    names = [name for name, _ in model.named_parameters()]
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{key}"] = value
            else:
                entries.setdefault(names[index], {})[key] = value
    return tensors, {"param_groups": state["param_groups"], "entries": entries}


def load_optimizer(model: nn.Module, optimizer: FPTT, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `optimizer_files` gave."""
    index = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(index[parameter], {})[key] = tensor
    for parameter, entry in values["entries"].items():
        state.setdefault(index[parameter], {}).update(entry)
    groups = [
        _with_tuples(group, now) for group, now in zip(values["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_model(model: nn.Module, tensors: dict[str, Tensor], folder: Any) -> None:
    """Copy the tensors into the model's own, in place.

    Raises:
        ConfigError: names or shapes are another model's.
    """
    own = model_tensors(model)
    differing = [
        f"{name}: {_shape(tensors.get(name))} in the checkpoint, {_shape(own.get(name))} in the model"
        for name in sorted(own.keys() | tensors.keys())
        if _shape(own.get(name)) != _shape(tensors.get(name))
    ]
    if differing:
        raise ConfigError(f"{folder} is a checkpoint of another model:\n  " + "\n  ".join(differing))
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def random_files(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's, Python's and numpy's random streams in this process."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - a user's cell may draw from it
    version, internal, second = random.getstate()
    return tensors, {
        "python": [version, list(internal), second],
        "numpy": [[int(key) for key in np.asarray(keys)], int(position), int(has_gauss), float(gauss)],
    }


def load_random(tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device) -> None:
    """Put the random streams back.

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
    """JSON has no tuples: give back those that the optimizer had."""
    return {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()}


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
