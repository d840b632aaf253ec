"""Splits of series into training, validation and test set: by file, as a file says, by seed, or in time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.series import PARTS, RawSeries


@dataclass(frozen=True)
class Examples:
    """Sequences of one split.

    Attributes:
        raw: the file that they are in.
        series: (E,) which series each is of.
        starts: (E,) row of each one's first step.
        lengths: (E,) steps.
    """

    raw: RawSeries
    series: NDArray
    starts: NDArray
    lengths: NDArray

    def __len__(self) -> int:
        return len(self.series)


Files = Mapping[str, RawSeries | None]
"""The file of "train", and of "validation" and "test" where they have their own."""


def whole_series(files: Files, shares: Mapping[str, float], seed: int, labels: NDArray | None) -> dict[str, Examples]:
    """Return the examples of each split, each a whole series.

    A split has the series of its own file; else those that the training file's `split` names; else a share of the
    training file's series, drawn by `seed`.

    Args:
        files: see `Files`.
        shares: of "validation" and "test", where they are held out.
        seed: of what is held out.
        labels: (N,) classes of the training file's series, of which each split gets its share; None: any.

    Raises:
        DataError: a split without series, or said twice.
    """
    train = files["train"]
    assert train is not None
    chosen = _by_column(files, train) if train.split is not None else _held_out(files, train, shares, seed, labels)
    found = {}
    for part in PARTS:
        raw = files.get(part)
        series = chosen[part] if raw is None or part == "train" else np.arange(len(raw.lengths))
        raw = raw or train
        if len(series) == 0:
            raise DataError(f"{train.path} has no series left for {part}: {_remedy(part, train)}")
        found[part] = Examples(raw, series, raw.first_rows()[series], raw.lengths[series])
    return found


def _remedy(part: str, train: RawSeries) -> str:
    if train.split is not None:
        return f"expected the split {part} for one of its {len(train.lengths)} series at least"
    share = "smaller task.validation_share and task.test_share" if part == "train" else f"larger task.{part}_share"
    return (
        f"type {share} (of its {len(train.lengths)} series), or task.{'validation' if part == 'train' else part}=FILE"
    )


def _by_column(files: Files, train: RawSeries) -> dict[str, NDArray]:
    for part in ("validation", "test"):
        if files.get(part) is not None and (train.split == part).any():
            raise DataError(
                f"{train.path} names series of the split {part}, and task.{part} is a file of its own: leave one out"
            )
    return {part: np.nonzero(train.split == part)[0] for part in PARTS}


def _held_out(
    files: Files, train: RawSeries, shares: Mapping[str, float], seed: int, labels: NDArray | None
) -> dict[str, NDArray]:
    wanted = {part: shares[part] for part in ("validation", "test") if files.get(part) is None}
    order = np.random.default_rng(seed).permutation(len(train.lengths))
    parts: dict[str, list[NDArray]] = {part: [] for part in PARTS}
    for group in [order] if labels is None else [order[labels[order] == label] for label in np.unique(labels)]:
        left = group
        for part, share in wanted.items():
            size = round(share * len(group))
            parts[part].append(left[:size])
            left = left[size:]
        parts["train"].append(left)
    return {part: np.sort(np.concatenate(found)) if found else np.arange(0) for part, found in parts.items()}


def forecasts(files: Files, shares: Mapping[str, float], length: int, horizon: int) -> dict[str, Examples]:
    """Return the examples of each split of a forecast: stretches of a series, one beginning at each step.

    Where a split has no file of its own, it is the last part of each series in time, validation before test: its
    stretches may begin earlier, but what is to be forecast at their last step lies in it alone.

    Args:
        files: see `Files`.
        shares: of "validation" and "test", of each series' steps.
        length: steps of a stretch; a series with fewer gives one of what it has.
        horizon: steps that follow each step's forecast.

    Raises:
        DataError: a split without a step to forecast.
    """
    train = files["train"]
    assert train is not None
    if train.split is not None:
        raise DataError(
            f"{train.path} has a split by series, and task.target=forecast holds out the last steps of each: leave "
            "split out (task.split_column=null), or type task.validation=FILE and task.test=FILE"
        )
    end = train.lengths
    held_out: dict[str, tuple[NDArray, NDArray]] = {}
    for part in ("test", "validation"):
        if files.get(part) is None:
            begin = end - np.round(shares[part] * train.lengths).astype(np.int64)
            held_out[part], end = (begin, end), begin
    found = {}
    for part in PARTS:
        raw = files.get(part) or train
        if part in held_out:
            found[part] = _stretches(raw, *held_out[part], length, horizon)
        else:
            found[part] = _stretches(raw, None, end if part == "train" else raw.lengths, length, horizon)
        if len(found[part]) == 0:
            needed = horizon if part in held_out else horizon + 1
            raise DataError(
                f"{raw.path} has too few steps for {part}: its longest series has {raw.lengths.max()} in all, and a "
                f"forecast of task.horizon={horizon} needs {needed} in that part: type a smaller task.horizon, or "
                "other task.validation_share and task.test_share"
            )
    return found


def _stretches(raw: RawSeries, begin: NDArray | None, stop: NDArray, length: int, horizon: int) -> Examples:
    """Return the stretches whose last step's forecast lies in [begin, stop) of each series; in a part that begins with
    the series (None), only those of the full length, or of what there is.
    """
    series, starts, lengths = [], [], []
    for number, row in enumerate(raw.first_rows()):
        latest = int(stop[number]) - horizon
        earliest = min(length, latest) if begin is None else int(begin[number])
        ends = np.arange(max(1, earliest), latest + 1)  # steps of the series that have been read
        if not len(ends):
            continue
        firsts = np.maximum(0, ends - length)
        series.append(np.full(len(ends), number))
        starts.append(row + firsts)
        lengths.append(ends - firsts)
    if not series:
        return Examples(raw, *(np.arange(0) for _ in range(3)))
    return Examples(raw, np.concatenate(series), np.concatenate(starts), np.concatenate(lengths))
