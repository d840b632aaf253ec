"""Resources and options of a SLURM job: a site's defaults from a file, a command's options over them."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from fptt_dist.config.loading.loader import read_mapping
from fptt_dist.config.loading.merge import Layer, validated
from fptt_dist.config.schema.paths import refuse_remote
from fptt_dist.config.schema.section import Conflict, Section, refuse

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class Cluster(Section):
    """A job's size and place, as SLURM's sbatch names them."""

    partition: str | None = Field(default=None, description="partition, null = the cluster's default")
    account: str | None = Field(default=None, description="account to charge")
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features the nodes must have")
    time: str = Field(default="01:00:00", description="time limit of each start, such as 08:00:00 or 2-12:00:00")
    nodes: int = Field(default=1, ge=1, description="nodes")
    gpus_per_node: int | None = Field(default=None, ge=1, description="GPUs per node, one worker each")
    tasks_per_node: int | None = Field(default=None, ge=1, description="workers per node, null = one per GPU, or one")
    cpus_per_task: int | None = Field(default=None, ge=1, description="CPU cores per worker")
    mem_gb: float | None = Field(default=None, gt=0, description="memory per node in GB")
    signal_lead_seconds: int = Field(
        default=90, ge=1, description="seconds before the time limit at which the job is told to save"
    )
    requeues: int = Field(
        default=100, ge=0, description="how often a job that reached its time limit goes back into the queue"
    )
    array_parallelism: int = Field(default=256, ge=1, description="runs of an array that run at once")
    setup: tuple[str, ...] = Field(
        default=(), strict=False, description="shell commands that run before the workers start"
    )
    sbatch: tuple[str, ...] = Field(default=(), strict=False, description="more options of sbatch, as --mail-type=END")
    srun: tuple[str, ...] = Field(default=(), strict=False, description="more options of srun, as --mpi=none")
    python: str | None = Field(
        default=None, description="command that starts Python on the nodes, null = this program's"
    )

    @field_validator("time", mode="before")
    @classmethod
    def _minutes_are_a_number(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        """Refuse values that are allowed one by one but not together, and a time that is none."""
        conflicts = []
        if self.minutes is None:
            text = f"time={self.time} is no time of SLURM's: type minutes, hh:mm:ss, or days-hh:mm:ss, such as 08:00:00"
            conflicts.append(Conflict(text, ("time",)))
        elif self.signal_lead_seconds >= 60 * self.minutes:
            text = (
                f"signal_lead_seconds={self.signal_lead_seconds} is not less than time={self.time}: a job is told to "
                "save as it begins"
            )
            conflicts.append(
                Conflict(
                    f"{text}; give a longer time, or a smaller signal_lead_seconds", ("signal_lead_seconds", "time")
                )
            )
        if self.gpus_per_node and self.tasks_per_node and self.gpus_per_node != self.tasks_per_node:
            text = (
                f"tasks_per_node={self.tasks_per_node} with gpus_per_node={self.gpus_per_node}: each worker takes one "
                "GPU; give one of the two"
            )
            conflicts.append(Conflict(text, ("tasks_per_node", "gpus_per_node")))
        for key in ("sbatch", "srun"):
            wrong = [word for word in getattr(self, key) if not re.match(r"--\w", word)]
            if wrong:
                text = f"{key}: {wrong[0]} is no long option: type it as --name or --name=value"
                conflicts.append(Conflict(text, (key,)))
        refuse(conflicts)
        return self

    @property
    def tasks(self) -> int:
        """Workers per node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def minutes(self) -> int | None:
        """The time in minutes, rounded up; None for what is no time."""
        found = _TIME.fullmatch(self.time)
        if found is None:
            return None
        days, *rest = (found[name] for name in ("days", "first", "second", "third"))
        numbers = [int(part) for part in rest if part is not None]
        if days is not None:  # days-hours[:minutes[:seconds]]
            hours, minutes, seconds = (*numbers, 0, 0)[:3]
        elif len(numbers) == 3:
            hours, minutes, seconds = numbers
        else:  # minutes[:seconds]
            hours, minutes, seconds = 0, *(*numbers, 0)[:2]
        total = int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
        return total or None


def load_cluster(path: Path | None, options: Mapping[str, Any]) -> Cluster:
    """Load a site's file, with a command's options over it.

    Args:
        path: a YAML file; None: the defaults.
        options: by key; None counts as not given. A message calls `key` --key.

    Raises:
        ConfigError: a file that cannot be read, with all problems of its values, one per line.
    """
    if path is not None:
        refuse_remote("--cluster", path)
    file = Layer({}) if path is None else read_mapping(path)
    given = {key: value for key, value in options.items() if value is not None}
    where = {(key,): f"--{key.replace('_', '-')}" for key in given}
    for one, other in (("gpus_per_node", "tasks_per_node"), ("tasks_per_node", "gpus_per_node")):
        if one in given and other not in given:
            file.values.pop(other, None)  # the one option replaces the other's default
    return validated(Layer({**file.values, **given}, {**file.where, **where}), Cluster)
