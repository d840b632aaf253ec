"""A run's folder: `runs/<name>/` with everything that a report needs.

config.yaml (resolved) · versions.json · network.json (sizes and inputs) · vocabulary.json (of a text) · job.json and
slurm/ (the newest SLURM job, its logs) · trial.json (which point of a sweep) · own_cell.py, own_task.py (the user's
files) · metrics.jsonl · tensorboard/ · checkpoints/ · result.json (last) · report.html, report_figures/ · .lock (which
process writes here, while it does)
"""

import json
import logging
import math
import os
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fptt_dist.config import Config, ConfigError, UserClass, apply_overrides, changes, dump, load, short_name
from fptt_dist.config.values import show
from fptt_dist.files import write_atomic
from fptt_dist.history import RUN_SCHEMA, read_result, require_config, require_schema
from fptt_dist.records import dumps, loads, read_record
from fptt_dist.training.lock.directory_lock import DirectoryLock, hold, is_lock
from fptt_dist.training.lock.holder import slurm_job
from fptt_dist.training.result import Result
from fptt_dist.trust import kept_name
from fptt_dist.version import __version__

LOG = logging.getLogger("fptt_dist")
LOGS = "slurm"
STARTED = (
    *("checkpoints", "versions.json", "versions.json.tmp", "config.yaml.tmp"),
    *("job.json", "job.json.tmp", "trial.json", "trial.json.tmp", LOGS),
)
"""Files that may be there before config.yaml: of a killed start, of a job that waits in the queue, of a sweep."""
MAY_CHANGE = (
    "train.max_batches",
    "train.max_epochs",
    "train.patience",
    "checkpoint.",
    "logging.",
    "data.root",
    "data.workers",
    "parallel.launcher",
    "parallel.timeout_seconds",
    "run.dir",
    "resume",
)
SAME_UPDATES = ("single", "data_parallel", "fsdp", "deepspeed")  # they differ only in which worker holds what


def versions() -> dict[str, str]:
    """Versions of program and libraries, and the hardware, as plain strings."""
    import numpy as np
    import torch

    return {
        "fptt_dist": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


class RunDirectory:
    """The files of one run.

    Args:
        config: the run's configuration; `run.dir` null means `runs/<task>-<algorithm>-seed<seed>`.

    Attributes:
        config: the same with `run.dir` resolved, and the user's files by their absolute paths.
        path: the folder.
    """

    def __init__(self, config: Config) -> None:
        if config.run.dir is None:
            name = f"{short_name(config.task.name)}-{config.algorithm}-seed{config.seed}"
            config = apply_overrides(config, {"run.dir": str(Path("runs") / name)})
        self.config = config = config.with_absolute_files()
        assert config.run.dir is not None
        self.path = Path(config.run.dir)
        self._lock: DirectoryLock | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File with one JSON object per line: a training record, or an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def run_id(self) -> str:
        """The run's identity, minted once; of a run that was opened."""
        found = self._known_id()
        assert found is not None
        return found

    @property
    def logs(self) -> Path:
        """Folder of the logs of SLURM jobs, their scripts, and their input."""
        return self.path / LOGS

    def check(self) -> bool:
        """Return whether the folder holds this run already.

        Raises:
            ConfigError: the folder is occupied and resume is not auto, or it holds a run of another configuration.
        """
        saved = self.path / "config.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run.dir={self.path} is a file: type run.dir=… for the run's own folder")
        if saved.is_file():
            require_schema(self.path)
            if self.config.resume == "never":
                raise ConfigError(
                    f"run.dir={self.path} holds a run already: type resume=auto to resume it, or run.dir=… for another "
                    "folder"
                )
            self._check_same_run(saved)
            return True
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if any(name not in STARTED and not is_lock(name) for name in names):
            raise ConfigError(f"run.dir={self.path} is not empty and holds no run: type run.dir=… for another folder")
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Open the folder, and let no other process write into it within the context; on rank 0 only.

        Raises:
            ConfigError: as `open`, or another process writes into it.
        """
        self.refuse_held()  # before anything else is said of what is there
        self.check()  # a mistake leaves no folder behind
        with self.alone() as lock:
            self._lock = lock
            try:
                self.open()
                yield
            finally:
                self._lock = None

    def alone(self) -> AbstractContextManager[DirectoryLock]:
        """Create the folder, and let no other process write into it within the context.

        Raises:
            ConfigError: another process writes into it, or it cannot be created.
        """
        return hold(self.path, f"run.dir={self.path}")

    @property
    def is_held(self) -> bool:
        """True if this process may write records: not if it stood still so long that another one took over."""
        return self._lock is None or self._lock.held

    def lost(self) -> str | None:
        """Return why nothing more may be written; None while this process has the folder's lock, or took none."""
        return None if self._lock is None else self._lock.problem()

    def _check_held(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def refuse_held(self) -> None:
        """Return unless a process that lives writes into the folder.

        Raises:
            ConfigError: one does.
        """
        DirectoryLock(self.path, f"run.dir={self.path}").refuse()

    def open(self) -> None:
        """Create the folder, or check that this configuration may resume in it; called by rank 0 only.

        Raises:
            ConfigError: as `check`, or the folder cannot be created.
        """
        resumes = self.check()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.dir={self.path} cannot be created: {error.strerror}") from error
        if not resumes or _id_in(self.path / "versions.json") is None:
            self._write_versions()
        job = slurm_job()
        if job not in (None, self.job.get("job")) and "SUBMITIT_EXECUTOR" not in os.environ:  # else submit notes it
            self.note_job(job)
        write_atomic(self.path / "config.yaml", dump(self.config))
        self._keep_own_files()

    def _write_versions(self) -> None:
        """Write versions.json; of a run whose file was damaged, with the identity that its checkpoints have."""
        run_id = self._known_id() or uuid.uuid4().hex
        values = {"run_id": run_id, "schema_version": RUN_SCHEMA, "command": sys.argv, **versions()}
        write_atomic(self.path / "versions.json", json.dumps(values, indent=1) + "\n")

    def _known_id(self) -> str | None:
        """Return the run's identity, from versions.json or else from the newest checkpoint; None if neither has it."""
        states = sorted(self.checkpoints.glob("step-*[0-9]/state.json"), reverse=True)
        found = (_id_in(file) for file in (self.path / "versions.json", *states))
        return next((each for each in found if each is not None), None)

    def _keep_own_files(self) -> None:
        """Keep the user's files as they were when the run began, and warn of one that has changed since."""
        for own in self.config.user_classes:
            kept, text = self.path / kept_name(own), own.file.read_bytes()
            if not kept.is_file():
                write_atomic(kept, text)
            elif kept.read_bytes() != text:
                LOG.warning("%s=%s has changed since the run began: %s is what it was", own.key, own, kept)

    def _is_kept(self, own: UserClass) -> bool:
        kept = self.path / kept_name(own)
        return kept.is_file() and own.file.is_file() and kept.read_bytes() == own.file.read_bytes()

    @property
    def job(self) -> dict[str, str]:
        """See `job_of`."""
        return job_of(self.path)

    def note_job(self, job: str, **more: str) -> None:
        """Write job.json."""
        write_atomic(self.path / "job.json", json.dumps({"job": job, **more}, indent=1) + "\n")

    def _check_same_run(self, saved: Path) -> None:
        require_config(self.path)
        old, now = load(saved), self.config
        old = old.with_files({own.key: own.file for own in now.user_classes if self._is_kept(own)})  # it was moved
        may_change = MAY_CHANGE
        if old.parallel.strategy in SAME_UPDATES and now.parallel.strategy in SAME_UPDATES:
            may_change = (*MAY_CHANGE, "parallel.")
        elif old.parallel.strategy == now.parallel.strategy == "hierarchical":
            may_change = (*MAY_CHANGE, "parallel.intra_node")
        differing = {key: pair for key, pair in changes(old, now).items() if not key.startswith(may_change)}
        if differing:
            lines = "\n".join(
                f"  {key}: {show(there)} there, {show(new)} now" for key, (there, new) in differing.items()
            )
            raise ConfigError(
                f"resume=auto: run.dir={self.path} holds a run with another configuration:\n{lines}\n"
                "Only train.max_batches, train.max_epochs, train.patience, checkpoint.*, logging.*, data.root, "
                "data.workers, "
                "parallel.launcher, parallel.timeout_seconds and, among single, data_parallel, fsdp and deepspeed, "
                "parallel.strategy may change: give the old values, or run.dir=… for a new run"
            )

    def cut_metrics(self, batch: int, *, ended: bool = False) -> None:
        """Drop the records after `batch`, which the resumed run writes again; in place, for who has the file open.

        A corrupt line stays where records that are kept come after it.

        Args:
            batch: after which the run resumes.
            ended: whether that is its last one, so that the record of the test set is written again too.
        """
        self._check_held()
        if not self.metrics.is_file():
            return
        with self.metrics.open("rb+") as file:
            kept, end, last = 0, 0, b"\n"
            for line in file:
                end += len(line)
                done, split = _place_of(line)
                if done is None:
                    continue
                if done > batch or (ended and done == batch and split == "test"):
                    break
                kept, last = end, line
            file.truncate(kept)
            if not last.endswith(b"\n"):
                file.seek(kept)
                file.write(b"\n")

    def write_result(self, result: Result) -> None:
        """Write result.json, the last file of a run; a value that is not finite is null there, see `records`.

        Raises:
            LostLockError: another process has taken the folder over.
            OSError: it could not be written.
        """
        self._check_held()
        values = {name: value for name, value in asdict(result).items() if name != "path"}  # the folder may be moved
        write_atomic(self.path / "result.json", dumps(values, indent=1) + "\n")

    def discard_result(self) -> None:
        """Delete result.json: the run resumes, so it is no longer finished."""
        self._check_held()
        (self.path / "result.json").unlink(missing_ok=True)

    def read_result(self) -> Result | None:
        """Return the result of a finished run; None while it is not finished, and where it is damaged."""
        found = read_result(self.path)
        try:
            return None if found is None else Result(**found, path=self.path.absolute())
        except TypeError as error:
            LOG.warning("%s is no result of a run and counts as missing: %s", self.path / "result.json", error)
            return None


def job_of(run: Path) -> dict[str, str]:
    """Return the newest SLURM job of a run: its number "job" and, where it is known, rank 0's "log"; {} for none."""
    found = read_record(run / "job.json") or {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _id_in(file: Path) -> str | None:
    found = (read_record(file) or {}).get("run_id")
    return found if isinstance(found, str) else None


def _place_of(line: bytes) -> tuple[float | None, Any]:
    """Return the batch of a record, None for a truncated or corrupt line, and its split, None for a training record."""
    try:
        record = loads(line)
        batch = float(record["batch"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None, None
    return (batch if math.isfinite(batch) else None), record.get("split")


def flat_values(config: Config) -> dict[str, Any]:
    """Return every dotted key with its value (str, number or bool)."""

    def walk(prefix: str, node: dict[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in node.items():
            if isinstance(value, dict):
                flat.update(walk(f"{prefix}{key}.", value))
            else:
                flat[prefix + key] = value if isinstance(value, str | int | float) else str(value)
        return flat

    return walk("", config.model_dump())
