"""A run that was trained: its network with the weights that it evaluates, read from a checkpoint without a trainer."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fptt_dist.algorithm.averaging import AVERAGE, AVERAGED
from fptt_dist.algorithm.fptt import CENTER
from fptt_dist.config import Config, ConfigError, Run, objects_of
from fptt_dist.config import load as load_config
from fptt_dist.history import require_config, require_schema
from fptt_dist.models import AwdLstm, Network, UserNetwork
from fptt_dist.parallel import Communicator, LaunchEnvironment
from fptt_dist.parallel.placement.shard import full_shard
from fptt_dist.tasks import Task, TaskShape
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.checkpoint.content import ContentCheck
from fptt_dist.training.checkpoint.reader import SavedState, plain_optimizer_values
from fptt_dist.training.checkpoint.store import CheckpointStore, read_tensors, read_values
from fptt_dist.training.evaluation import evaluate
from fptt_dist.training.network_file import read_network
from fptt_dist.training.process.resume_hint import hint_of_workers
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.device import build_device, prepare_torch
from fptt_dist.training.setup.factory import build_model, exit_refused, weights_to_evaluate
from fptt_dist.training.setup.task_factory import build_task
from fptt_dist.trust import trusted


@dataclass
class SavedRun:
    """A run's network as one of its checkpoints has it.

    Attributes:
        folder: the run's folder.
        config: its configuration, with the paths of the user's files that may be executed.
        checkpoint: the checkpoint's folder.
        network: in evaluation mode, with the weights that the run evaluates; their mean where workers had their own.
        weights: W̄, W, or W's mean over updates.
        device: where the network is.
        shape: its sizes.
        input: how its inputs are prepared, see `Task.input_description`.
        task: its data, loss and metric, with the checkpoint's state; None where they were not asked for.
    """

    folder: RunDirectory
    config: Config
    checkpoint: Path
    network: Network | AwdLstm | UserNetwork
    weights: Literal["center", "weights", "average"]
    device: torch.device
    shape: TaskShape
    input: dict[str, Any]
    task: Task | None


def evaluate_run(path: Path, which: str = "best", *, trust_code: bool = False) -> dict[str, Any]:
    """Return the metrics of a run's checkpoint.

    Args:
        path: the run's folder.
        which: "best" or "latest".
        trust_code: see `open_run`.

    Returns:
        "validation" and "test", the monitored metric, and "metrics", all by name at "validation" and "test".

    Raises:
        ConfigError: no run there, or no such checkpoint.
    """
    run = open_run(path, which, trust_code=trust_code, with_task=True)
    assert run.task is not None
    with exit_refused(run.config):
        metrics = {
            split: evaluate(run.network, run.task, Communicator(), split, run.device)
            for split in ("validation", "test")
        }
    return {**{split: values[run.task.metric] for split, values in metrics.items()}, "metrics": metrics}


def load(
    run: str | Path,
    checkpoint: Literal["best", "latest"] = "best",
    *,
    trust_code: bool = False,
    network: nn.Module | None = None,
) -> nn.Module:
    """Return the network of a run, in evaluation mode, with the weights that the run evaluates.

    Neither the task nor its data are needed.

    Args:
        run: the run's folder.
        checkpoint: the best one in validation, or the newest.
        trust_code: whether code that the run's folder keeps may be executed: a layer or network of the author's.
        network: of a run that was given one: another one that was made in the same way, of which a copy gets the
            weights.

    Returns:
        `(x, state) → (y, state)`, time-major, on the device that the run computes on.

    Raises:
        ConfigError: no run there, no such checkpoint, or code that may not be executed.
    """
    return open_run(Path(run), checkpoint, trust_code=trust_code, network=network).network


def open_run(
    path: Path,
    which: str = "best",
    *,
    trust_code: bool = False,
    with_task: bool = False,
    network: nn.Module | None = None,
) -> SavedRun:
    """Return a run with the weights of its "best" or "latest" checkpoint.

    Args:
        path: the run's folder.
        which: "best" or "latest".
        trust_code: whether code that the folder keeps may be executed, see `trusted`.
        with_task: whether the task is needed, and its data.
        network: see `load`.

    Raises:
        ConfigError: no run there, no such checkpoint, one of another model, or code that may not be executed.
    """
    saved = trusted(run_config(path), path, trust_code=trust_code)
    config = saved.model_copy(update={"run": Run(dir=str(path))})  # it may have been moved
    folder = RunDirectory(config)
    environment = LaunchEnvironment()
    device = build_device(config, environment)
    prepare_torch(device, environment)
    kept = read_network(path)
    task = build_task(config) if with_task or kept is None else None
    checkpoint = find_checkpoint(folder, which, ContentCheck(task, config.train.batch_size))
    if task is not None:
        task.load_state_dict(read_tensors(checkpoint, "task.safetensors"))
        with exit_refused(config):
            kept = kept or (TaskShape.of(task), task.input_description())
    assert kept is not None
    if network is not None and "network" not in objects_of(config):
        raise ConfigError(f"{path} was given no network: leave network=… out")
    given = None if network is None else copy.deepcopy(network).cpu()
    built = build_model(config, kept[0], given).to(device)
    weights = _load_weights(built, config, checkpoint)
    return SavedRun(folder, config, checkpoint, built.eval(), weights, device, *kept, task)


def run_config(path: Path) -> Config:
    """Return the configuration of a run by its folder.

    Raises:
        ConfigError: no run there, or one of another version.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    require_schema(path)
    require_config(path)
    return load_config(path / "config.yaml")


def find_checkpoint(folder: RunDirectory, which: str, check: ContentCheck) -> Path:
    """Return the folder of a run's "best" or "latest" checkpoint.

    Raises:
        ConfigError: it has none, or none that is valid.
    """
    store = CheckpointStore(folder.checkpoints, check=check)
    found = store.resolve_pointer("best") if which == "best" else store.newest()
    if found is None:
        newest = store.newest() if which == "best" else None
        workers = None if newest is None else read_values(newest, "manifest.json")["world"]
        path = folder.path
        if newest is None and store.has_any():
            raise ConfigError(f"none of the checkpoints of {path} is valid, for the reasons above: put a copy back")
        raise ConfigError(f"{path} has no complete {which} checkpoint yet: {hint_of_workers(path, workers)}")
    return found


@torch.no_grad()
def _load_weights(network: nn.Module, config: Config, checkpoint: Path) -> Literal["center", "weights", "average"]:
    """Load the weights that the run evaluates; return which these are."""
    values = read_values(checkpoint, "state.json")
    state_dict.check_model(values, *state_dict.described(network), checkpoint)
    shards = [full_shard(name, parameter) for name, parameter in network.named_parameters()]
    saved = SavedState.mean_of(checkpoint, values)
    state_dict.load_model(shards, network, saved)
    weights, key = evaluated_weights(config, checkpoint, values)
    for shard in shards:
        entry: Any = dict(saved.entries(shard)).get(key) if key else None
        if entry is not None:  # a parameter that never had a gradient has none
            shard.tensor.copy_(entry.view(shard.shape))
    return weights


def evaluated_weights(
    config: Config, checkpoint: Path, values: dict[str, Any]
) -> tuple[Literal["center", "weights", "average"], str | None]:
    """Return which weights a run evaluates at a checkpoint, and their key in the optimizer's state; None of W itself.

    Args:
        config: of the run.
        checkpoint: its folder.
        values: the content of its `state.json`.
    """
    averaged = config.evaluate.weights == "auto" and _has_average(plain_optimizer_values(checkpoint, values))
    weights = "average" if averaged else weights_to_evaluate(config)
    return weights, {"average": AVERAGE, "center": CENTER}.get(weights)


def _has_average(optimizer_values: list[dict[str, Any]]) -> bool:
    """Return whether there is a mean of W over updates, as `WeightAverage.started` does."""
    return all(group.get(AVERAGED) for group in optimizer_values[0]["param_groups"])
