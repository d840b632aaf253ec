"""Predictions step by step: each row is answered as it comes, and every series' state is carried."""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.columns import NO_TEXT
from fptt_dist.tasks.data.scaling import LARGEST
from fptt_dist.tasks.data.series import RawSeries
from fptt_dist.training.predict.readout import Readout
from fptt_dist.training.predict.series import NO_MISSING, SERIES, STEP, Inputs, Names, require_columns
from fptt_dist.training.saved_run import SavedRun
from fptt_dist.types import State


@dataclass
class _Series:
    """One series of a stream: what is carried from row to row.

    Attributes:
        last: (C,) the last value of each channel, where missing ones are filled.
        state: of the network.
        steps: that have come.
        time: of the last one.
    """

    last: NDArray
    state: State = None
    steps: int = 0
    time: float | datetime | None = None


class Stream:
    """Step-by-step prediction; memory grows with the number of series, not with that of their steps.

    Args:
        run: with the network.
    """

    def __init__(self, run: SavedRun) -> None:
        self._run, self._inputs, self._readout = run, Inputs(run), Readout(run)
        self._known: dict[Any, _Series] = {}

    @torch.no_grad()
    def step(self, series: Any, values: NDArray) -> tuple[int, list[Any]]:
        """Return the number of the step in its series, from 0, and the prediction after it.

        Args:
            series: the id of the series that the step is of.
            values: (C,) the channels; NaN where missing and the run fills missing values.
        """
        own = self.series(series)
        if self._inputs.fills:
            seen = ~np.isnan(values)
            own.last = values = np.where(seen, values, own.last)
            row = np.concatenate([self._inputs.scaling.scaled(values), seen.astype(np.float32)])
        else:
            row = self._inputs.prepared(values[None], np.zeros(1, np.int64))[0]
        output, own.state = self._run.network(self._inputs.tensor(row[None, None]), own.state)
        own.steps += 1
        return own.steps - 1, self._readout.rows(output[-1])[0]

    def series(self, name: Any) -> _Series:
        """Return what is carried of a series, which begins where it is not known."""
        if name not in self._known:
            mean = self._inputs.scaling.mean if self._inputs.fills else np.zeros(0)
            self._known[name] = _Series(mean)
        return self._known[name]

    def end(self, name: Any) -> None:
        """Forget a series, of which no step comes any more."""
        del self._known[name]

    def header(self, names: Names, *, with_time: bool) -> list[str]:
        """Return the names of the columns: id, step, the time where there is one, and the prediction's."""
        time = [names.time] if with_time and names.time is not None else []
        return [names.series or SERIES, STEP, *time, *self._readout.columns]


def streamed(run: SavedRun, raw: RawSeries) -> Iterator[list[Any]]:
    """Yield the header, then a row for each step of series that were read."""
    stream, starts = Stream(run), raw.first_rows()
    yield stream.header(Names.of(run), with_time=raw.times is not None)
    for number, length in enumerate(raw.lengths.tolist()):
        series = raw.names[number] if raw.names else number
        for row in range(int(starts[number]), int(starts[number]) + length):
            time = [] if raw.times is None else [raw.times[row]]
            values = np.array(raw.inputs[row])
            step, found = stream.step(series, values if values.dtype.kind in "iu" else values.astype(np.float64))
            yield [series, step, *time, *found]
        stream.end(series)


def streamed_rows(run: SavedRun, lines: Iterable[str], source: str) -> Iterator[list[Any]]:
    """Yield the header, then an answer to each row of a CSV table, as soon as it has come.

    Args:
        run: with the network.
        lines: the table's, a header first.
        source: name of the table, for messages.

    Raises:
        DataError: the row, the column, what was expected and what was found.
    """
    stream, inputs, names = Stream(run), Inputs(run), Names.of(run)
    if inputs.features is None:
        raise DataError(f"{source}: the run's task {run.config.task.name} does not say which columns its inputs are")
    reader = csv.reader(lines)
    columns = next((row for row in reader if row), None)
    if columns is None:
        raise DataError(f"{source} is empty: expected a header with the names of the columns, and one row per step")
    columns[0] = columns[0].removeprefix("\ufeff")
    with_time = names.time is not None
    needed = [*inputs.features, *(name for name in (names.series, names.time) if name is not None)]
    require_columns(columns, needed, source)
    places = {name: columns.index(name) for name in needed}
    yield stream.header(names, with_time=with_time)
    for number, fields in enumerate((row for row in reader if row), 1):
        where = f"{source}, row {number}"
        if len(fields) != len(columns):
            raise DataError(f"{where}: {len(fields)} fields, and the header has {len(columns)}")
        series = Path(source).stem if names.series is None else fields[places[names.series]]
        if names.series is not None and series in NO_TEXT:
            raise DataError(f"{where}, column {names.series!r}: a missing value: expected one in every row")
        if names.time is not None:
            _go_on(stream.series(series), fields[places[names.time]], f"{where}, column {names.time!r}")
        values = [
            _number(fields[places[name]], f"{where}, column {name!r}", missing=inputs.fills) for name in inputs.features
        ]
        step, found = stream.step(series, np.array(values))
        yield [series, step, *([fields[places[names.time]]] if names.time is not None else []), *found]


def _number(text: str, where: str, *, missing: bool) -> float:
    if text in NO_TEXT:
        if missing:
            return math.nan
        raise DataError(f"{where}: a missing value: {NO_MISSING}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise DataError(f"{where}: {text!r}: expected a finite number")
    return value


def _go_on(series: _Series, text: str, where: str) -> None:
    """Take the time of a series' next step, which must come after that of the one before."""
    try:
        time: float | datetime = float(text)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise DataError(f"{where}: {text!r} is no time: expected a number, or an ISO date") from None
    try:
        late = series.time is not None and not time > series.time  # pyright: ignore[reportOperatorIssue]
    except TypeError:
        raise DataError(f"{where}: {text!r} is of another kind than the times before it") from None
    if late:
        raise DataError(
            f"{where}: {text!r} does not come after {series.time}: a stream's steps are answered in the order in which "
            "they come; sort them, or leave --stream out"
        )
    series.time = time


def lines_of(stream: TextIO | io.TextIOBase) -> Iterator[str]:
    """Yield a stream's lines as they come, none ahead of time."""
    return iter(stream.readline, "")
