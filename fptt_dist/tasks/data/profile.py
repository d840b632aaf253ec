"""A look at a file with series, before there is a configuration for it: uses of its columns, kind of its target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fptt_dist.tasks.data.columns import PANDAS_INDEX, SUFFIXES, Columns
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import blocks
from fptt_dist.tasks.data.series import RawSeries, read_arrays, rows_of
from fptt_dist.tasks.data.tables import read_table

# Names of columns, in lower case and without "_", "-" and blanks; the first that the table has is taken.
SERIES = ("series", "seriesid", "id", "sequence", "sequenceid", "uniqueid", "caseid", "subject", "patient", "trial")
TIME = ("time", "timestamp", "datetime", "date", "step", "t", "ds")
SPLIT = ("split", "subset", "partition")
TARGET = ("target", "label", "class", "y")
MOST_CLASSES = 50  # integers with more values are quantities
Kind = Literal["class", "labels", "value"]
PerStep = Literal["step_class", "step_value"]
PER_STEP: dict[Kind, PerStep] = {"class": "step_class", "labels": "step_value", "value": "step_value"}


@dataclass(frozen=True)
class TableColumns:
    """Uses of a table's columns.

    Attributes:
        series: the ids; None: the file is one series.
        time: the order of a series' rows; None: that of the file.
        targets: what is learned; none of a forecast.
        features: the channels.
        split: "train", "validation" or "test"; None: no column says.
        left_out: columns that are none of these, each with the kind of its values.
    """

    series: str | None
    time: str | None
    targets: list[str]
    features: list[str]
    split: str | None
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Profile:
    """Content of a file with series.

    Attributes:
        raw: its series.
        columns: of a table; None: arrays.
        target: what can be learned from it, as task.target.
        classes: of a target that has them, with their numbers of series or steps.
        missing: channels with missing values, with their numbers.
    """

    raw: RawSeries
    columns: TableColumns | None
    target: Kind | PerStep | Literal["forecast"]
    classes: Mapping[str, int]
    missing: Mapping[str, int]


def profile(path: Path, *, series: str | None = None, targets: Sequence[str] = ()) -> Profile:
    """Look at a file: a table, arrays, or a folder with arrays.

    Args:
        path: of the file.
        series: a table's column with the ids; None: the one whose name is usual for it.
        targets: a table's target columns; empty: the one whose name is usual for it, else a forecast.

    Raises:
        DataError: it cannot be read, a column is missing, or there is a target of no kind that can be learned.
    """
    columns = None
    if path.suffix in SUFFIXES:
        columns = _uses(Columns(path), series, targets)
        raw, per_step = _read_table(path, columns)
    elif series is not None or targets:
        raise DataError(f"{path} is no table: its target is the array targets; leave --series and --target out")
    else:
        raw, per_step = _read_arrays(path)
    if raw.targets is None:
        return Profile(raw, columns, "forecast", {}, _missing(raw))
    values = raw.targets[rows_of(raw.first_rows(), raw.lengths)[0]] if per_step else raw.targets
    kind, classes = _kind(path, values)
    return Profile(raw, columns, PER_STEP[kind] if per_step else kind, classes, _missing(raw))


def _uses(table: Columns, series: str | None, targets: Sequence[str]) -> TableColumns:
    for name, option in [(series, "--series"), *((name, "--target") for name in targets)]:
        if name is not None:
            table.require(name, option)
    series = series or _usual(table.names, SERIES)
    split = _usual(table.names, SPLIT)
    table.load(table.names, text=[name for name in (series, split) if name is not None])
    kinds = {name: table.kind(name) for name in table.names}
    dates = [name for name, kind in kinds.items() if kind == "time"]
    time = _usual(table.names, TIME) or (dates[0] if len(dates) == 1 else None)
    usual = _usual(table.names, TARGET)
    targets = list(targets) or ([usual] if usual else [])
    used = {series, time, split, *targets}
    others = {name: kind for name, kind in kinds.items() if name not in used}
    features = [name for name, kind in others.items() if kind == "number" and name not in ("", PANDAS_INDEX)]
    left_out = {name: kind for name, kind in others.items() if name not in features}
    return TableColumns(series, time, targets, features, split, left_out)


def _usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    plain = {name.lower().translate(str.maketrans("", "", "_- ")): name for name in reversed(names)}
    return next((plain[name] for name in usual if name in plain), None)


def _read_table(path: Path, columns: TableColumns) -> tuple[RawSeries, bool]:
    """Return the series, and whether their targets differ within a series."""

    def read(*, per_step: bool) -> RawSeries:
        return read_table(
            path,
            series=columns.series,
            time=columns.time,
            targets=columns.targets,
            features=columns.features,
            split=columns.split,
            per_step=per_step,
        )

    try:
        steps = read(per_step=True)
    except DataError as error:
        if columns.series is not None:
            raise
        said = str(error).partition("; type task.series_column")[0]  # no key is typed to config init
        raise DataError(f"{said}. No column has a usual name of ids: add --series COLUMN if one holds them") from error
    if steps.targets is None:
        return steps, False
    first = np.repeat(steps.targets[steps.first_rows()], steps.lengths, axis=0)
    if (first == steps.targets).all() and len(steps.lengths) > 1:
        return read(per_step=False), False
    return steps, True


def _read_arrays(path: Path) -> tuple[RawSeries, bool]:
    """Return the series, and whether there is a target per step."""
    inputs = read_arrays(path, targets=False, per_step=False)
    if not _has_targets(path):
        return inputs, False
    if inputs.lengths.max() > 1:
        try:
            return read_arrays(path, targets=True, per_step=True), True
        except DataError:
            pass  # of a shape for one per series, or a wrong one
    return read_arrays(path, targets=True, per_step=False), False


def _has_targets(path: Path) -> bool:
    if path.is_dir():
        return (path / "targets.npy").is_file()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return "targets" in archive.files
    with safe_open(path, framework="numpy") as archive:
        return "targets" in archive.keys()  # noqa: SIM118


def _kind(path: Path, values: NDArray) -> tuple[Kind, dict[str, int]]:
    """Return "class", "labels" or "value", and the classes with their numbers."""
    text = values.dtype.kind in "US"
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        if text:
            raise DataError(f"{path}: {values.shape[1]} targets are text: expected one, or numbers (labels: 0 or 1)")
        return ("labels" if np.isin(values, (0, 1)).all() else "value"), {}
    if not text and not (values == np.floor(values)).all():
        return "value", {}
    found, counts = np.unique(values if text else values.astype(np.int64), return_counts=True)
    if not text and (len(found) > MOST_CLASSES or 2 * len(found) > len(values)):
        return "value", {}
    return "class", {str(label): int(count) for label, count in zip(found, counts, strict=True)}


def _missing(raw: RawSeries) -> dict[str, int]:
    counts = np.zeros(len(raw.features), dtype=np.int64)
    for values, _, _ in blocks(raw, raw.first_rows(), raw.lengths):
        counts += np.isnan(values).sum(0)
    return {name: int(count) for name, count in zip(raw.features, counts, strict=True) if count}
