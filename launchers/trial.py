"""What a process of Ray Tune's does: one run of a sweep, alone or as the driver of a run on several processes."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray import tune
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from fptt_dist.config import Config, ConfigError, dump
from fptt_dist.config.section import explicit
from fptt_dist.launchers.ray_cluster import Need
from fptt_dist.launchers.ray_workers import MeetingPlace
from fptt_dist.launchers.sweep import config_of
from fptt_dist.launchers.sweep_folder import note_failure, note_trial, read_failure, read_note
from fptt_dist.parallel import LostWorkerError
from fptt_dist.reporting import TRIAL, read_runs
from fptt_dist.streams import protect
from fptt_dist.tasks import DataError
from fptt_dist.training.holder import STARTER
from fptt_dist.training.lock import HeldError, is_lock
from fptt_dist.training.position import Progress
from fptt_dist.training.resume_hint import RESUME
from fptt_dist.training.run import train
from fptt_dist.training.run_folder import Result, RunFolder, write_whole
from fptt_dist.training.trainer import NonFiniteError

RETRIED = (HeldError, OSError, LostWorkerError, RayError, TrainingFailedError)
"""Errors that may not come back at another attempt: a full disk, a process that died, or was about to."""
OWN_WORDS = (ConfigError, DataError, NonFiniteError, OSError, LostWorkerError)
"""Errors with a message of their own."""

METRICS, PACKED = "metrics.jsonl", ".report-"

Note = dict[str, Any]
"""What trial.json says."""


@dataclass(frozen=True)
class Sweep:
    """What all runs of a sweep have in common.

    Attributes:
        base: the configuration's explicit values.
        folder: of the sweep.
        need: of each run.
        command: what resumes it.
        starter: a token of the process that runs the sweep.
    """

    base: dict[str, Any]
    folder: Path
    need: Need
    command: str
    starter: str


def trainable(sweep: Sweep) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls with each point, as {"trial": …} of a `launchers.sweep.Trial`."""

    def trial(config: dict[str, Any]) -> None:
        run_trial(sweep, config["trial"])

    return trial


def run_trial(sweep: Sweep, point: Mapping[str, Any]) -> None:
    """Train one run of a sweep, from where Ray says it is, and report to Ray at each validation.

    Raises:
        Exception: what ended the run; trial.json in its folder has the message.
    """
    protect()
    os.environ |= {RESUME: sweep.command, STARTER: sweep.starter}
    name = tune.get_context().get_trial_name()
    assert name is not None
    folder = sweep.folder / name
    # Population based training gives a run another one's point, its number included.
    before, note = read_note(folder), {**point, "index": int(name)}
    failure = read_failure(sweep.folder, name, note["overrides"])
    if failure.get("final"):
        raise RuntimeError(failure["message"])  # Ray Tune started it again for nothing
    with _failure_noted(sweep.folder, name, note):
        config = config_of(Config.model_validate(sweep.base), {**note["overrides"], "resume": "auto"}, folder)
        run = RunFolder(config)
        if sweep.need.workers == 1:
            with run.alone():
                _go_back_to(tune.get_checkpoint(), run, note)
            result = train(config, lambda progress: _report(progress, folder))
        else:
            with run.alone():
                if before and before["overrides"] != note["overrides"]:  # another point's, which Ray Tune does not know
                    _empty(folder)
                note_trial(folder, note)
            result = _train_on_workers(sweep, config)
        tune.report(_final(result, folder))


def _go_back_to(checkpoint: tune.Checkpoint | None, run: RunFolder, note: Note) -> None:
    """Make the run's folder what it was at a checkpoint, its own or another run's; empty it where there is none."""
    if checkpoint is None:
        _empty(run.path)
        note_trial(run.path, note)
        return
    for old in (run.checkpoints, *run.path.glob(f"{PACKED}*")):
        shutil.rmtree(old, ignore_errors=True)
    with checkpoint.as_directory() as packed:
        shutil.copytree(packed, run.checkpoints)
    shutil.move(run.checkpoints / METRICS, run.metrics)
    before = read_note(run.checkpoints)  # of the run whose state it is
    (run.checkpoints / TRIAL).unlink()
    batch = max(json.loads(line)["batch"] for line in run.metrics.read_text().splitlines())
    for step in run.checkpoints.iterdir():
        # When a run takes another one's state, Ray Tune puts the next report into the folder of the one before.
        if int(step.name.removeprefix("step-")) > batch:
            shutil.rmtree(step)
    if before["overrides"] != note["overrides"]:
        history = before.get("history") or [{"batch": 0, "overrides": before["overrides"]}]
        note["history"] = [*history, {"batch": batch, "overrides": note["overrides"]}]
    elif "history" in before:
        note["history"] = before["history"]
    write_whole(run.path / "config.yaml", dump(run.config))
    note_trial(run.path, note)


def _empty(folder: Path) -> None:
    """Remove what a run has left in its folder, but for the lock, which this process holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not is_lock(path.name):
            path.unlink()


def _report(progress: Progress, folder: Path) -> None:
    """Tell Ray Tune how far a run is, with all that it needs to go on from there; may not return."""
    with tempfile.TemporaryDirectory(prefix=PACKED, dir=folder) as packed:
        for each in {progress.checkpoint, progress.best_checkpoint}:
            shutil.copytree(each, Path(packed) / each.name, copy_function=_link)
        for name in (METRICS, TRIAL):
            shutil.copy2(folder / name, packed)
        tune.report(_metrics(progress, folder), checkpoint=tune.Checkpoint.from_directory(packed))


def _link(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:  # a file system without
        shutil.copy2(source, destination)
    return destination


def _metrics(progress: Progress, folder: Path) -> dict[str, Any]:
    return {
        "value": progress.value,
        "best": progress.best,
        "batch": progress.batch,
        "seconds": progress.seconds,
        "bytes_sent": read_runs([folder])[0].bytes_sent,
    }


def _final(result: Result, folder: Path) -> dict[str, Any]:
    """The last report, after all is written: whatever Ray Tune makes of it, the run is finished."""
    return {
        "value": result.validation,
        "best": result.validation,
        "batch": result.batches,
        "seconds": result.seconds,
        "bytes_sent": read_runs([folder])[0].bytes_sent,
    }


def _train_on_workers(sweep: Sweep, config: Config) -> Result:
    """The same on several processes of Ray Train's. Each report goes from rank 0 through this process to Ray Tune."""
    need = sweep.need
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"values": explicit(config), "command": sweep.command, "starter": sweep.starter},
        torch_config=MeetingPlace(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=need.workers,
            use_gpu=need.gpus > 0,
            resources_per_worker={"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=Path(str(config.run.dir)).name,
            storage_path=str(sweep.folder / "ray" / "train"),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()
    result = RunFolder(config).read_result()
    assert result is not None
    return result


def _worker(given: dict[str, Any]) -> None:
    """One process of a run of several."""
    protect()
    os.environ |= {RESUME: given["command"], STARTER: given["starter"]}
    config = Config.model_validate(given["values"])
    folder = RunFolder(config).path
    train(config, lambda progress: ray.train.report(_metrics(progress, folder)))


@contextmanager
def _failure_noted(sweep: Path, name: str, note: Note) -> Iterator[None]:
    """Write down what ends a run's process, for the sweep's table."""
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        message = str(cause) if isinstance(cause, OWN_WORDS) else f"{type(cause).__name__}: {cause}"
        failure = {"message": message, "final": not isinstance(cause, RETRIED), "overrides": note["overrides"]}
        note_failure(sweep, name, failure)
        raise


def _cause(error: Exception) -> Exception:
    """What ended the first process of several that failed, or the error itself."""
    failures = getattr(error, "worker_failures", None)
    return failures[min(failures)] if failures else error
