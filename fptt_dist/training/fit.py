"""Training from Python."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fptt_dist.config import Config, ConfigError, apply_overrides, load
from fptt_dist.config.values import show
from fptt_dist.history import load_to_train
from fptt_dist.tasks import Task
from fptt_dist.training.callbacks import Callback
from fptt_dist.training.given import Given
from fptt_dist.training.result import Result
from fptt_dist.training.run import train


def fit(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    task: Task | None = None,
    network: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    trust_code: bool = False,
) -> Result:
    """Train a run as the command `fptt-dist train` does; in a program that torchrun started, on all its workers.

    The random streams and settings of torch are afterwards as they were, and the objects too.

    Args:
        config: what a configuration's file says as a mapping, with its sections or with dotted keys; the path of a
            file, or the name of a packaged one; or a `Config`.
        task: data, loss and metric, in the place of `task.*`. With several workers each makes an equal one.
        network: `(x, state) → (y, state)` with its own output layer and an output for every step, in the place of
            `model.*`. A copy is trained, on the device of the run, from the weights that it has: with several workers
            these must be equal.
        callbacks: called while the run trains, on rank 0, in this order.
        trust_code: of the path of a run's own config.yaml: whether code that the run keeps may be executed.

    Returns:
        The result, with `path`, the run's folder, and `history`.

    Raises:
        ConfigError: a mistake in the configuration or the environment, or an object that cannot be trained.
        DataError: a mistake in the data.
        NonFiniteError: a loss or gradient was not finite.
        CallbackError: a callback raised an exception.
        Interrupted: Ctrl-C, or a signal: the run was saved, and `"resume": "auto"` resumes it.
        LostWorkerError: another worker died or did not respond in time.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks: {callback!r} is no object of a class that derives from fptt_dist.Callback: "
                "type callbacks=[MyCallback()]"
            )
    given = Given(task, None if network is None else copy.deepcopy(network).cpu(), tuple(callbacks))
    with _restored(task):
        return train(_configured(config, given, trust_code=trust_code), given=given)


def _configured(source: Config | Mapping[str, Any] | str | Path, given: Given, *, trust_code: bool) -> Config:
    """Return the configuration of a run with the objects that are given."""
    settings = given.settings()
    if isinstance(source, Config):
        return apply_overrides(source, settings)
    if isinstance(source, Mapping):
        return load(source, settings)
    words = [f"{key}={show(value)}" for key, value in settings.items()]
    return load_to_train(source, words, trust_code=trust_code, given=settings)


@contextmanager
def _restored(task: Task | None) -> Iterator[None]:
    """Put back, after the context, what a run changes in its process: random streams, torch's settings, the loss."""
    threads, flushes = torch.get_num_threads(), _flushes_denormals()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a program may draw from it
    loss = copy.deepcopy(getattr(task, "loss", None))  # it may learn an estimate
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushes)
            if task is not None and loss is not None:
                task.loss = loss


def _flushes_denormals() -> bool:
    """Return whether torch takes denormal numbers as 0."""
    return not bool(torch.tensor(1e-38) * 0.1)
