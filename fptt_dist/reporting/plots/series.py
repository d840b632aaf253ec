"""Curves of a group: the mean over its runs and the band from the smallest to the largest."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fptt_dist.history import History
from fptt_dist.reporting.runs.groups import Group

BLOCKS = 100  # points of a curve at most, each the mean of a block of records
Measure = Callable[[History], Iterable[tuple[dict[str, Any], float]]]
"""The records of a run with the value of each."""


@dataclass(frozen=True)
class Curve:
    """The curve of a group.

    Attributes:
        x: sequences, updates or seconds of training, the mean over the runs.
        mean: the mean over the runs that have come so far.
        low: the smallest of the runs.
        high: the largest of them.
        seeds: number of runs that have a value.
        block: the largest number of records of one run in a point's mean.
        left_out: number of non-finite values.
        uneven: whether some run has no value where another has one.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    block: int
    left_out: int
    uneven: bool


def curve(group: Group, measure: Measure, along: str = "sequences") -> Curve | None:
    """Return the curve of a quantity with at most `BLOCKS` points.

    Runs are compared at equal batches. Where there are more batches than points, they are split into blocks of
    equally many consecutive ones: a run's value is its mean over the block, x likewise.

    Args:
        group: the runs.
        measure: the quantity to read from a run.
        along: the records' field to use as x.

    Returns:
        None where there is no finite value.
    """
    found = [
        [(record["batch"], record[along], value) for record, value in measure(run) if along in record]
        for run in group.runs
    ]
    finite = [[point for point in points if math.isfinite(point[2])] for points in found]
    batches = sorted({batch for points in finite for batch, _, _ in points})
    if not batches:
        return None
    size = block_size(len(batches), BLOCKS)
    blocks: list[list[tuple[float, float]]] = [[] for _ in range(0, len(batches), size)]  # x and value of each run
    for points in finite:
        own: dict[int, list[tuple[float, float]]] = {}
        for batch, x, value in points:
            own.setdefault(bisect_left(batches, batch) // size, []).append((x, value))
        for block, each in own.items():
            blocks[block].append((mean(x for x, _ in each), mean(value for _, value in each)))
    seeds = sum(bool(points) for points in finite)
    return Curve(
        x=[mean(x for x, _ in block) for block in blocks],
        mean=[mean(value for _, value in block) for block in blocks],
        low=[min(value for _, value in block) for block in blocks],
        high=[max(value for _, value in block) for block in blocks],
        seeds=seeds,
        block=size,
        left_out=sum(len(before) - len(after) for before, after in zip(found, finite, strict=True)),
        uneven=any(len(block) < seeds for block in blocks),
    )


def block_size(length: int, most: int) -> int:
    """Return the number of records per block, so that `length` of them make at most `most` blocks."""
    return math.ceil(length / most) or 1


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    found = list(values)
    return math.fsum(found) / len(found)


def field(name: str) -> Measure:
    """Return a measure of the training records that have this field."""

    def measure(run: History) -> Iterable[tuple[dict[str, Any], float]]:
        return [(record, record[name]) for record in run.training if name in record]

    return measure


def validation(metric: str) -> Measure:
    """Return a measure of the validation evaluations in this metric."""

    def measure(run: History) -> Iterable[tuple[dict[str, Any], float]]:
        found = [each for each in run.evaluations if each["split"] == "validation" and each["metric"] == metric]
        return [(each, each["value"]) for each in found]

    return measure


def last_window(run: History) -> Iterable[tuple[dict[str, Any], float]]:
    """Return the training records with the loss of the last window."""
    return [(record, record["window_losses"][-1]) for record in run.training if record.get("window_losses")]


def bytes_so_far(run: History) -> Iterable[tuple[dict[str, Any], float]]:
    """Yield the training records of a run with several workers, with the bytes that rank 0 has sent up to each."""
    total = 0
    for record in run.training:
        if "bytes_sent" in record:
            total += record["bytes_sent"]
            yield record, float(total)
