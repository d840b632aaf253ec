"""Groups of runs that may share an axis, since they have the same task and metric."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptt_dist.config import short_name
from fptt_dist.reporting.plots.style import Styled, plain_text
from fptt_dist.reporting.runs.metrics import higher_is_better

PER_STEP = ("copying", "language")  # tasks with a target at every step
PER_STEP_TARGETS = ("step_class", "step_value", "forecast")  # of task.target
UNITS = {"accuracy": "share of 1", "recall": "share of 1", "mse": "mean squared error"}


@dataclass(frozen=True)
class Subject:
    """Groups of the same task and metric.

    Attributes:
        task: its name, with the data set where there are several.
        metric: its name; None where no run has recorded it yet.
        looks: the groups.
        suffix: of the figures' names; "" where there is only one subject.
    """

    task: str
    metric: str | None
    looks: list[Styled]
    suffix: str

    @property
    def title(self) -> str:
        """The task, and the number of steps per sequence where it is the same in all groups."""
        lengths = {_task(each).get("length") for each in self.looks}
        steps = f", {lengths.pop()} steps" if len(lengths) == 1 and None not in lengths else ""
        return plain_text(f"{self.task}{steps}")

    @property
    def name(self) -> str:
        """The task's name in the configuration, of a class of the user's without its path."""
        return short_name(_task(self.looks[0])["name"])

    @property
    def per_step(self) -> bool:
        """True where there is a target at every step."""
        return self.name in PER_STEP or _task(self.looks[0]).get("target") in PER_STEP_TARGETS

    @property
    def measured(self) -> str:
        """The metric with its unit, in words."""
        words = (self.metric or "metric").replace("_", " ")
        return f"{words} ({UNITS[self.metric]})" if self.metric in UNITS else words

    @property
    def direction(self) -> str:
        """A sentence on the metric's direction; "" where it is not known."""
        known = (record for each in self.looks for run in each.group.runs for record in run.evaluations)
        higher = higher_is_better(next(known, {"metric": self.metric}))
        return {None: "", True: "Higher is better.", False: "Lower is better."}[higher]


def subjects(looks: list[Styled]) -> list[Subject]:
    """Return the groups by task and metric, in order of first appearance.

    A group without a metric joins the first subject of its task.
    """
    metrics = [(_described(each), _metric(each)) for each in looks]
    known = {task: metric for task, metric in reversed(metrics) if metric is not None}
    found: dict[tuple[str, str | None], list[Styled]] = {}
    for (task, metric), each in zip(metrics, looks, strict=True):
        found.setdefault((task, metric or known.get(task)), []).append(each)
    names = [re.sub(r"\W+", "_", f"_{task}_{metric or ''}").rstrip("_").lower() for task, metric in found]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for number, name in enumerate(names, 1)]
    return [
        Subject(task, metric, members, name if len(found) > 1 else "")
        for ((task, metric), members), name in zip(found.items(), names, strict=True)
    ]


def _task(each: Styled) -> dict[str, Any]:
    return each.group.runs[0].config["task"]


def _described(each: Styled) -> str:
    task = _task(each)
    parts = [
        short_name(task["name"]),
        task.get("dataset"),
        *(Path(task[key]).name if task.get(key) else None for key in ("text_dir", "train")),
        task.get("token_level"),
        task.get("target"),
    ]
    return " ".join(str(part) for part in parts if part is not None)


def _metric(each: Styled) -> str | None:
    """Return the evaluations' metric, or else the one that training records have per window."""
    for run in each.group.runs:
        if run.evaluations:
            return run.evaluations[0]["metric"]
    fields = (field for run in each.group.runs for record in run.training[:1] for field in record)
    return next((field[7:] for field in fields if field.startswith("window_") and field != "window_losses"), None)
