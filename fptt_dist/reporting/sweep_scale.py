"""Where the values of a sweep stand on an axis, and which colours they have."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from fptt_dist.config.values import show
from fptt_dist.reporting.metrics import LOG_METRICS
from fptt_dist.reporting.sweep_results import Point, SweepResults

SPAN = 30.0  # from the smallest to the largest value, beyond which an axis is logarithmic
FEW = 8  # values that each get a mark on an axis,
UNSET = "unset"
APART = 0.04  # where none is nearer to another, as a share of the axis


@dataclass(frozen=True)
class Scale:
    """The values of one key, or of the metric.

    Attributes:
        name: the key's.
        values: each once: numbers in their order, then others by their text, then None.
        numeric: whether they are all numbers, but for None.
        log: whether they are placed by their logarithms.
    """

    name: str
    values: list[Any]
    numeric: bool
    log: bool

    @property
    def labels(self) -> list[str]:
        """The values as text; "unset" for null, and where a run does not have the key."""
        return [UNSET if value is None else _short(value) for value in self.values]

    def index(self, value: Any) -> int:
        """The value's place among the others."""
        return [_order(each) for each in self.values].index(_order(value))

    def height(self, value: Any) -> float:
        """The value's place from 0 to 1; below 0 for None among numbers."""
        if not self.numeric:
            return self.index(value) / (len(self.values) - 1) if len(self.values) > 1 else 0.5
        if value is None:
            return -0.1
        numbers = [self._linear(each) for each in self.values if each is not None]
        low, high = min(numbers), max(numbers)
        return (self._linear(value) - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """Some values' places from 0 to 1, and their labels."""
        if not self.numeric:
            return [(self.height(value), label) for value, label in zip(self.values, self.labels, strict=True)]
        numbers = [value for value in self.values if value is not None]
        heights = [self.height(value) for value in numbers]
        if len(numbers) > FEW or any(above - below < APART for below, above in pairwise(heights)):
            numbers = self._round(numbers[0], numbers[-1])
        absent = [(self.height(None), UNSET)] if None in self.values else []
        return [(self.height(value), f"{value:.4g}") for value in numbers] + absent

    def _round(self, low: float, high: float) -> list[float]:
        """Round numbers from `low` to `high`."""
        locators = [LogLocator(), LogLocator(subs=(1.0, 2.0, 5.0)), MaxNLocator(6)][0 if self.log else 2 :]
        found = [[value for value in each.tick_values(low, high) if low <= value <= high] for each in locators]
        return next((values for values in found if len(values) >= 3), found[-1])

    def _linear(self, value: float) -> float:
        return math.log(value) if self.log else float(value)


def scale(name: str, values: Iterable[Any]) -> Scale:
    """The scale of these values."""
    distinct = [value for _, value in sorted({_order(value): value for value in values}.items())]
    numbers = [value for value in distinct if _is_number(value)]
    numeric = bool(numbers) and all(value is None or _is_number(value) for value in distinct)
    return Scale(name, distinct, numeric, numeric and numbers[0] > 0 and numbers[-1] > SPAN * numbers[0])


def is_log(results: SweepResults, values: Iterable[float]) -> bool:
    """Whether the metric is shown by its logarithm."""
    return results.metric in LOG_METRICS and all(value > 0 for value in values)


def colours(results: SweepResults, values: list[float]) -> tuple[Normalize, str]:
    """The scale of the metric's colours, and their map: the better, the darker."""
    low, high = min(values), max(values)
    log = is_log(results, values)
    if low == high:
        low, high = (low / 1.1, high * 1.1) if log else (low - 0.1, high + 0.1)
    return (LogNorm if log else Normalize)(low, high), "viridis_r" if results.higher_is_better else "viridis"


def finite(value: float | None) -> bool:
    """Whether it can be drawn."""
    return value is not None and math.isfinite(value)


def drawn(results: SweepResults) -> list[Point]:
    """The points with a value that can be drawn, best first."""
    return [point for point in results.points if point.measured]


def new_figure(width: float, height: float) -> Figure:
    """An empty one."""
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def title(results: SweepResults) -> str:
    """Task and metric."""
    return f"{results.task}: validation {results.metric}"


def save(figure: Figure | None, path: Path) -> Path | None:
    """Write a picture; without a figure, remove the one that is there."""
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, show(value))


def _short(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 24 else text[:23] + "…"
