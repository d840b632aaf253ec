"""The metrics of a task: torchmetrics objects by name, which of them fit its targets, and their directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.targets import FITTING, Targets
from fptt_dist.user_code import UserCodeError, load_class

if TYPE_CHECKING:
    from torchmetrics import Metric

HIGHER_IS_BETTER = {name: name not in ("mae", "rmse", "mase") for names in FITTING.values() for name in names}


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics that a task is evaluated by, one of which is monitored.

    Attributes:
        targets: the kind of targets.
        listed: names, or PATH.py:CLASS of a user's torchmetrics.Metric without arguments; () for the default.
        monitor: the name of the monitored one, of a user's its CLASS; None: the first of them.
        size: C classes, or L labels; of numbers the D channels.
        scale: (D,), by which MASE divides the errors of each channel; needed for it alone. See `naive_scale`.

    Raises:
        DataError: a metric that is unknown or does not fit the targets, one listed twice, or a user's that cannot be
            used; `monitor` is none of them.
    """

    targets: Targets
    listed: Sequence[str] = ()
    monitor: str | None = None
    size: int = 1
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        names = self.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"task.metrics={_list(self.listed)} has {twice} twice: list it once")
        for entry in self._entries:
            self._check(entry)
        if self.monitor is not None and self.monitor not in names:
            raise DataError(
                f"task.monitor={self.monitor} is none of task.metrics={_list(self._entries)}: type one of "
                f"{', '.join(names)}"
            )
        self.higher_is_better  # noqa: B018 - a user's metric may not say it

    @property
    def names(self) -> list[str]:
        """The names under which values are recorded: of a user's metric its CLASS."""
        return [each.rpartition(":")[2] for each in self._entries]

    @property
    def monitored(self) -> str:
        """Name of the monitored metric."""
        return self.monitor or self.names[0]

    @cached_property
    def higher_is_better(self) -> bool:
        """Direction of the monitored metric."""
        entry = self._entries[self.names.index(self.monitored)]
        direction = own_metric(entry).higher_is_better if ":" in entry else HIGHER_IS_BETTER[entry]
        if direction is None:
            raise DataError(
                f"task.monitor={self.monitored}: its class does not say which values are better: set higher_is_better "
                "= True or False in it"
            )
        return direction

    def make(self) -> dict[str, "Metric"]:
        """Return new metrics by name; each takes `update(predictions, targets)` as `compared` returns them."""
        return dict(zip(self.names, map(self._make, self._entries), strict=True))

    @property
    def per_step(self) -> bool:
        """True where every step has a target."""
        return self.targets in ("step_class", "step_value")

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the metrics compare.

        Args:
            outputs: (N, O) of the network, N sequences or steps.
            targets: (N,) classes, (N, L) labels, or (N, …) as many numbers as outputs.

        Returns:
            Predictions in float64 and targets: probabilities (N, C) and classes (N,); probabilities (N, L) and labels
            (N, L), 0 or 1; numbers (N, D) twice, of a forecast with a row for each of its steps.
        """
        outputs = outputs.double()
        if self.targets in ("class", "step_class"):
            return outputs.softmax(-1), targets
        if self.targets == "labels":
            return outputs.sigmoid(), targets.long()
        return outputs.reshape(-1, self.size), targets.double().reshape(-1, self.size)

    @property
    def _entries(self) -> Sequence[str]:
        return self.listed or FITTING[self.targets][:1]

    def _check(self, entry: str) -> None:
        fitting = FITTING[self.targets]
        if ":" in entry:
            own_metric(entry)
        elif entry not in fitting:
            problem = f"{entry} does not fit targets of the kind {self.targets}"
            if entry not in HIGHER_IS_BETTER:
                problem = f"there is no metric {entry}"
            raise DataError(
                f"task.metrics={_list(self.listed)}: {problem}: list some of {', '.join(fitting)}, or PATH.py:CLASS"
            )

    def _make(self, entry: str) -> "Metric":
        if ":" in entry:
            return own_metric(entry)
        from fptt_dist.tasks import torch_metrics  # torchmetrics takes seconds to import

        if entry == "mase":
            assert self.scale is not None
            return torch_metrics.MeanAbsoluteScaledError(self.scale)
        if entry in ("mae", "rmse"):
            return torch_metrics.error_metric(squared=entry == "rmse")
        return torch_metrics.class_metric(entry, self.size, labels=self.targets == "labels")


def naive_scale(series: Sequence[Tensor]) -> Tensor:
    """Return MASE's scale: by channel, the mean absolute error of "as the step before" within the training series.

    Args:
        series: (T_i, D) each.

    Returns:
        The scale (D,), float64.

    Raises:
        DataError: a channel never changes, so that its scale would be 0.
    """
    steps = torch.cat([each.double().diff(dim=0) for each in series])
    scale = steps.abs().mean(0)
    still = (~(scale > 0)).nonzero().flatten().tolist()
    if still:
        raise DataError(
            f"task.metrics: mase divides by the mean change from step to step in the training split, and channel "
            f"{still[0]} never changes there: list mae or rmse instead, or forecast other channels"
        )
    return scale


def own_metric(entry: str) -> "Metric":
    """Return a new metric of a user's class, listed as PATH.py:CLASS.

    Raises:
        DataError: it cannot be loaded or made, is no torchmetrics.Metric, or cannot be combined over workers.
    """
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat

    file, _, name = entry.rpartition(":")
    start = f"task.metrics={entry}"
    try:
        kind = load_class(Path(file), name, Metric)
    except UserCodeError as error:
        raise DataError(f"{start}: {error}") from error
    try:
        metric = kind()
    except Exception as error:
        raise DataError(
            f"{start}: {name}() cannot be made ({type(error).__name__}: {error}): let it need no arguments"
        ) from error
    for state, reduction in metric._reductions.items():
        if isinstance(metric._defaults[state], list) and reduction is not dim_zero_cat:
            raise DataError(
                f"{start}: its state {state} is a list, which workers can only join: "
                f'type add_state("{state}", [], dist_reduce_fx="cat")'
            )
    return metric


def _list(listed: Sequence[str]) -> str:
    return f"[{', '.join(listed)}]"
