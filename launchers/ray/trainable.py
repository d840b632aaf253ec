"""The function that Ray Tune runs: one run of a sweep, alone or as the driver of a run on several workers."""

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
from fptt_dist.config.schema.section import explicit
from fptt_dist.files import write_atomic
from fptt_dist.launchers.ray.cluster import Need
from fptt_dist.launchers.ray.reports import report_of
from fptt_dist.launchers.ray.workers import MeetingPlace
from fptt_dist.launchers.sweeps.directory import note_failure, note_trial, read_failure, read_note
from fptt_dist.launchers.sweeps.plan import config_of
from fptt_dist.parallel import LostWorkerError
from fptt_dist.records import read_lines
from fptt_dist.streams import protect
from fptt_dist.tasks import DataError
from fptt_dist.training.lock.directory_lock import HeldError, is_lock
from fptt_dist.training.lock.holder import STARTER
from fptt_dist.training.non_finite import NonFiniteError
from fptt_dist.training.process.resume_hint import RESUME
from fptt_dist.training.result import Result
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.train_state import Progress

RETRIED = (HeldError, OSError, LostWorkerError, RayError, TrainingFailedError)
"""Errors that may not come back at another attempt: a full disk, a process that died, or was about to."""
OWN_WORDS = (ConfigError, DataError, NonFiniteError, OSError, LostWorkerError)
"""Errors with a message of their own."""

METRICS, PACKED = "metrics.jsonl", ".report-"


@dataclass(frozen=True)
class SweepContext:
    """Settings that all runs of a sweep have in common.

    Attributes:
        base: the configuration's explicit values.
        folder: of the sweep.
        need: of each run.
        higher_is_better: the metric's direction.
        command: what resumes it.
        starter: a token of the process that runs the sweep.
    """

    base: dict[str, Any]
    folder: Path
    need: Need
    higher_is_better: bool
    command: str
    starter: str


def trainable(context: SweepContext) -> Callable[[dict[str, Any]], None]:
    """Return the function that Ray Tune calls with each point, as {"trial": …} of a `launchers.sweeps.plan.Trial`."""

    def trial(config: dict[str, Any]) -> None:
        run_trial(context, config["trial"])

    return trial


def run_trial(context: SweepContext, point: Mapping[str, Any]) -> None:
    """Train one run of a sweep, from where Ray says it is, and report to Ray at each validation.

    Raises:
        Exception: what ended the run; trial.json in its folder has the message.
    """
    protect()
    os.environ |= {RESUME: context.command, STARTER: context.starter}
    name = tune.get_context().get_trial_name()
    assert name is not None
    folder = context.folder / name
    before = read_note(folder)
    failure = read_failure(context.folder, name, point["overrides"])
    if failure.get("final"):
        raise RuntimeError(failure["message"])  # Ray Tune started it again for nothing
    with _failure_noted(context.folder, name, point):
        config = config_of(Config.model_validate(context.base), {**point["overrides"], "resume": "auto"}, folder)
        run = RunDirectory(config)
        if context.need.workers == 1:
            with run.alone():
                _go_back_to(tune.get_checkpoint(), run, point)
            result = train(config, lambda progress: _report(progress, folder, context))
        else:
            with run.alone():
                if before and before.get("overrides") != point["overrides"]:  # another point: Ray Tune does not know
                    _empty(folder)
                note_trial(folder, point)
            result = _train_on_workers(context, config)
        tune.report(_final(result, folder, context.higher_is_better))


def _go_back_to(checkpoint: tune.Checkpoint | None, run: RunDirectory, point: Mapping[str, Any]) -> None:
    """Make the run's folder what it was at a checkpoint; empty it where there is none."""
    if checkpoint is None:
        _empty(run.path)
        note_trial(run.path, point)
        return
    for old in (run.checkpoints, *run.path.glob(f"{PACKED}*")):
        shutil.rmtree(old, ignore_errors=True)
    with checkpoint.as_directory() as packed:
        shutil.copytree(packed, run.checkpoints)
    shutil.move(run.checkpoints / METRICS, run.metrics)
    batch = max((record.get("batch", 0) for record in read_lines(run.metrics)), default=0)
    for step in run.checkpoints.iterdir():
        # A report goes into the folder of one with its number, if a driver that was killed left one: of another point,
        # where Optuna has suggested another for this run since.
        if int(step.name.removeprefix("step-")) > batch:
            shutil.rmtree(step)
    write_atomic(run.path / "config.yaml", dump(run.config))
    note_trial(run.path, point)


def _empty(folder: Path) -> None:
    """Remove what a run has left in its folder, but for the lock, which this process holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not is_lock(path.name):
            path.unlink()


def _report(progress: Progress, folder: Path, context: SweepContext) -> None:
    """Tell Ray Tune how far a run is, with all that it needs to resume from there; may not return."""
    with tempfile.TemporaryDirectory(prefix=PACKED, dir=folder) as packed:
        for each in {progress.checkpoint, progress.best_checkpoint}:
            shutil.copytree(each, Path(packed) / each.name, copy_function=_link)
        shutil.copy2(folder / METRICS, packed)
        told = _progress(progress, folder, context.higher_is_better)
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(packed))


def _link(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:  # a file system without
        shutil.copy2(source, destination)
    return destination


def _progress(at: Progress, folder: Path, higher_is_better: bool) -> dict[str, Any]:
    values = {"value": at.value, "best": at.best, "batch": at.batch, "seconds": at.seconds}
    return report_of(folder, higher_is_better=higher_is_better, **values)


def _final(result: Result, folder: Path, higher_is_better: bool) -> dict[str, Any]:
    """Return the last report, after all is written: whatever Ray Tune makes of it, the run is finished."""
    best = result.validation
    values = {"value": best, "best": best, "batch": result.batches, "seconds": result.seconds}
    return report_of(folder, higher_is_better=higher_is_better, **values)


def _train_on_workers(context: SweepContext, config: Config) -> Result:
    """Train on several workers of Ray Train's. Each report goes from rank 0 through this process to Ray Tune."""
    need = context.need
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "values": explicit(config),
            "higher_is_better": context.higher_is_better,
            "command": context.command,
            "starter": context.starter,
        },
        torch_config=MeetingPlace(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=need.workers,
            use_gpu=need.gpus > 0,
            resources_per_worker={"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=Path(str(config.run.dir)).name,
            storage_path=str(context.folder / "ray" / "train"),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()
    result = RunDirectory(config).read_result()
    assert result is not None
    return result


def _worker(given: dict[str, Any]) -> None:
    """Train as one worker of a run of several."""
    protect()
    os.environ |= {RESUME: given["command"], STARTER: given["starter"]}
    config = Config.model_validate(given["values"])
    folder = RunDirectory(config).path
    higher = given["higher_is_better"]
    train(config, lambda progress: ray.train.report(_progress(progress, folder, higher)))


@contextmanager
def _failure_noted(sweep: Path, name: str, point: Mapping[str, Any]) -> Iterator[None]:
    """Write down what ends a run's process, for the sweep's table."""
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        message = str(cause) if isinstance(cause, OWN_WORDS) else f"{type(cause).__name__}: {cause}"
        failure = {"message": message, "final": not isinstance(cause, RETRIED), "overrides": point["overrides"]}
        note_failure(sweep, name, failure)
        raise


def _cause(error: Exception) -> Exception:
    """Return the error that ended the first of several workers that failed, or the error itself."""
    failures = getattr(error, "worker_failures", None)
    return failures[min(failures)] if failures else error
