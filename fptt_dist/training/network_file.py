"""network.json of a run: sizes and inputs of its network, so that it is used without the task and its data."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fptt_dist.files import write_atomic
from fptt_dist.records import read_record
from fptt_dist.tasks import Task, TaskShape

FILE = "network.json"
LOG = logging.getLogger("fptt_dist")


def keep_network(run: Path, task: Task) -> None:
    """Write the file of a run that starts, of which a run that resumes has the same."""
    if read_network(run) is None:
        values = {**asdict(TaskShape.of(task)), "input": task.input_description()}
        write_atomic(run / FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_network(run: Path) -> tuple[TaskShape, dict[str, Any]] | None:
    """Return the sizes of a run's network, and how its inputs are prepared; None without a sound file."""
    values = read_record(run / FILE)
    if values is None:
        return None
    try:
        shape = TaskShape(**{name: value for name, value in values.items() if name != "input"})
        return shape, dict(values["input"])
    except (KeyError, TypeError, ValueError) as error:
        LOG.warning("%s is damaged (%s): the task is built anew in its place", run / FILE, error)
        return None
