"""Ray Tune's schedulers, which decide the runs of a sweep that continue, by name and with what they lack."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from fptt_dist.config.schema.sweep import Asha, Median
from fptt_dist.history import read_evaluations
from fptt_dist.launchers.ray.reports import TIME, VALUE, WORST, bounded
from fptt_dist.launchers.sweeps.plan import SweepPlan

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


def build_scheduler(plan: SweepPlan) -> "Sparing":
    """Return the scheduler that a sweep asks for."""
    goal: dict[str, Any] = {"metric": VALUE, "mode": "max" if plan.higher_is_better else "min", "time_attr": TIME}
    ninth = max(1, plan.batches // 9)
    grace = math.inf
    match plan.sweep.scheduler:
        case Asha(reduction=reduction, grace=chosen):
            grace = chosen or ninth
            # A run's last report comes when all is written: by then it is nobody's to stop.
            inner = AsyncHyperBandScheduler(
                **goal, max_t=plan.batches + 1, grace_period=grace, reduction_factor=reduction
            )
        case Median(grace=chosen):
            grace = chosen or ninth
            # Without a limit it would let a run wait for the others again and again.
            inner = MedianStoppingRule(**goal, grace_period=grace, min_time_slice=2**62)
        case _:
            inner = FIFOScheduler()
    return Sparing(inner, plan.folder, higher_is_better=plan.higher_is_better, grace=grace)


class Sparing(TrialScheduler):
    """Another scheduler that never stops the baseline trial, and forgets nothing when the sweep is restarted.

    It stops every other run whose value is not finite: among many of these the inner one sees no poor one.

    Ray Tune does not keep a scheduler's memory: what earlier runs had reported is told to it again, from their records.

    Args:
        inner: the scheduler.
        folder: the sweep's.
        higher_is_better: the metric's direction.
        grace: batches before which no run is stopped.
    """

    def __init__(self, inner: TrialScheduler, folder: Path, *, higher_is_better: bool, grace: float) -> None:
        super().__init__()
        self.inner = inner
        self.folder = folder
        self.higher_is_better = higher_is_better
        self.grace = grace
        self._known: set[str] = set()
        self._metric = inner.metric

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        """See TrialScheduler."""
        if _is_default(trial):
            return
        self.inner.on_trial_add(tune_controller, trial)
        if trial.trial_id not in self._known and trial.last_result:
            for result in self._recorded(trial):
                self.inner.on_trial_result(tune_controller, trial, result)
            if trial.is_finished():
                self.inner.on_trial_complete(tune_controller, trial, trial.last_result)
        self._known.add(trial.trial_id)

    def on_trial_error(self, tune_controller: "TuneController", trial: Trial) -> None:
        """See TrialScheduler."""
        if not _is_default(trial):
            self.inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]) -> str:
        """See TrialScheduler."""
        if _is_default(trial):
            return TrialScheduler.CONTINUE
        decision = self.inner.on_trial_result(tune_controller, trial, result)
        worst = abs(result[VALUE]) >= WORST and result[TIME] >= self.grace
        return TrialScheduler.STOP if worst and decision == TrialScheduler.CONTINUE else decision

    def on_trial_complete(self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]) -> None:
        """See TrialScheduler."""
        if not _is_default(trial):
            self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: "TuneController", trial: Trial) -> None:
        """See TrialScheduler."""
        if not _is_default(trial):
            self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: "TuneController") -> Trial | None:
        """See TrialScheduler."""
        for trial in tune_controller.get_trials():
            if _is_default(trial) and trial.status in (Trial.PENDING, Trial.PAUSED):
                return trial
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """See TrialScheduler."""
        return self.inner.debug_string()

    def _recorded(self, trial: Trial) -> list[dict[str, Any]]:
        """Return the results that a run had reported."""
        newest = trial.last_result.get(TIME, 0)
        return [
            {**record, VALUE: bounded(record[VALUE], self.higher_is_better)}
            for record in read_evaluations(self.folder / str(trial))
            if record["split"] == "validation" and record[TIME] <= newest
        ]


def _is_default(trial: Trial) -> bool:
    return trial.config["trial"]["default"]
