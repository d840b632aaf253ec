"""List of runs and their states, from their folders and SLURM's queue, without its accounting."""

import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fptt_dist.config import ConfigError
from fptt_dist.history import History, last_words, read_runs
from fptt_dist.records import read_record
from fptt_dist.training.lock.directory_lock import DirectoryLock
from fptt_dist.training.process.resume_hint import hint_of_workers
from fptt_dist.training.run_dir import job_of

LOG = logging.getLogger("fptt_dist")

MANIFEST, TRIAL = "manifest.json", "trial.json"

SECONDS = 60.0  # that SLURM's controller may take to answer
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class Queued:
    """A job as squeue reports it: its state, such as RUNNING, its nodes, and the reason for that state."""

    state: str
    nodes: str
    reason: str


@dataclass(frozen=True)
class JobRow:
    """One run.

    Attributes:
        run: its folder.
        state: the job's while it is in the queue, else "finished", or what became of it.
        batch: how far it is.
        metric: the newest value, on the test set for a finished run.
        job: SLURM's number.
        nodes: where it runs.
        log: rank 0's; None where it is not known.
        last_words: of a run that has ended unfinished, from its log.
        resume: how to resume it, where nothing runs and something was saved.
    """

    run: Path
    state: str
    batch: str
    metric: str
    job: str
    nodes: str
    log: Path | None
    last_words: str
    resume: str


def queue() -> dict[str, Queued]:
    """This user's jobs by their number (12, or 12_3 in an array), with those that ended lately; {} without SLURM.

    Raises:
        ConfigError: SLURM's controller does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%N|%r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=SECONDS)
    except FileNotFoundError:
        return {}
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"{said}: type the command on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"squeue: SLURM's controller did not answer within {SECONDS:.0f} s") from error
    lines = (line.split("|", 3) for line in listed.stdout.splitlines())
    return {line[0]: Queued(*line[1:]) for line in lines if len(line) == 4}


def active_jobs() -> dict[str, str]:
    """The state of the jobs that wait or run, by their number."""
    return {number: job.state for number, job in queue().items() if job.state not in ENDED}


def list_runs(root: Path) -> list[JobRow]:
    """The runs in the folders below `root`, the newest last; from the folders alone where SLURM does not answer.

    Raises:
        ConfigError: no run is there.
    """
    places = (f"{depth}{name}" for depth in ("", "*/", "*/*/") for name in ("config.yaml", "job.json"))
    runs = {path.parent for place in places for path in root.glob(place) if path.parent.parent.name != "checkpoints"}
    if not runs:
        here = root.absolute()
        raise ConfigError(f"{here}: no run is there: type fptt-dist jobs FOLDER, the folder above the runs' folders")
    try:
        jobs = queue() if any(job_of(run).get("job", "")[:1].isdigit() for run in runs) else {}  # nothing else is in it
    except ConfigError as error:
        LOG.warning("%s", error)
        jobs = {}
    rows = []
    for path in sorted(runs, key=lambda path: path.stat().st_mtime):
        try:
            rows.append(_row(path, jobs))
        except (ConfigError, OSError) as error:  # somebody else's config.yaml
            LOG.warning("%s is left out: %s", path, error)
    return rows


def _row(run: Path, jobs: dict[str, Queued]) -> JobRow:
    note = job_of(run)
    number = note.get("job", "")
    log = Path(note["log"]) if "log" in note else None
    history = read_runs([run])[0] if (run / "config.yaml").is_file() else None
    job, saved = jobs.get(number), _newest_checkpoint(run)
    holder = DirectoryLock(run, str(run)).holder()
    finished = history is not None and history.result is not None
    # A job may continue with something else after this run; one that is pending will resume it.
    waits = job is not None and job.state not in ENDED and (job.state == "PENDING" or not finished)
    if job is not None and waits:
        state = f"pending ({job.reason})" if job.state == "PENDING" else job.state.lower()
    elif finished:
        state = "finished"
    elif holder is not None:
        state = "running"
    elif job is not None and job.state != "COMPLETED":
        state = job.state.lower()
    elif history is None:
        state = "not finished"
    else:
        state = "stopped, nothing saved" if saved is None else f"stopped at batch {saved.batch}, resumable"
    over = not (waits or finished or holder)
    return JobRow(
        run=run,
        state=state,
        batch=_batch(history, saved),
        metric=_metric(history),
        job=number,
        nodes=job.nodes if job is not None and waits else holder.host if holder is not None else "",
        log=log,
        last_words=last_words(log) if over and log is not None else "",
        resume=_resume(run, number, saved) if over and saved is not None else "",
    )


@dataclass(frozen=True)
class _Checkpoint:
    """A complete checkpoint: after how many batches, and the number of workers that wrote it."""

    batch: int
    workers: int


def _newest_checkpoint(run: Path) -> _Checkpoint | None:
    """Return the newest complete checkpoint of a run; its files are not read, which a resume does."""
    for folder in sorted(run.glob("checkpoints/step-*[0-9]"), reverse=True):
        workers = (read_record(folder / MANIFEST) or {}).get("world")
        step = folder.name.removeprefix("step-")
        if step.isdecimal() and isinstance(workers, int):
            return _Checkpoint(int(step), workers)
    return None


def _resume(run: Path, job: str, saved: _Checkpoint) -> str:
    if (run / TRIAL).is_file():
        return "resume its sweep with the same command and --resume"
    return hint_of_workers(run, None if job else saved.workers)


def _batch(history: History | None, saved: _Checkpoint | None) -> str:
    if history is None:
        return ""
    recorded = (record["batch"] for record in (*history.training, *history.evaluations))
    done = max((*recorded, saved.batch if saved else 0))
    total = history.config.get("train", {}).get("max_batches")
    return f"{done} of {total}" if total else str(done)


def _metric(history: History | None) -> str:
    if history is None or not history.evaluations:
        return ""
    newest = history.evaluations[-1]
    return f"{newest['split']} {newest.get('metric', '')} {newest['value']:.4g}"
