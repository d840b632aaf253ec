"""Objects that a program gives to `fptt_dist.fit` besides the configuration, or in place of what it would build."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from fptt_dist.config import GIVEN, ConfigError
from fptt_dist.tasks import Task
from fptt_dist.training.callbacks import Callback


@dataclass(frozen=True)
class Given:
    """The objects of one run.

    Attributes:
        task: data, loss and metric; None: as configured.
        network: `(x, state) → (y, state)` with its own output layer; None: as configured.
        callbacks: called on rank 0, in this order.
    """

    task: Task | None = None
    network: nn.Module | None = None
    callbacks: tuple[Callback, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the dotted keys that say in config.yaml which objects there are.

        Raises:
            ConfigError: a task that has no length.
        """
        found: dict[str, Any] = {}
        if self.task is not None:
            length, name = getattr(self.task, "length", None), type(self.task).__name__
            if type(length) is not int or length < 1:
                raise ConfigError(f"task={name}(…): {name}.length is {length!r}, not a whole number from 1 on")
            found |= {"task.name": GIVEN + name, "task.length": length}
        if self.network is not None:
            found["model.network"] = GIVEN + type(self.network).__name__
        return found


NOTHING = Given()
"""Of a run that is all as configured."""
