"""Predictions for series: from a table or arrays all at once, in batches, or step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fptt_dist.config import ArraysTask
from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.columns import SUFFIXES, Columns
from fptt_dist.tasks.data.scaling import Scaling, as_double, check_values, filled
from fptt_dist.tasks.data.series import RawSeries, read_arrays, rows_of
from fptt_dist.tasks.data.tables import read_table
from fptt_dist.training.predict.readout import Readout
from fptt_dist.training.saved_run import SavedRun
from fptt_dist.types import State

BATCH = 256  # series side by side, at most
STEPS = 256  # of one window, at most
PLACES = 2**20  # steps of all series of a batch with their padding, at most
NO_MISSING = "expected a number, as the run was trained without missing values (task.missing=refuse)"
SERIES, STEP = "series", "step"
"""Names of the columns of ids, where no key names another, and of steps."""


@dataclass(frozen=True)
class Names:
    """Columns of the ids and times of series, as the run's configuration names them; None where it has none."""

    series: str | None
    time: str | None

    @classmethod
    def of(cls, run: SavedRun) -> "Names":
        """Return those of a run."""
        task = run.config.task
        table = isinstance(task, ArraysTask)
        return cls(task.series_column if table else None, task.time_column if table else None)


class Inputs:
    """Values of channels as a run's network gets them: standardized by its training examples, and filled as those.

    Args:
        run: says how.

    Attributes:
        features: names of the channels; None: of a task that does not say how its inputs come about.
    """

    def __init__(self, run: SavedRun) -> None:
        self._shape, self._device = run.shape, run.device
        self._dtype = next(run.network.parameters()).dtype
        self.features: list[str] | None = run.input.get("features")
        self.fills = run.input.get("missing") == "fill"
        if self.features is not None:
            self.scaling = Scaling(np.array(run.input["mean"]), np.array(run.input["std"]))
        self.channels = run.shape.inputs if self.features is None else len(self.features)

    def prepared(self, values: NDArray, steps: NDArray) -> NDArray:
        """Return (M, I) inputs of rows (M, C) of series one after another, each row's step in its series being `steps`.

        Every series begins with its first step.
        """
        if self.features is None:
            return values
        if not self.fills:
            return self.scaling.scaled(values)
        values, seen = filled(values, steps, self.scaling.mean)
        return np.concatenate([self.scaling.scaled(values), seen], axis=1)

    def tensor(self, values: NDArray) -> Tensor:
        """Return inputs (…, I) as the network takes them, (…) where they are ids of symbols."""
        if self._shape.vocabulary_size is not None:
            return torch.from_numpy(values[..., 0].astype(np.int64)).to(self._device)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, self._dtype)


def read_series(run: SavedRun, path: Path) -> RawSeries:
    """Read the series that predictions are wanted for.

    Raises:
        DataError: the file cannot be read; a channel is missing, or there are others; a value is missing or infinite.
    """
    inputs, names = Inputs(run), Names.of(run)
    if path.suffix in SUFFIXES:
        if inputs.features is None:
            raise DataError(
                f"{path}: the run's task {run.config.task.name} does not say which columns its inputs are: give a .npz "
                f"or .npy file with the inputs as the network gets them, (N, T, {inputs.channels})"
            )
        needed = [*inputs.features, *(name for name in (names.series, names.time) if name is not None)]
        require_columns(Columns(path).names, needed, str(path))
        raw = read_table(
            path,
            series=names.series,
            time=names.time,
            targets=(),
            features=inputs.features,
            split=None,
            per_step=False,
            with_times=True,
        )
    else:
        raw = read_arrays(path, targets=False, per_step=False)
        if raw.inputs.shape[1] != inputs.channels:
            expected = "" if inputs.features is None else f", {', '.join(inputs.features)}"
            raise DataError(
                f"{path}: inputs has {raw.inputs.shape[1]} channels: expected the {inputs.channels} that the run was "
                f"trained on{expected}"
            )
    if run.shape.vocabulary_size is not None:
        _check_ids(raw, run.shape.vocabulary_size)
    check_values(raw, missing_allowed=inputs.fills, hint=NO_MISSING)
    return raw


def require_columns(there: Sequence[str], needed: Sequence[str], source: str) -> None:
    """Refuse a table without columns that the run was trained on; those that it has besides are not read.

    Raises:
        DataError: which are missing.
    """
    missing = [name for name in needed if name not in there]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(map(repr, missing))}: the run was trained on "
            f"{', '.join(map(repr, needed))}, and the header is {','.join(there)!r}"
        )


def _check_ids(raw: RawSeries, symbols: int) -> None:
    if raw.inputs.dtype.kind not in "iu" or raw.inputs.min() < 0 or raw.inputs.max() >= symbols:
        raise DataError(
            f"{raw.path}: inputs are {raw.inputs.dtype}: expected ids, whole numbers from 0 to {symbols - 1}"
        )


def header(run: SavedRun, raw: RawSeries) -> list[str]:
    """Return the names of the columns that `predicted` yields."""
    readout, names = Readout(run), Names.of(run)
    time = [] if not readout.per_step or raw.times is None or names.time is None else [names.time]
    return [names.series or SERIES, *([STEP] if readout.per_step else []), *time, *readout.columns]


@torch.no_grad()
def predicted(run: SavedRun, raw: RawSeries) -> Iterator[list[Any]]:
    """Yield a row for each series, or for each of its steps, in the order of the file."""
    inputs, readout = Inputs(run), Readout(run)
    ids = raw.names or list(range(len(raw.lengths)))
    starts = raw.first_rows()
    for part in _batches(raw.lengths):
        lengths = raw.lengths[part]
        rows, steps, which = rows_of(starts[part], lengths)
        values = inputs.prepared(_values(run, raw, rows), steps)
        padded = np.zeros((int(lengths.max()), len(lengths), values.shape[1]), values.dtype)
        padded[steps, which] = values
        outputs = _wanted(run.network, inputs.tensor(padded), torch.from_numpy(lengths), per_step=readout.per_step)
        if not readout.per_step:
            for series, row in zip(ids[part], readout.rows(outputs), strict=True):
                yield [series, *row]
            continue
        found = readout.rows(outputs[torch.from_numpy(steps), torch.from_numpy(which)])
        for place, row in enumerate(found):
            time = [] if raw.times is None else [raw.times[rows[place]]]
            yield [ids[part][which[place]], int(steps[place]), *time, *row]


def _values(run: SavedRun, raw: RawSeries, rows: NDArray) -> NDArray:
    return np.array(raw.inputs[rows]) if run.shape.vocabulary_size is not None else as_double(raw.inputs[rows])


def _batches(lengths: NDArray) -> Iterator[slice]:
    """Yield slices of series that are predicted together."""
    first = 0
    while first < len(lengths):
        longest = np.maximum.accumulate(lengths[first : first + BATCH])
        places = longest * np.arange(1, len(longest) + 1)
        last = first + max(1, int(np.searchsorted(places, PLACES, side="right")))
        yield slice(first, last)
        first = last


def _wanted(network: nn.Module, inputs: Tensor, lengths: Tensor, *, per_step: bool) -> Tensor:
    """Return the outputs (T, B, O) of all steps, or (B, O) of each series' last one, window by window."""
    state: State = None
    last, every = None, []
    ends = lengths.to(inputs.device) - 1
    for start in range(0, len(inputs), STEPS):
        output, state = network(inputs[start : start + STEPS], state)
        if per_step:
            every.append(output.cpu())
            continue
        here = (ends - start).clamp(0, len(output) - 1)
        own = output[here, torch.arange(len(ends), device=inputs.device)]
        last = own if last is None else torch.where((ends >= start).unsqueeze(-1), own, last)
    if per_step:
        return torch.cat(every)
    assert last is not None
    return last
