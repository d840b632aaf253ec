"""The folder that the runs of a sweep share, and what is written there beside them.

runs/<name>/sweep.yaml          what was asked for
            000/, 001/, …       a run's folder each, the baseline trial's first; trial.json says which point it is
            sweep.json, best.yaml, figures/, tensorboard/     written by `fptt_dist.reporting`
            ray/                the state of Ray Tune
            .lock               the process that runs the sweep, or writes its results, while it does
"""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fptt_dist.config import ConfigError
from fptt_dist.config.loading.loader import read_mapping
from fptt_dist.config.schema.section import explicit
from fptt_dist.config.values import show
from fptt_dist.files import write_atomic
from fptt_dist.launchers.sweeps.plan import STATE, SweepPlan
from fptt_dist.launchers.sweeps.search_space import Overrides
from fptt_dist.records import read_record
from fptt_dist.reporting import SWEEP, TRIAL, is_sweep, read_sweep, write_sweep
from fptt_dist.training.lock.directory_lock import HeldError, hold, is_lock

LOG = logging.getLogger("fptt_dist")
FAILURE = "failure.json"
"""Why a run's newest process ended, in the run's folder within Ray Tune's."""


def check_folder(plan: SweepPlan, *, resume: bool, option: str = "--resume") -> bool:
    """Return whether the sweep's folder holds this sweep already; `option` is what a user types for `resume`.

    Raises:
        ConfigError: the folder is occupied, by another sweep or without `resume`.
    """
    folder, file = plan.folder, plan.folder / SWEEP
    if not file.is_file():
        if folder.exists() and not (folder.is_dir() and all(is_lock(path.name) for path in folder.iterdir())):
            raise ConfigError(f"run.dir={folder} is not empty and holds no sweep: type run.dir=… for another folder")
        return False
    if not resume:
        raise ConfigError(
            f"run.dir={folder} holds a sweep already: type {option} to resume it, or run.dir=… for another folder"
        )
    before, now = read_mapping(file).values, _asked(plan)
    if not before:
        raise ConfigError(f"{file} is empty, so it was damaged: type run.dir=… for a new sweep")
    lines = _differences("", before, now)
    if lines:
        raise ConfigError(
            f"{option}: run.dir={folder} holds another sweep:\n{''.join(lines)}give the old values, or run.dir=… for a "
            "new one"
        )
    return True


def create_folder(plan: SweepPlan) -> None:
    """Create the sweep's folder, with sweep.yaml.

    Raises:
        ConfigError: it cannot be created.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(plan.folder / SWEEP, _yaml(_asked(plan)))
    except OSError as error:
        raise ConfigError(f"run.dir={plan.folder} cannot be created: {error}") from error


def note_trial(folder: Path, note: Mapping[str, Any]) -> None:
    """Write trial.json of a run: "index", "overrides", "default", and its "state" and "message" once it is over."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TRIAL, json.dumps(note, indent=1) + "\n")


def read_note(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's trial.json; {} where there is none, or it cannot be read."""
    return _read(folder / TRIAL)


def note_failure(sweep: Path, name: str, failure: Mapping[str, Any]) -> None:
    """Keep why a run's process ended: "message", "overrides", and whether it is "final"."""
    file = sweep / STATE / name / FAILURE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(failure, indent=1) + "\n")


def read_failure(sweep: Path, name: str, overrides: Overrides) -> dict[str, Any]:
    """Return why the newest process of a run ended; {} if it was lost without a word, or ran something else."""
    failure = _read(sweep / STATE / name / FAILURE)
    return failure if failure.get("overrides") == overrides else {}


def _read(file: Path) -> dict[str, Any]:
    return read_record(file) or {}


def write_if_over(folder: Path) -> None:
    """Write the results of the sweep in `folder`, if there is one and all its runs are finished."""
    if not is_sweep(folder):
        return
    try:
        if any(trial.state != "finished" for trial in read_sweep(folder).trials):
            return
        with hold(folder, f"run.dir={folder}"):
            write_sweep(folder)
    except HeldError:  # two runs have finished at the same moment: the other one writes
        return
    except (ConfigError, OSError) as error:  # the run itself is finished
        LOG.warning("%s: the sweep's results could not be written: %s", folder, error)


def _asked(plan: SweepPlan) -> dict[str, Any]:
    """Return the contents of sweep.yaml."""
    values = plan.sweep.model_dump(mode="json")
    known = {"metric": plan.metric, "higher_is_better": plan.higher_is_better, "varying": plan.space.varying}
    return {**values, **known, "config": _plain(explicit(plan.base)), "space": _plain(plan.sweep.space)}


def _yaml(values: Any) -> str:
    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump(values, text)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _differences(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return [line for name in names for line in _differences(f"{prefix}{name}.", old.get(name), new.get(name))]
    return [] if old == new else [f"  {prefix.removesuffix('.')}: {show(old)} there, {show(new)} now\n"]
