"""Axis positions and colors of a sweep's values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import Normalize

from fptt_dist.config.values import show
from fptt_dist.reporting.plots.style import color_norm, is_wide
from fptt_dist.reporting.runs.metrics import LOG_METRICS
from fptt_dist.reporting.sweeps.results import SweepResults

UNSET = "unset"


@dataclass(frozen=True)
class Scale:
    """The values of one key.

    Attributes:
        name: the key's name.
        values: the distinct values: numbers in order, then others by their text, then None.
        numeric: whether all but None are numbers.
        log: whether the axis is logarithmic.
    """

    name: str
    values: list[Any]
    numeric: bool
    log: bool

    @property
    def labels(self) -> list[str]:
        """The values as text; "unset" for null and where a run does not have the key."""
        return [UNSET if value is None else _short(value) for value in self.values]

    def index(self, value: Any) -> int:
        """Return the index of the value among the distinct values."""
        return [_order(each) for each in self.values].index(_order(value))


def scale(name: str, values: Iterable[Any]) -> Scale:
    """Return the scale of these values."""
    distinct = [value for _, value in sorted({_order(value): value for value in values}.items())]
    numbers = [value for value in distinct if _is_number(value)]
    numeric = bool(numbers) and all(value is None or _is_number(value) for value in distinct)
    return Scale(name, distinct, numeric, numeric and is_wide(numbers))


def is_log(results: SweepResults, values: Iterable[float]) -> bool:
    """Return whether the metric is shown on a logarithmic scale."""
    return results.metric in LOG_METRICS and all(value > 0 for value in values)


def colors(results: SweepResults, values: list[float]) -> tuple[Normalize, str]:
    """Return the norm and the color map of the metric: the better, the darker."""
    norm = color_norm(values, log=is_log(results, values))
    return norm, "viridis_r" if results.higher_is_better else "viridis"


def title(results: SweepResults) -> str:
    """Return the title of a sweep's plots: task and metric."""
    return f"{results.task}: validation {results.metric}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, show(value))


def _short(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 24 else text[:23] + "…"
