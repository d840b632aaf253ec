"""What a scheduler knows after a restart of its sweep: what earlier runs had reported, no more and no less."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from fptt_dist.launchers.ray.reports import bounded
from fptt_dist.launchers.ray.schedulers import Sparing, build_scheduler
from fptt_dist.launchers.sweeps.plan import SweepPlan, make_plan
from tests.ray_sweeps.helpers import BATCHES, sweep_file

CURVES = {
    "000": [9.0] * 9,  # the default, the poorest
    "001": [0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3],
    "002": [0.8],  # stopped at the first rung
    "003": [0.4, 0.3, 0.2, 0.1],  # in the middle of its run
    "004": [],
}
NO_CONTROLLER = cast(Any, None)  # these schedulers ask it nothing


def test_the_rungs_of_asha(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    undisturbed = build_scheduler(plan)
    trials = {name: _trial(name) for name in CURVES}
    for trial in trials.values():
        undisturbed.on_trial_add(NO_CONTROLLER, trial)
    decisions = {
        name: [undisturbed.on_trial_result(NO_CONTROLLER, trials[name], each) for each in _results(values)]
        for name, values in CURVES.items()
    }
    assert decisions["002"] == [TrialScheduler.STOP]
    assert set(decisions["000"] + decisions["001"] + decisions["003"]) == {TrialScheduler.CONTINUE}

    again = _after_a_restart(plan)
    assert _rungs(again) == _rungs(undisturbed)
    assert {len(recorded) for _, recorded in _rungs(again)} == {1, 2, 3}

    # and so the next ones fare as they would have
    for scheduler in (undisturbed, again):
        trial = _trial("004")
        assert scheduler.on_trial_result(NO_CONTROLLER, trial, _results([0.6])[0]) == TrialScheduler.STOP


def test_a_trial_that_is_added_twice_counts_once(tmp_path: Path) -> None:
    scheduler = _after_a_restart(_plan(tmp_path))
    before = json.dumps(_rungs(scheduler))
    scheduler.on_trial_add(NO_CONTROLLER, _trial("001", CURVES["001"]))
    assert json.dumps(_rungs(scheduler)) == before


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_values_that_are_not_finite_are_the_poorest(scheduler: str, tmp_path: Path) -> None:
    built = build_scheduler(_plan(tmp_path, scheduler))
    stopped = []
    for name, value in {"001": math.inf, "002": 0.5, "003": math.nan, "004": 1e300, "005": 0.4}.items():
        report = {"batch": 3, "value": bounded(value, higher_is_better=False)}
        built.on_trial_add(NO_CONTROLLER, _trial(name))
        if built.on_trial_result(NO_CONTROLLER, _trial(name), report) == TrialScheduler.STOP:
            stopped.append(name)
    assert stopped == ([] if scheduler == "none" else ["001", "003", "004"])


def test_a_run_may_get_finite_before_the_first_rung(tmp_path: Path) -> None:
    built = build_scheduler(_plan(tmp_path))
    built.on_trial_add(NO_CONTROLLER, _trial("001"))
    report = {"batch": 2, "value": bounded(math.inf, higher_is_better=False)}
    assert built.on_trial_result(NO_CONTROLLER, _trial("001"), report) == TrialScheduler.CONTINUE


def _plan(folder: Path, scheduler: str = "asha") -> SweepPlan:
    file = sweep_file(folder, {"optimizer.lr": {"grid": [0.01, 0.02, 0.03, 0.04, 0.05]}}, scheduler={"name": scheduler})
    return make_plan(file, [f"run.dir={folder / 'out'}"])


def _after_a_restart(plan: SweepPlan) -> Sparing:
    """The scheduler of a sweep that resumes, when all its runs have been added."""
    scheduler = build_scheduler(plan)
    for name, values in CURVES.items():
        folder = plan.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"kind": "train", "batch": 1, "value": 7.0}]
        # What Ray Tune never heard of will be reported again.
        for each in _results([*values, 0.01]):
            lines += [{"kind": "evaluation", "split": split, **each} for split in ("validation", "test")]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + '{"kind": "evalua')
        scheduler.on_trial_add(NO_CONTROLLER, _trial(name, values))
    return scheduler


def _results(values: list[float]) -> list[dict[str, Any]]:
    """The reports of a run with a validation every three batches."""
    return [{"batch": 3 * (place + 1), "value": value} for place, value in enumerate(values)]


def _trial(name: str, values: list[float] | None = None) -> Trial:
    point = {"index": int(name), "overrides": {}, "default": name == "000"}
    trial = Trial("run", config={"trial": point}, trial_id=name, stub=True, trial_name_creator=lambda _: name)
    if values:
        trial.run_metadata.last_result = _results(values)[-1]
        trial.set_status(Trial.TERMINATED if name in ("000", "001", "002") else Trial.PENDING)
    return trial


def _rungs(scheduler: Sparing) -> list[tuple[float, dict[str, float]]]:
    assert isinstance(scheduler.inner, AsyncHyperBandScheduler)
    (bracket,) = scheduler.inner._brackets
    assert [milestone for milestone, _ in bracket._rungs] == [BATCHES, 9, 3]
    return bracket._rungs
