"""Results of a sweep: its trials, and its points from the best to the worst."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

STATES = ("finished", "stopped", "not finished", "waiting", "failed")
"""The states of a trial, from the best to the worst."""


@dataclass(frozen=True)
class TrialRow:
    """One run of a sweep.

    Attributes:
        index: its number.
        path: its folder.
        default: whether it is the baseline trial, the configuration that the sweep varies.
        overrides: its overrides of that configuration.
        values: the values of the varying keys that this run has.
        state: one of `STATES`.
        value: the best validation value; None before the first.
        test: the metric on the test set; None unless it is finished.
        batch: number of batches trained.
        batches: batches of the complete run; None where unknown.
        best_batch: the batch of `value`.
        updates: number of parameter updates.
        sequences: training sequences seen, over all workers.
        seconds: training time.
        bytes_sent: bytes sent by rank 0.
        message: the cause of a failure, or the end of its log while it is not finished.
        curve: pairs of training sequences and the validation value after them.
    """

    index: int
    path: Path
    default: bool
    overrides: dict[str, Any]
    values: dict[str, Any]
    state: str
    value: float | None
    test: float | None
    batch: int
    batches: int | None
    best_batch: int | None
    updates: int
    sequences: int
    seconds: float
    bytes_sent: int
    message: str
    curve: list[tuple[int, float]]

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.path.name


@dataclass(frozen=True)
class Point:
    """The trials that differ only in their seed.

    Attributes:
        trials: in the order of their numbers.
    """

    trials: list[TrialRow]

    @property
    def values(self) -> dict[str, Any]:
        """The values of the varying keys, without the seed."""
        known: dict[str, Any] = {}
        for trial in reversed(self.trials):  # a trial that has not started has fewer
            known.update(trial.values)
        return {key: value for key, value in known.items() if key != "seed"}

    @property
    def state(self) -> str:
        """The worst state of the trials."""
        return max((trial.state for trial in self.trials), key=STATES.index)

    @property
    def finished(self) -> bool:
        """True where all trials are finished."""
        return self.state == "finished"

    @property
    def found(self) -> list[float]:
        """The validation values of the trials that have one."""
        return [trial.value for trial in self.trials if trial.value is not None]

    @property
    def mean(self) -> float | None:
        """The mean of the validation values; None where there is none."""
        return sum(self.found) / len(self.found) if self.found else None

    @property
    def measured(self) -> bool:
        """True where the mean is a finite number."""
        return self.mean is not None and math.isfinite(self.mean)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the validation values; None for fewer than two."""
        if self.mean is None or len(self.found) < 2:
            return None
        apart = [value - self.mean for value in self.found]
        return math.sqrt(sum(each * each for each in apart) / (len(apart) - 1))

    def cost(self, name: str) -> float:
        """Return the trials' mean of "seconds" or "bytes_sent"."""
        return sum(getattr(trial, name) for trial in self.trials) / len(self.trials)


@dataclass(frozen=True)
class SweepResults:
    """The content of a sweep directory.

    Attributes:
        path: the folder.
        asked: the content of sweep.yaml.
        task: the task's name; "" before the first run has started.
        trials: all runs, in the order of their numbers.
    """

    path: Path
    asked: dict[str, Any]
    task: str
    trials: list[TrialRow]

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.asked["metric"]

    @property
    def higher_is_better(self) -> bool:
        """True where a higher metric is better."""
        return self.asked["higher_is_better"]

    @property
    def varying(self) -> list[str]:
        """The keys that vary."""
        return self.asked["varying"]

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives."""
        return list(self.asked["search"].get("objectives") or ["quality"])

    @cached_property
    def points(self) -> list[Point]:
        """The points from the best to the worst.

        Points that were stopped or are not finished come after the finished ones: they were trained less.
        """
        groups: dict[str, list[TrialRow]] = {}
        for trial in self.trials:
            # Two of Optuna's trials may be identical, seed included: they are one point only where seeds vary.
            others = {key: value for key, value in trial.overrides.items() if key != "seed"}
            group = json.dumps(others, sort_keys=True) if "seed" in self.varying else trial.name
            groups.setdefault(group, []).append(trial)
        return sorted((Point(group) for group in groups.values()), key=self._rank)

    @property
    def best(self) -> Point | None:
        """The best point that is finished and has a finite value."""
        return next((point for point in self.points[:1] if point.finished and point.measured), None)

    @cached_property
    def front(self) -> list[Point]:
        """The Pareto front of several objectives: the finished points that no other dominates, best first."""
        if len(self.objectives) < 2:
            return []
        known = [(point, self._losses(point)) for point in self.points if point.finished and point.measured]
        return [point for point, losses in known if not any(_dominates(other, losses) for _, other in known)]

    def _losses(self, point: Point) -> list[float]:
        """Return the objectives of a point; smaller is better."""
        mean = math.nan if point.mean is None else point.mean
        quality = -mean if self.higher_is_better else mean
        return [quality if name == "quality" else point.cost(name) for name in self.objectives]

    def _rank(self, point: Point) -> tuple[int, bool, float, int]:
        index = point.trials[0].index
        if point.mean is None:
            return 2, True, 0.0, index
        unknown = math.isnan(point.mean)
        loss = -point.mean if self.higher_is_better else point.mean
        return 0 if point.finished else 1, unknown, 0.0 if unknown else loss, index


def _dominates(one: list[float], other: list[float]) -> bool:
    """Return whether `one` is nowhere worse than `other` and somewhere better."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
