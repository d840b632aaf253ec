"""Curves of a group: the mean over its runs, and the band from the smallest to the largest."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fptt_dist.reporting.groups import Group
from fptt_dist.reporting.history import History
from fptt_dist.reporting.paper_figures import BLOCKS

Measure = Callable[[History], Iterable[tuple[dict[str, Any], float]]]
"""The records of a run with the value of each."""


@dataclass(frozen=True)
class Curve:
    """What is drawn of a group.

    Attributes:
        x: where: sequences, updates or seconds of training, the mean over the runs.
        mean: over the runs that have come so far.
        low: the smallest of the runs.
        high: the largest of them.
        seeds: runs that have a value.
        block: the most records of one run that a point is the mean of.
        left_out: values that are not finite.
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
    """The curve of a quantity, of at most `BLOCKS` points.

    Runs are compared at equal batches. Where there are more batches than points, consecutive ones make a block of
    equally many: a run's value is its mean over the block, x likewise.

    Args:
        group: whose runs.
        measure: what to take from a run.
        along: the records' field that is x.

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
    """Records that go together, so that `length` of them make at most `most` blocks."""
    return math.ceil(length / most) or 1


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    found = list(values)
    return math.fsum(found) / len(found)


def field(name: str) -> Measure:
    """The training records that have this field, with its value."""

    def measure(run: History) -> Iterable[tuple[dict[str, Any], float]]:
        return [(record, record[name]) for record in run.training if name in record]

    return measure


def validation(metric: str) -> Measure:
    """The evaluations of the validation set in this metric."""

    def measure(run: History) -> Iterable[tuple[dict[str, Any], float]]:
        found = [each for each in run.evaluations if each["split"] == "validation" and each["metric"] == metric]
        return [(each, each["value"]) for each in found]

    return measure


def last_window(run: History) -> Iterable[tuple[dict[str, Any], float]]:
    """The training records, with the loss of the last window."""
    return [(record, record["window_losses"][-1]) for record in run.training if record.get("window_losses")]


def bytes_so_far(run: History) -> Iterable[tuple[dict[str, Any], float]]:
    """The training records of a run of several processes, with the bytes that rank 0 has sent up to each."""
    total = 0
    for record in run.training:
        if "bytes_sent" in record:
            total += record["bytes_sent"]
            yield record, float(total)
