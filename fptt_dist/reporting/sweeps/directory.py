"""Reader of a sweep directory."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptt_dist.config import ConfigError, short_name
from fptt_dist.config.loading.loader import read_mapping
from fptt_dist.history import History, last_words, readable_runs
from fptt_dist.records import read_record
from fptt_dist.reporting.sweeps.results import SweepResults, TrialRow

LOG = logging.getLogger("fptt_dist")
SWEEP = "sweep.yaml"
"""The requested sweep, in a sweep directory."""
TRIAL = "trial.json"
"""The identity of a sweep's trial, in its run directory."""


def is_sweep(path: Path) -> bool:
    """Return whether `path` is a sweep directory."""
    return (path / SWEEP).is_file()


def read_sweep(path: Path) -> SweepResults:
    """Read a sweep directory; a trial that cannot be read is left out, which the log says.

    Raises:
        ConfigError: a folder that holds no sweep, or its sweep.yaml cannot be read.
    """
    if not is_sweep(path):
        raise ConfigError(f"{path} is not a sweep's folder: it has no {SWEEP}")
    asked = read_mapping(path / SWEEP).values
    kinds = {"metric": str, "higher_is_better": bool, "varying": list, "search": dict}
    for key, kind in kinds.items():
        if not isinstance(asked.get(key), kind):
            raise ConfigError(f"{path / SWEEP} is not the file of a sweep: its {key} is missing or wrong")
    found = [note for file in sorted(path.glob(f"*/{TRIAL}")) if (note := _noted(file)) is not None]
    notes = sorted(found, key=lambda note: note["index"])
    runs = [_history(note["path"]) for note in notes]
    task = next((short_name(str(run.config["task"].get("name", ""))) for run in runs if run is not None), "")
    trials = [_row(note, run, asked["varying"]) for note, run in zip(notes, runs, strict=True)]
    return SweepResults(path, asked, task, trials)


def _noted(file: Path) -> dict[str, Any] | None:
    """Return the content of trial.json, with its folder as "path"; None where it cannot be read."""
    note = read_record(file) or {}
    if isinstance(note.get("index"), int) and isinstance(note.get("overrides"), dict):
        return {**note, "path": file.parent}
    LOG.warning("%s is left out: its %s does not say which trial of the sweep it is", file.parent, TRIAL)
    return None


def _history(path: Path) -> History | None:
    """Return a trial's run; None before it has started, and where it cannot be read."""
    return next(iter(readable_runs([path])), None) if (path / "config.yaml").is_file() else None


def _row(note: dict[str, Any], run: History | None, varying: list[str]) -> TrialRow:
    """Return the trial's row, from trial.json and the run's own files."""
    result = run.result if run else None
    records = [*run.training, *run.evaluations] if run else []
    newest = max(records, key=lambda record: record["batch"], default={})
    validations = [record for record in run.evaluations if record["split"] == "validation"] if run else []
    best = next((record for record in reversed(validations) if record.get("best")), {})
    if result is not None:
        state, newest = "finished", {**result, "batch": result["batches"]}
        best = {"value": result["validation"], "batch": result["best_batch"]}
    else:
        state = note.get("state")
        if state not in ("stopped", "failed"):
            state = "not finished" if records else "waiting"
    return TrialRow(
        index=note["index"],
        path=note["path"],
        default=bool(note.get("default")),
        overrides=note["overrides"],
        values=_values(run.config if run else note["overrides"], varying),
        state=state,
        value=best.get("value"),
        test=result["value"] if result else None,
        batch=newest.get("batch", 0),
        batches=result["batches"] if result else run.config.get("train", {}).get("max_batches") if run else None,
        best_batch=best.get("batch"),
        updates=newest.get("updates", 0),
        sequences=newest.get("sequences", 0),
        seconds=newest.get("seconds", 0.0),
        bytes_sent=run.bytes_sent if run else 0,
        message=_message(note, state),
        curve=[(record["sequences"], record["value"]) for record in validations],
    )


def _values(config: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the values of the dotted keys that exist; `config` is nested or has dotted keys itself."""
    values: dict[str, Any] = {}
    for key in keys:
        node: Any = config
        for name in [key] if key in config else key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                break
            node = node[name]
        else:
            values[key] = node
    return values


def _message(note: dict[str, Any], state: str) -> str:
    if state in ("finished", "stopped"):
        return ""
    if note.get("message"):
        return note["message"]
    log = (read_record(note["path"] / "job.json") or {}).get("log")
    return last_words(Path(log)) if isinstance(log, str) else ""
