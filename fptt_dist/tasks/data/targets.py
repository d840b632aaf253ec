"""Kinds of targets with the metrics that fit them, and the targets of series as numbers."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import LARGEST, as_double
from fptt_dist.tasks.data.series import RawSeries, rows_of
from fptt_dist.tasks.data.splits import Examples

Targets = Literal["class", "labels", "value", "step_class", "step_value", "forecast"]
"""Kind of a task's targets: one class, several labels or numbers per sequence; one class or numbers per step; the next
h steps of some channels."""
_CLASSES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
FITTING: dict[Targets, tuple[str, ...]] = {
    "class": _CLASSES,
    "labels": ("macro_f1", "accuracy", "auroc"),
    "value": ("rmse", "mae"),
    "step_class": _CLASSES,
    "step_value": ("rmse", "mae"),
    "forecast": ("mase", "mae", "rmse"),
}
"""The metrics that fit a kind of targets; the first one is its default."""
SHOWN = 20  # classes of a message
EXACT = 2.0**53  # below it float64 has every whole number


def targets_of(part: Examples, values: NDArray, *, per_step: bool) -> NDArray:
    """Return the targets of a split's examples, step after step where there is one per step, from those of its file."""
    return values[rows_of(part.starts, part.lengths)[0]] if per_step else values[part.series]


def single_targets(raw: RawSeries, *, per_step: bool) -> NDArray:
    """Return the targets of a file as one class each, (N,) or (R,), text or integers; of padding any.

    Raises:
        DataError: several per series or step, or numbers that are no classes.
    """
    assert raw.targets is not None
    targets = np.asarray(raw.targets)  # no memory map, whose type results would have
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise DataError(
            f"{raw.path}: targets has {targets.shape[1]} columns: expected one class, or task.target=labels"
        )
    if targets.dtype.kind != "f":
        return targets
    whole = (targets == np.floor(targets)) & (np.abs(targets) < EXACT)  # neither NaN nor infinite
    row = _first(~whole, raw, per_step=per_step)
    if row is not None:
        raise DataError(
            f"{_place(raw, row, per_step=per_step)} has the class {targets[row]:g}: expected whole numbers or text, or "
            f"task.target={'step_value' if per_step else 'value'} for numbers"
        )
    return np.where(whole, targets, 0).astype(np.int64)


def _first(bad: NDArray, raw: RawSeries, *, per_step: bool) -> int | None:
    """Return the first row of targets of which one is bad and no padding; None if there is none."""
    rows: NDArray = bad if bad.ndim == 1 else np.any(bad, axis=1)
    if per_step:
        there = np.zeros(len(rows), bool)
        there[rows_of(raw.first_rows(), raw.lengths)[0]] = True
        rows = rows & there
    return int(np.argmax(rows)) if rows.any() else None


class Classes:
    """The classes of the training examples, in order.

    Attributes:
        names: what each is called.

    Raises:
        DataError: there is only one.
    """

    def __init__(self, train: Examples, *, per_step: bool) -> None:
        self._path = train.raw.path
        self._per_step = per_step
        self._known = np.unique(targets_of(train, single_targets(train.raw, per_step=per_step), per_step=per_step))
        self.names = [str(each) for each in self._known]
        if len(self.names) < 2:
            raise DataError(
                f"{self._path}: all training examples are of the class {self.names[0]}: expected at least two"
            )

    def encoded(self, raw: RawSeries) -> NDArray[np.int64]:
        """Return the place of each target of a file among the classes.

        Raises:
            DataError: a series or step has a class that no training example has.
        """
        targets = single_targets(raw, per_step=self._per_step)
        if (targets.dtype.kind == "U") != (self._known.dtype.kind == "U"):
            kinds = ("text", "numbers") if targets.dtype.kind == "U" else ("numbers", "text")
            raise DataError(f"{raw.path}: targets are {kinds[0]}, and those of {self._path} are {kinds[1]}")
        found = np.minimum(np.searchsorted(self._known, targets), len(self._known) - 1)
        row = _first(self._known[found] != targets, raw, per_step=self._per_step)
        if row is not None:
            raise DataError(
                f"{_place(raw, row, per_step=self._per_step)} has the class {targets[row]}, which no training example "
                f"has: expected one of {', '.join(self.names[:SHOWN])}{', …' * (len(self.names) > SHOWN)}"
            )
        return found.astype(np.int64)


def number_targets(raw: RawSeries, *, labels: bool, per_step: bool) -> NDArray[np.float64]:
    """Return the targets of a file as numbers, (N, D) or (R, D).

    Args:
        raw: the file's series.
        labels: whether each is 0 or 1.
        per_step: whether there is a target per step.

    Raises:
        DataError: text, a missing or infinite number, or a label that is none.
    """
    assert raw.targets is not None
    targets = np.asarray(raw.targets)
    if targets.dtype.kind not in "fiub":
        kind = "labels" if labels else "step_value" if per_step else "value"
        raise DataError(f"{raw.path}: targets are text: expected numbers with task.target={kind}")
    values = as_double(targets if targets.ndim == 2 else targets[:, None])
    bad = ~(np.abs(values) <= LARGEST)
    if labels:
        bad |= (values != 0) & (values != 1)
    row = _first(bad, raw, per_step=per_step)
    if row is not None:
        expected = "0 or 1" if labels else "a finite number"
        place = _place(raw, row, per_step=per_step)
        raise DataError(f"{place} has the target {values[row, np.argmax(bad[row])]:g}: expected {expected}")
    return values


def _place(raw: RawSeries, index: int, *, per_step: bool) -> str:
    """Return how messages call a target: its series, and of one per step the step."""
    if not per_step:
        return f"{raw.path}: {raw.name_of(index)}"
    first = raw.first_rows()
    series = int(np.searchsorted(first, index, side="right")) - 1
    return f"{raw.path}: {raw.name_of(series)}, step {index - int(first[series])}"


assert set(FITTING) == set(get_args(Targets))
