"""A finished or running run, read back from its folder."""

import logging
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptt_dist.config import Config, ConfigError, load, parse_overrides, require_objects
from fptt_dist.config.loading.loader import read_mapping
from fptt_dist.records import read_lines, read_record
from fptt_dist.trust import is_run, trusted

LOG = logging.getLogger("fptt_dist")
RUN_SCHEMA = 2
"""Schema number of a run directory, in its versions.json; 1 where none is there: then `tbptt` meant one update per
sequence, and truncated BPTT had another name."""
NEEDED: dict[str, dict[str, Any]] = {
    "train": {"batch": int},
    "evaluation": {"batch": int, "split": str, "value": int | float},
}
"""Values of the records of metrics.jsonl, by their kind, without which one cannot be used."""


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
        found = (self.result or {}).get("versions") or read_record(self.path / "versions.json")
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


def readable_runs(paths: list[Path]) -> list[History]:
    """Read the runs' folders; one that cannot be read is left out, which the log says."""
    found = []
    for path in paths:
        try:
            found.append(_read(path))
        except ConfigError as error:
            LOG.warning("%s is left out: %s", path, error)
    return found


def require_schema(run: Path) -> None:
    """Return if this version can read the run directory, or there is no versions.json to say of which schema it is.

    Raises:
        ConfigError: it is of another schema, in which the same words may mean something else.
    """
    versions = read_record(run / "versions.json")
    there = RUN_SCHEMA if versions is None else versions.get("schema_version", 1)
    if there != RUN_SCHEMA:
        raise ConfigError(
            f"{run} has run schema {there} of another fptt_dist, this one reads {RUN_SCHEMA}: use the version in "
            "versions.json, or type run.dir=… for a new run"
        )


def load_to_train(
    path: str | Path, words: Sequence[str], *, trust_code: bool = False, given: Container[str] = ()
) -> Config:
    """Load the configuration that a user has named to train, with the words after it.

    Args:
        path: of the file, or the name of a packaged one.
        words: like fptt.alpha=0.3.
        trust_code: of a run's configuration, whether code that the run keeps may be executed, see `trusted`.
        given: keys whose objects a program gives.

    Raises:
        ConfigError: a mistake; the file is of a run that was moved, whose resume would start anew at the old place; or
            of one with code that may not be executed, or with an object that is not given.
    """
    overrides, file = parse_overrides(words), Path(path)
    config = load(file, overrides)
    require_objects(config, given)
    here, there = file.parent, config.run.dir
    if not is_run(file):
        return config
    resumes = config.resume == "auto" and there is not None and "run.dir" not in overrides
    if resumes and Path(str(there)).resolve() != here.resolve():
        raise ConfigError(
            f"resume=auto: {file} says run.dir={there}, so the run was moved, or this is another working directory: "
            f"type run.dir={here} to resume it where it is"
        )
    return trusted(config, here, trust_code=trust_code, typed=overrides)


def require_config(run: Path) -> None:
    """Return if config.yaml of the run is complete: all defaults would be taken for an empty one.

    Raises:
        ConfigError: it is not.
    """
    file = run / "config.yaml"
    if not re.search(rb"^algorithm:", file.read_bytes(), re.MULTILINE):  # every run's own has every key
        raise ConfigError(
            f"{file} is no run's, or damaged: it has no algorithm: write it again with fptt-dist config show CONFIG "
            "key=value …, or type run.dir=… for a new run"
        )


def _read(path: Path) -> History:
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is not a run's folder, it has no config.yaml: type the folder of one run")
    require_schema(path)
    try:
        config = read_mapping(path / "config.yaml").values
        records = _records(path)
        sections = [config.get("task"), config.get("train", {})]
        if not ("algorithm" in config and all(isinstance(section, dict) for section in sections)):
            raise ValueError("config.yaml is no configuration of a run")
        return History(
            path=path,
            config=config,
            training=[record for record in records if record["kind"] == "train"],
            evaluations=[record for record in records if record["kind"] == "evaluation"],
            result=read_result(path),
        )
    except (OSError, ConfigError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a run's folder: {error}") from error


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the evaluations among `records_of`."""
    return [record for record in records_of(path) if record["kind"] == "evaluation"]


def records_of(path: Path) -> list[dict[str, Any]]:
    """Read a run's records in order, without its configuration, which takes longer to read.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return _records(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a run's folder: {error}") from error


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl that can be used."""
    return [
        record for record in read_lines(path / "metrics.jsonl") if _has(record, NEEDED.get(str(record.get("kind"))))
    ]


def _has(record: dict[str, Any], needed: dict[str, Any] | None) -> bool:
    return needed is not None and all(isinstance(record.get(key), kind) for key, kind in needed.items())


def read_result(path: Path) -> dict[str, Any] | None:
    """Return result.json of a run; None while it is not finished, and where it is damaged, which the log says."""
    result = read_record(path / "result.json")
    if result is None or _has(result, {"value": int | float, "validation": int | float}):
        return result
    LOG.warning("%s is no result of a run and counts as missing", path / "result.json")
    return None


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
