"""What is known of a sweep: its trials, and its points from the best to the worst."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

STATES = ("finished", "stopped", "not finished", "waiting", "failed")
"""What a trial may be, from the best to the worst."""


@dataclass(frozen=True)
class TrialRow:
    """One run of a sweep.

    Attributes:
        index: its number.
        path: its folder.
        default: whether it is the configuration that the sweep varies.
        overrides: of that configuration.
        history: with population based training, the later overrides: "batch", "overrides".
        values: the keys that vary, without those that this run does not have.
        state: one of `STATES`.
        value: the best validation value; None before the first.
        test: the metric on the test set; None unless it is finished.
        batch: batches trained.
        batches: batches of the whole run; None where they are not known.
        best_batch: the batch of `value`.
        updates: parameter updates.
        sequences: training sequences seen, over all workers.
        seconds: of training.
        bytes_sent: by rank 0.
        message: why it failed, or the last words of its log while it is not finished.
        curve: training sequences and the validation value after them.
    """

    index: int
    path: Path
    default: bool
    overrides: dict[str, Any]
    history: list[dict[str, Any]]
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
    """The trials that differ in nothing but their seed.

    Attributes:
        trials: by their numbers.
    """

    trials: list[TrialRow]

    @property
    def values(self) -> dict[str, Any]:
        """The keys that vary, without the seed."""
        known: dict[str, Any] = {}
        for trial in reversed(self.trials):  # one that has not started yet knows fewer
            known.update(trial.values)
        return {key: value for key, value in known.items() if key != "seed"}

    @property
    def state(self) -> str:
        """The worst of the trials'."""
        return max((trial.state for trial in self.trials), key=STATES.index)

    @property
    def finished(self) -> bool:
        """Whether all trials are."""
        return self.state == "finished"

    @property
    def found(self) -> list[float]:
        """The validation values of those that have one."""
        return [trial.value for trial in self.trials if trial.value is not None]

    @property
    def mean(self) -> float | None:
        """Of the validation values."""
        return sum(self.found) / len(self.found) if self.found else None

    @property
    def measured(self) -> bool:
        """Whether the mean is a finite number."""
        return self.mean is not None and math.isfinite(self.mean)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the validation values; None for fewer than two."""
        if self.mean is None or len(self.found) < 2:
            return None
        apart = [value - self.mean for value in self.found]
        return math.sqrt(sum(each * each for each in apart) / (len(apart) - 1))

    def cost(self, name: str) -> float:
        """The trials' mean of "seconds" or "bytes_sent"."""
        return sum(getattr(trial, name) for trial in self.trials) / len(self.trials)


@dataclass(frozen=True)
class SweepResults:
    """What a sweep's folder says.

    Attributes:
        path: the folder.
        asked: sweep.yaml.
        task: the task's name; "" before the first run has started.
        trials: all runs, by their numbers.
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
        """The metric's direction."""
        return self.asked["higher_is_better"]

    @property
    def varying(self) -> list[str]:
        """The keys that vary."""
        return self.asked["varying"]

    @property
    def objectives(self) -> list[str]:
        """What is to be improved."""
        return list(self.asked["search"].get("objectives") or ["quality"])

    @cached_property
    def points(self) -> list[Point]:
        """From the best to the worst.

        Those that were stopped, or are not finished yet, come after the finished ones: they were trained less.
        """
        groups: dict[str, list[TrialRow]] = {}
        for trial in self.trials:
            # Two runs of Optuna's may be the same in all, seed included: only where seeds vary are they one point.
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
        """With several objectives: the finished points that no other one dominates (Pareto), best first."""
        if len(self.objectives) < 2:
            return []
        known = [(point, self._losses(point)) for point in self.points if point.finished and point.measured]
        return [point for point, losses in known if not any(_dominates(other, losses) for _, other in known)]

    def _losses(self, point: Point) -> list[float]:
        """The objectives of a point, smaller is better."""
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
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
