"""A finished or running run, read back from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from fptt_dist.config import ConfigError


@dataclass(frozen=True)
class History:
    """What a run's folder says.

    Attributes:
        path: the folder.
        config: config.yaml as nested dictionaries.
        training: the training records, in order.
        evaluations: the evaluations, in order.
        result: result.json; None while the run is not finished.
    """

    path: Path
    config: dict[str, Any]
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def bytes_sent(self) -> int:
        """Bytes that rank 0 has sent so far, over all starts of the run."""
        return sum(record.get("bytes_sent", 0) for record in self.training)

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        algorithm = self.config["algorithm"]
        return algorithm if self.path.name == algorithm else f"{algorithm} ({self.path.name})"


def read_runs(paths: list[Path]) -> list[History]:
    """Read the runs' folders.

    Raises:
        ConfigError: a folder that holds no run, or a file of it that cannot be read.
    """
    return [_read(path) for path in paths]


def _read(path: Path) -> History:
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    try:
        config = YAML(typ="safe", pure=True).load((path / "config.yaml").read_text())
        result = path / "result.json"
        metrics = path / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]  # a running one may be in the last line
        if not (isinstance(config, dict) and "algorithm" in config and isinstance(config.get("task"), dict)):
            raise ValueError("config.yaml is no configuration of a run")
        return History(
            path=path,
            config=config,
            training=[record for record in records if record["kind"] == "train"],
            evaluations=[record for record in records if record["kind"] == "evaluation"],
            result=json.loads(result.read_text()) if result.is_file() else None,
        )
    except (ValueError, KeyError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a run's folder: {error}") from error


def last_words(log: Path) -> str:
    """The last message of this program's in a log, or else the last line that is not srun's or submitit's; or ""."""
    try:
        text = log.read_text(errors="replace")
    except OSError:  # not there, or closed to others than the job's user
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("submitit INFO")]
    own = [line for line in lines if line.startswith("fptt-dist: ")]
    others = [line for line in lines if not line.startswith("srun: ")]
    return (own or others or lines or [""])[-1]
