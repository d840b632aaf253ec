"""A callback of Ray Tune that records and logs how each run of a sweep ends."""

import logging
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from fptt_dist.config.values import show
from fptt_dist.launchers.ray.reports import shown
from fptt_dist.launchers.sweeps.directory import note_trial, read_failure, read_note
from fptt_dist.launchers.sweeps.plan import STATE

LOG = logging.getLogger("fptt_dist")


class Bookkeeper(Callback):
    """Notes in each run's trial.json how it ended, and prints a line.

    Args:
        folder: the sweep's.
        count: runs of the sweep.
        metric: the validation metric's name.
        retries: how often a run whose process died is started again.
        varying: the keys to name.
    """

    def __init__(self, folder: Path, count: int, metric: str, retries: int, varying: list[str]) -> None:
        self.folder = folder
        self.count = count
        self.metric = metric
        self.retries = retries
        self.varying = varying

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a run that has finished, or that the scheduler has stopped."""
        folder = self.folder / str(trial)
        state = "finished" if (folder / "result.json").is_file() else "stopped"
        if state == "stopped":
            note_trial(folder, {**trial.config["trial"], **read_note(folder), "state": state})
        last = trial.last_result
        self._tell(trials, trial, f"{state} at batch {last['batch']}, validation {self.metric} {shown(last['best'])}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a run that has failed for good."""
        name, folder = str(trial), self.folder / str(trial)
        point = trial.config["trial"]
        message = read_failure(self.folder, name, point["overrides"]).get("message")
        if message is None:
            said = str(trial.get_error()).strip().partition("\n")[0]
            message = f"its process was lost, {self.retries} restarts included: {said} (see {STATE}/{name}/error.txt)"
        note_trial(folder, {**point, **read_note(folder), "state": "failed", "message": message})
        self._tell(trials, trial, f"failed: {message}")

    def _tell(self, trials: list[Trial], trial: Trial, what: str) -> None:
        over = sum(each.is_finished() for each in trials) + (not trial.is_finished())
        point = trial.config["trial"]
        words = ["the default"] if point["default"] else []
        words += [f"{key}={show(value)}" for key, value in point["overrides"].items() if key in self.varying]
        LOG.warning("%d of %d  %s  %s: %s", over, self.count, trial, " ".join(words), what)
