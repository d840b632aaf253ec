"""Check that all workers run the same program on the same data: one message instead of a hang or a wrong run."""

import hashlib
import platform
from pathlib import Path

import torch
from torch import nn

from fptt_dist import version
from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel import Communicator
from fptt_dist.tasks import Task
from fptt_dist.training.run_dir import flat_values

SEQUENCES = 64
"""That are compared, at most."""


def check_consistency(everyone: Communicator, config: Config) -> None:
    """Compare configuration, program and libraries of all workers.

    Raises:
        ConfigError: on every worker, what differs and where.
    """
    if everyone.world == 1:
        return
    mine = {
        "configuration": hashlib.sha256(repr(sorted(flat_values(config).items())).encode()).hexdigest(),
        "code of fptt_dist": _code(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    for own in config.user_classes:
        there = own.file.is_file()
        mine[f"code of {own.key}"] = hashlib.sha256(own.file.read_bytes()).hexdigest() if there else "not there"
    said = everyone.all_gather_object(mine, name="same program")
    if all(other == said[0] for other in said):
        return
    values = everyone.all_gather_object(flat_values(config), name="same configuration")
    lines = []
    for rank, (other, keys) in enumerate(zip(said, values, strict=True)):
        lines += [
            f"  {key}: {values[0].get(key, 'not set')} on rank 0, {keys.get(key, 'not set')} on rank {rank}"
            for key in sorted(values[0].keys() | keys.keys())
            if values[0].get(key) != keys.get(key)
        ]
        lines += [
            f"  {thing}: {said[0][thing][:12]} on rank 0, {other[thing][:12]} on rank {rank}"
            for thing in mine
            if thing != "configuration" and other[thing] != said[0][thing]
        ]
    raise ConfigError("the workers do not run the same:\n" + "\n".join(lines))


def check_data(everyone: Communicator, task: Task, batch_size: int) -> None:
    """Compare the training data of all workers: the number of sequences, the first ones, and what the task keeps.

    With different numbers of batches the workers would wait for each other.

    Args:
        everyone: all workers.
        task: before its examples are partitioned.
        batch_size: of the global batch.

    Raises:
        ConfigError: on every worker, which rank has other data.
    """
    if everyone.world == 1:
        return
    mine = task.train_examples, _checksum(task, batch_size)
    found = everyone.all_gather_object(mine, name="same data")
    for rank, (examples, _) in enumerate(found):
        if examples != mine[0]:
            raise ConfigError(
                f"rank {everyone.rank} finds {mine[0]} training sequences, rank {rank} {examples}: give all the same "
                "data.root"
            )
    for rank, (_, digest) in enumerate(found):
        if digest != found[0][1]:
            raise ConfigError(
                f"rank {rank} finds other data than rank 0, as many sequences of other values: give all the same "
                "data.root, and the same files to a task of your own, which may draw random numbers from its seed alone"
            )


def check_weights(everyone: Communicator, network: nn.Module) -> None:
    """Compare the initial weights of a network that each worker was given.

    Raises:
        ConfigError: on every worker, which rank has others.
    """
    if everyone.world == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    found = everyone.all_gather_object(digest.hexdigest(), name="same weights")
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ConfigError(
                f"rank {rank} was given a network of other weights than rank 0: call torch.manual_seed(0) on each "
                "worker before the network is made"
            )


def _checksum(task: Task, batch_size: int) -> str:
    """Return the checksum of the task's state (which may say all its data), and the first sequences of an epoch."""
    digest = hashlib.sha256()
    for name, tensor in sorted(task.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    if task.train_examples >= batch_size:
        batch = task.train_batch(0, 0, batch_size, slice(0, min(SEQUENCES, batch_size))).without_padding()
        for tensor in (batch.inputs, batch.targets, batch.lengths):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _code() -> str:
    """Return the checksum of this program's source."""
    root = Path(version.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
