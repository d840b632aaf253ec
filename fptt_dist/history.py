"""A finished or running run, read back from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from fptt_dist.config import ConfigError

RUN_SCHEMA = 2
"""Schema number of a run directory, in its versions.json; 1 where none is there: then `tbptt` meant one update per
sequence, and truncated BPTT had another name."""


@dataclass(frozen=True)
class History:
    """The contents of a run's folder.

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
    def versions(self) -> dict[str, Any]:
        """Versions and hardware, from the result or else from versions.json; {} where they are not recorded."""
        found, file = (self.result or {}).get("versions"), self.path / "versions.json"
        if found is None and file.is_file():
            found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}

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


def require_schema(run: Path) -> None:
    """Return if this version can read the run directory, or nothing was started there.

    Raises:
        ConfigError: it is of another schema, in which the same words may mean something else.
    """
    file = run / "versions.json"
    if not file.is_file():
        return
    try:
        there = json.loads(file.read_text()).get("schema_version", 1)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if there != RUN_SCHEMA:
        raise ConfigError(
            f"{run} has run schema {there} of another fptt_dist, this one reads {RUN_SCHEMA}: use the version in "
            "versions.json, or type run.dir=… for a new run"
        )


def _read(path: Path) -> History:
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    require_schema(path)
    try:
        config = YAML(typ="safe", pure=True).load((path / "config.yaml").read_text())
        result = path / "result.json"
        records = _records(path)
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


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read a run's evaluations, without its configuration, which takes longer to read.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return [record for record in _records(path) if record["kind"] == "evaluation"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read as a run's folder: {error}") from error


def _records(path: Path) -> list[dict[str, Any]]:
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a run in progress may be writing the last line


def last_words(log: Path) -> str:
    """Return this program's last message in a log, or else the last line that is not srun's or submitit's; or ""."""
    try:
        text = log.read_text(errors="replace")
    except OSError:  # not there, or closed to others than the job's user
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("submitit INFO")]
    own = [line for line in lines if line.startswith("fptt-dist: ")]
    others = [line for line in lines if not line.startswith("srun: ")]
    return (own or others or lines or [""])[-1]
