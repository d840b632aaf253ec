"""Weights & Biases."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fptt_dist.config import Config, ConfigError
from fptt_dist.training.callbacks import BatchEnd, Callback, RunStart, Validation
from fptt_dist.training.result import Result

LOG = logging.getLogger("fptt_dist")
FINISH_SECONDS = 30.0  # to upload at the end: a job that must end has not much more, and all is on the disk too


class WandbCallback(Callback):
    """Write a run's configuration, records, validations and result to Weights & Biases.

    The run there has the identity of the run here, so a resumed run continues it. A failure of wandb's is a warning:
    the run continues without it.

    Args:
        project: the run's, there.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, project: str) -> None:
        if find_spec("wandb") is None:
            raise ConfigError(
                f"logging.wandb={project}: the package wandb is not installed: type pip install -e '.[wandb]', or "
                "logging.wandb=null"
            )
        self.project = project
        self._run: Any = None

    def on_start(self, event: RunStart) -> None:
        """Start or continue the run there."""
        self._try(lambda: self._begin(event))

    def on_batch_end(self, event: BatchEnd) -> None:
        """Write a training record."""
        if event.record is not None:
            values = {f"train/{key}": value for key, value in _numbers(event.record) if key != "batch"}
            self._log(values, event.batch)

    def on_validation(self, event: Validation) -> None:
        """Write the metrics."""
        self._log({f"validation/{name}": value for name, value in event.metrics.items()}, event.batch)

    def on_end(self, result: Result) -> None:
        """Write the result as the summary, and end the run there."""
        self._try(lambda: self._run and self._run.summary.update(dict(_numbers({"result": asdict(result)}))))
        self._finish(0)

    def on_error(self, error: BaseException) -> None:
        """End the run there, as failed."""
        self._finish(1)

    def _begin(self, event: RunStart) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project=self.project,
            id=event.run_id,
            name=event.folder.name,
            config={**event.config.model_dump(mode="json"), "workers": event.workers},
            dir=str(event.folder),
            resume="allow",
            allow_val_change=True,  # of keys that may change when a run resumes
            reinit="create_new",
            settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
        )

    def _log(self, values: dict[str, Any], batch: int) -> None:
        self._try(lambda: self._run and self._run.log(values, step=batch))

    def _finish(self, code: int) -> None:
        self._try(lambda: self._run and self._run.finish(exit_code=code))
        self._run = None

    def _try(self, action: Callable[[], Any]) -> None:
        """Call wandb; after an error never again."""
        try:
            action()
        except Exception as error:
            self._run = None
            LOG.warning(
                "logging.wandb=%s: %s: %s: the run continues without it, metrics.jsonl has all records",
                self.project,
                type(error).__name__,
                error,
            )


def trackers(config: Config) -> list[Callback]:
    """Return the callbacks that a configuration asks for.

    Raises:
        ConfigError: their package is not installed.
    """
    return [] if config.logging.wandb is None else [WandbCallback(config.logging.wandb)]


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield numbers and strings with their names, those within lists and mappings behind a slash."""
    for key, value in values.items():
        if isinstance(value, int | float | str):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}/{name}", inner) for name, inner in _numbers(value))
        elif isinstance(value, list):
            yield from _numbers({f"{key}/{k:03d}": inner for k, inner in enumerate(value, 1)})
