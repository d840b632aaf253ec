"""Start of a run from the weights of another one, and parameters that are not trained."""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.config import Config, ConfigError, Run
from fptt_dist.parallel.placement.shard import full_shard
from fptt_dist.tasks import Language, Task
from fptt_dist.training.checkpoint.content import ContentCheck
from fptt_dist.training.checkpoint.reader import SavedState
from fptt_dist.training.checkpoint.store import read_values
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.saved_run import evaluated_weights, find_checkpoint, run_config
from fptt_dist.training.vocabulary import read_vocabulary

LOG = logging.getLogger("fptt_dist")
SHOWN = 3  # names of a message


@torch.no_grad()
def start_from(network: nn.Module, config: Config, task: Task) -> None:
    """Copy the weights of the run that `model.init_from` names into a network, those that it evaluates.

    Neither that run's data nor its code are needed.

    Args:
        network: of the run that starts, with weights of its own.
        config: of that run.
        task: of that run.

    Raises:
        ConfigError: no run there, no such checkpoint, or names, shapes or symbols that do not fit.
    """
    source = config.model.source
    if source is None:
        return
    path, which = source
    try:
        theirs = run_config(path)
        folder = RunDirectory(theirs.model_copy(update={"run": Run(dir=str(path))}))
        checkpoint = find_checkpoint(folder, which, ContentCheck(None, theirs.train.batch_size))
    except ConfigError as error:
        raise ConfigError(f"model.init_from={config.model.init_from}: {error}") from error
    values = read_values(checkpoint, "state.json")
    own: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    chosen = list(own) if config.model.init_names is None else _matching(own, config.model.init_names, "init_names")
    _check_names(path, own, chosen, values["shapes"], strict=config.model.init_names is None)
    _check_symbols(path, own, chosen, task)
    weights, key = evaluated_weights(theirs, checkpoint, values)
    saved = SavedState.mean_of(checkpoint, values)
    for name in chosen:
        shard = full_shard(name, own[name])
        entry: Any = dict(saved.entries(shard)).get(key) if key else None
        value = saved.weight(shard) if entry is None else entry
        own[name].copy_(value.view(own[name].shape))
    LOG.warning("starts with %s of %s, %s of them", weights, checkpoint, len(chosen))


def freeze(network: nn.Module, config: Config, workers: int) -> None:
    """Leave parameters as they are in training, those that `model.freeze` names.

    Args:
        network: of the run.
        config: of the run.
        workers: how many there are.

    Raises:
        ConfigError: a name of none, no parameter left to train, or a strategy that would average them.
    """
    names = config.model.freeze
    if names is None:
        return
    shown = f"model.freeze=[{', '.join(names)}]"
    strategy = config.parallel.strategy
    if workers > 1 and strategy != "data_parallel":
        strategy = "consensus (auto)" if strategy == "auto" else strategy
        raise ConfigError(
            f"{shown} with parallel.strategy={strategy} and {workers} workers, which average or shard all parameters: "
            "type parallel.strategy=data_parallel, or leave model.freeze out"
        )
    own = dict(network.named_parameters())
    frozen = _matching(own, names, "freeze")
    if len(frozen) == len(own):
        raise ConfigError(f"{shown} leaves no parameter to train: name fewer of {_some(_beginnings(own))}")
    for name in frozen:
        own[name].requires_grad_(False)


def _matching(own: dict[str, Any], names: Sequence[str], key: str) -> list[str]:
    """Return the tensors with one of the names, or below one of them, in the network's order."""
    found = set()
    for given in names:
        matches = {name for name in own if name == given or name.startswith(f"{given}.")}
        if not matches:
            there = [*_beginnings(own), *own]
            near = get_close_matches(given, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_some(there)}"
            raise ConfigError(f"model.{key}: the network has no parameter {given}: {hint}")
        found |= matches
    return [name for name in own if name in found]


def _check_names(
    path: Path, own: dict[str, Tensor], chosen: list[str], theirs: dict[str, list[int]], *, strict: bool
) -> None:
    missing, others = [name for name in chosen if name not in theirs], [name for name in theirs if name not in own]
    if missing or (strict and others):
        sides = [f"{path} lacks {_some(missing)}"] if missing else []
        sides += [f"this network lacks {_some(others)}"] if others else []
        common = _beginnings({name: None for name in own if theirs.get(name) == list(own[name].shape)})
        hint = f"type model.init_names=[{', '.join(common)}] to take those that both have" if common else "none fits"
        raise ConfigError(f"model.init_from={path}: {' and '.join(sides)}: {hint}")
    differing = [name for name in chosen if theirs[name] != list(own[name].shape)]
    if differing:
        name = differing[0]
        apart = {each.partition(".")[0] for each in differing}
        fitting = [each for each in _beginnings(own) if each not in apart]
        hint = f"model.init_names=[{', '.join(fitting)}] to leave it new" if fitting else "that run's model.* keys"
        raise ConfigError(
            f"model.init_from={path}: {name} has shape {tuple(theirs[name])} there and {tuple(own[name].shape)} here: "
            f"type {hint}"
        )


def _check_symbols(path: Path, own: dict[str, Tensor], chosen: list[str], task: Task) -> None:
    """Refuse weights of single symbols where these are others: ids would mean other ones."""
    if not isinstance(task, Language):
        return
    theirs = read_vocabulary(path)
    of_symbols = [name for name in chosen if own[name].shape and own[name].shape[0] == task.vocabulary_size]
    if of_symbols and theirs != task.vocabulary:
        others = [name for name in _beginnings(own) if not any(n.startswith(name) for n in of_symbols)]
        raise ConfigError(
            f"model.init_from={path} was trained on another vocabulary, and {_some(of_symbols)} have a row for each "
            f"symbol: type model.init_names=[{', '.join(others)}]"
        )


def _beginnings(names: dict[str, Any]) -> list[str]:
    """Return the first parts of the names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
