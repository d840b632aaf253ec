"""Standardization of channels by the training examples alone, and what stands for a missing value."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.series import RawSeries, rows_of

LARGEST = float(np.finfo(np.float32).max)
ROWS = 2**18  # read at once, of inputs that may be larger than memory


@dataclass(frozen=True)
class Scaling:
    """Constants of channels: a value x becomes (x − mean) / std.

    Attributes:
        mean: (C,) float64.
        std: (C,) float64, 1 of a constant channel.
    """

    mean: NDArray
    std: NDArray

    @classmethod
    def none(cls, channels: int) -> "Scaling":
        """Return the constants that leave values as they are."""
        return cls(np.zeros(channels), np.ones(channels))

    def scaled(self, values: NDArray) -> NDArray[np.float32]:
        """Return values (…, C) in units of a standard deviation from the mean.

        Subtracted in float64: float32 has seven digits, which a time in seconds since 1970 fills.
        """
        return ((values.astype(np.float64) - self.mean) / self.std).astype(np.float32)


class Statistics:
    """Mean and standard deviation of each channel over rows that come in blocks; missing values do not count."""

    def __init__(self, channels: int) -> None:
        self._count = np.zeros(channels, np.int64)
        self._mean = np.zeros(channels)
        self._squares = np.zeros(channels)  # of the differences from the mean

    def add(self, values: NDArray) -> None:
        """Add rows (M, C).

        Merged by differences from the means (Chan, Golub & LeVeque 1979): Σx² − (Σx)²/n would lose small deviations
        from a large mean.
        """
        values = values.astype(np.float64)
        seen = ~np.isnan(values)
        count = seen.sum(0)
        mean = np.where(seen, values, 0.0).sum(0) / np.maximum(count, 1)
        squares = np.square(np.where(seen, values - mean, 0.0)).sum(0)
        total = self._count + count
        apart = mean - self._mean
        self._squares += squares + apart**2 * self._count * count / np.maximum(total, 1)
        self._mean += apart * count / np.maximum(total, 1)
        self._count = total

    def constant(self) -> NDArray:
        """Return which channels have one value only, or none (C,)."""
        return self._squares <= (1e-12 * np.abs(self._mean)) ** 2 * self._count

    def scaling(self) -> Scaling:
        """Return the constants of standardization."""
        std = np.sqrt(self._squares / np.maximum(self._count, 1))
        std = np.where(self.constant(), 1.0, std)
        return Scaling(self._mean.copy(), std)


def blocks(raw: RawSeries, starts: NDArray, lengths: NDArray) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Yield the rows of series as float64 (M, C), with each row's step and position among the series, in blocks."""
    bounds = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = 0 if first == 0 else bounds[first - 1]
        last = max(first + 1, int(np.searchsorted(bounds, before + ROWS, side="right")))
        rows, steps, which = rows_of(starts[first:last], lengths[first:last])
        for at in range(0, len(rows), ROWS):  # a single series may be longer
            part = slice(at, at + ROWS)
            yield as_double(raw.inputs[rows[part]]), steps[part], which[part] + first
        first = last


def as_double(values: NDArray) -> NDArray[np.float64]:
    """Return values as float64, in memory where they are mapped."""
    return np.array(values, np.float64)


def as_float(values: NDArray) -> NDArray:
    """Return values as float32; those beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)  # in memory, where they are mapped


FILL = "type task.missing=fill to carry the last value forward and show the network which are missing"


def check_values(raw: RawSeries, *, missing_allowed: bool, hint: str = FILL) -> None:
    """Refuse infinite values, and missing ones unless they are allowed.

    Args:
        raw: the series.
        missing_allowed: whether values may be NaN.
        hint: what to do about a missing one.

    Raises:
        DataError: the file, the series, its step and channel.
    """
    for values, steps, which in blocks(raw, raw.first_rows(), raw.lengths):
        bad = np.abs(values) > LARGEST
        if not missing_allowed:
            bad |= np.isnan(values)
        if not bad.any():
            continue
        row, channel = (int(index[0]) for index in np.nonzero(bad))
        place = f"{raw.path}: {raw.name_of(int(which[row]))}, step {steps[row]}, channel {raw.features[channel]}"
        if np.isnan(values[row, channel]):
            raise DataError(f"{place} is missing (NaN): {hint}")
        raise DataError(f"{place} is infinite, or too large for float32: expected a finite number")


def digest(lengths: NDArray, values: Iterable[NDArray], targets: NDArray | None) -> NDArray:
    """Return the SHA-256 of series and their targets, (32,) uint8.

    Args:
        lengths: (N,) steps of each series.
        values: the steps of all, in any number of arrays.
        targets: of the series or their steps; None where there are none.
    """
    found = hashlib.sha256(np.ascontiguousarray(lengths, np.int64).tobytes())
    for each in values:
        found.update(np.ascontiguousarray(each).tobytes())
    if targets is not None:
        found.update(np.ascontiguousarray(targets).tobytes())
    return np.frombuffer(found.digest(), np.uint8).copy()


def filled(values: NDArray, steps: NDArray, mean: NDArray) -> tuple[NDArray, NDArray]:
    """Carry the last value of a series forward to the missing ones after it.

    Args:
        values: (M, C) rows of several series one after another, NaN where missing.
        steps: (M,) each row's step in its series.
        mean: (C,) what stands for a missing value with none before it.

    Returns:
        The filled values, and (M, C) float32 with 1 where a value was there.
    """
    seen = ~np.isnan(values)
    here = np.arange(len(values))[:, None]
    latest = np.maximum.accumulate(np.where(seen, here, -1), axis=0)
    known = latest >= here - steps[:, None]  # the same series
    carried = np.take_along_axis(values, np.maximum(latest, 0), axis=0)
    return np.where(known, carried, mean), seen.astype(np.float32)
