"""Series in a CSV or Parquet table in long format: one row per step, a column with the series' ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.columns import PANDAS_INDEX, SHOWN, Columns
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.series import RawSeries

SPLITS = ("train", "validation", "test")


def read_table(
    path: Path,
    *,
    series: str | None,
    time: str | None,
    targets: Sequence[str],
    features: Sequence[str] | None,
    split: str | None,
    per_step: bool,
    with_times: bool = False,
) -> RawSeries:
    """Read the series of a table; they are in the order of their first rows.

    Args:
        path: a .csv or .parquet file.
        series: column with the ids; None: all rows are one series.
        time: column that orders the rows of a series, numbers or dates; None: they are in order.
        targets: columns of the target, one or several; empty: there is none.
        features: columns of the channels; None: all that have no other use, which must hold numbers.
        split: column with "train", "validation" or "test"; None: the file does not say.
        per_step: whether a target belongs to a step and not to a series.
        with_times: whether the times are kept as text.

    Returns:
        The series; a missing feature is NaN. Of several targets, the last dimension has them in their order.

    Raises:
        DataError: the file cannot be read as a table; a column is missing, named for two uses, or holds values of the
            wrong kind; an id, time, target or split is missing; a time is there twice in one series; a target or split
            changes within a series.
    """
    columns = Columns(path)
    uses = {"task.series_column": series, "task.time_column": time, "task.split_column": split}
    named = [(key, name) for key, name in uses.items() if name is not None]
    named += [("task.target_columns", name) for name in targets]
    chosen = _other_columns(columns, [name for _, name in named]) if features is None else list(features)
    named += [("task.feature_columns", name) for name in chosen]
    for place, (key, name) in enumerate(named):
        columns.require(name, key)
        first = next((other for other, same in named[:place] if same == name), None)
        if first is not None:
            raise DataError(f"{path}: column {name!r} is named by {first} and again by {key}: type each column once")
    if not chosen:
        raise DataError(f"{path} has no column left for the features: expected at least one with numbers")
    columns.load([name for _, name in named], text=[name for name in (series, split) if name is not None])
    rows = _Rows(columns, series, time)
    inputs = np.empty((len(columns), len(chosen)), dtype=np.float64)
    hint = "" if features is not None else _choice(columns, chosen)
    for channel, name in enumerate(chosen):
        if features is None and columns.kind(name) == "empty":
            raise DataError(f"{path}, column {name!r}: no row has a value: fill it in{hint}")
        inputs[:, channel] = columns.features(name, hint)[rows.order]
    return RawSeries(
        path=path,
        inputs=inputs,
        lengths=rows.lengths,
        targets=_targets(columns, rows, targets, per_step),
        features=chosen,
        names=rows.names,
        split=None if split is None else _split(columns, rows, split),
        times=None if time is None or not with_times else columns.texts(time, rows.order),
    )


class _Rows:
    """The rows of a table, put together by series and, within one, in the order of time.

    Attributes:
        order: (R,) rows of the file.
        lengths: (N,) rows of each series.
        starts: (N,) the place in `order` at which each begins.
        names: ids of the series.
    """

    def __init__(self, columns: Columns, series: str | None, time: str | None) -> None:
        self._path = columns.path
        codes, self.names = np.zeros(len(columns), dtype=np.int64), [columns.path.stem]
        if series is not None:
            codes, self.names = columns.ids(series)
        times = None if time is None else columns.times(time)
        self.order = np.argsort(codes, kind="stable") if times is None else np.lexsort((times, codes))
        self.lengths = np.bincount(codes, minlength=len(self.names)).astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        if times is not None:
            sorted_codes, sorted_times = codes[self.order], times[self.order]
            same = (sorted_codes[1:] == sorted_codes[:-1]) & (sorted_times[1:] == sorted_times[:-1])
            if same.any():
                place = int(np.argmax(same))
                raise DataError(
                    f"{self._path}, series {self.names[sorted_codes[place]]!r}: rows {self.order[place] + 1} and "
                    f"{self.order[place + 1] + 1} have the same value in column {time!r}: expected one row per step"
                    + (" and series; type task.series_column=… if the file has several" if series is None else "")
                )

    def of_series(self, values: NDArray, name: str, expected: str) -> NDArray:
        """Return the one value that each series has.

        Args:
            values: (R,) in the file's order.
            name: of their column.
            expected: what the message says to do about a series with two values.

        Returns:
            (N,) values.

        Raises:
            DataError: a series has two.
        """
        ordered = values[self.order]
        found = ordered[self.starts]
        differs = ordered != np.repeat(found, self.lengths)
        if differs.any():
            place = int(np.argmax(differs))
            number = int(np.searchsorted(self.starts, place, side="right")) - 1
            first = self.starts[number]
            raise DataError(
                f"{self._path}, series {self.names[number]!r}: column {name!r} is {ordered[first].item()!r} in row "
                f"{self.order[first] + 1} and {ordered[place].item()!r} in row {self.order[place] + 1}: {expected}"
            )
        return found


def _other_columns(columns: Columns, used: Sequence[str]) -> list[str]:
    """Return the columns that have no other use, the features where none are named."""
    others = [name for name in columns.names if name not in used]
    for name in ("", PANDAS_INDEX):
        if name in others:
            column = f"column {columns.names.index(name) + 1} has no name" if not name else f"column {name!r} is there"
            raise DataError(
                f"{columns.path}: {column}; pandas writes its index so: write the table with index=False, or name the "
                "features in task.feature_columns"
            )
    return others


def _choice(columns: Columns, names: Sequence[str]) -> str:
    """Return what a message about a column that is no feature continues with: how to leave it out."""
    numbers = [name for name in names if columns.kind(name) == "number"]
    shown = ", ".join(numbers[:SHOWN]) + (", …" if len(numbers) > SHOWN else "")
    return f"; or leave it out: task.feature_columns=[{shown}]" if numbers else ""


def _targets(columns: Columns, rows: _Rows, names: Sequence[str], per_step: bool) -> NDArray | None:
    expected = "expected one value per series; for a target per step type task.target=step_class or step_value"
    found = [columns.targets(name) for name in names]
    if len({values.dtype.kind == "U" for values in found}) > 1:
        kinds = ", ".join(f"{name} ({columns.kind(name)})" for name in names)
        raise DataError(f"{columns.path}: task.target_columns has text and numbers, expected only one of them: {kinds}")
    if per_step:
        found = [values[rows.order] for values in found]
    else:
        found = [rows.of_series(values, name, expected) for values, name in zip(found, names, strict=True)]
    if not found:
        return None
    return found[0] if len(found) == 1 else np.stack(found, axis=-1)


def _split(columns: Columns, rows: _Rows, name: str) -> NDArray:
    codes, values = columns.ids(name)
    for code, value in enumerate(values):
        if value not in SPLITS:
            row = int(np.argmax(codes == code)) + 1
            raise DataError(
                f"{columns.path}, row {row}, column {name!r}: {value!r}, expected one of {', '.join(SPLITS)}"
            )
    return rows.of_series(np.array(values)[codes], name, "expected all of a series in one split")
