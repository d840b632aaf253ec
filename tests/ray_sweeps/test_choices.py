"""Choosing and stopping runs, by Optuna and the median rule, and what a run starts from."""

import json
from itertools import pairwise
from pathlib import Path

from ray.tune import Checkpoint

from fptt_dist.launchers.ray.trainable import _go_back_to
from fptt_dist.reporting import SweepResults
from fptt_dist.training.run_dir import RunDirectory
from tests.ray_sweeps.helpers import Ray, note, overrides, states, sweep_file
from tests.training.helpers import tiny

LR = {"choice": [0.01, 0.02, 1e-5]}
CONDITIONAL = {
    "algorithm": {"choice": ["fptt", "bptt"]},
    "optimizer.lr": {"loguniform": [1e-3, 1e-1]},
    "fptt.alpha": {"loguniform": [1e-2, 1], "when": {"algorithm": "fptt"}},
}


def test_optuna_is_decided_by_its_seed(shared: Ray, tmp_path: Path) -> None:
    search = {"name": "optuna", "trials": 2, "seed": 1}
    file = sweep_file(tmp_path, CONDITIONAL, search=search, max_concurrent=1, base={"train.max_batches": 9})
    one, other = (shared.sweep(file, tmp_path / name)[0] for name in ("one", "other"))
    assert states(one) == ["finished"] * 3
    assert overrides(one) == overrides(other)
    assert [trial.value for trial in one.trials] == [trial.value for trial in other.trials]
    assert overrides(one)[0] == {}
    assert [trial.default for trial in one.trials] == [True] + [False] * 2
    algorithms = set()
    for point in overrides(one)[1:]:
        algorithms.add(point["algorithm"])
        assert ("fptt.alpha" in point) == (point["algorithm"] == "fptt")
        assert 1e-3 <= point["optimizer.lr"] <= 1e-1
    assert algorithms == {"fptt", "bptt"}


def test_several_objectives_and_the_median_rule(shared: Ray, tmp_path: Path) -> None:
    search = {"name": "optuna", "trials": 4, "seed": 7, "objectives": ["quality", "seconds"]}
    base = {"optimizer.lr": 0.015}  # which no other run has
    file = sweep_file(
        tmp_path, {"optimizer.lr": LR}, base=base, search=search, scheduler={"name": "median"}, max_concurrent=1
    )
    results, _ = shared.sweep(file, tmp_path / "out")
    _check_front(results)
    stopped = [trial for trial in results.trials if trial.state == "stopped"]
    assert stopped
    assert {trial.overrides["optimizer.lr"] for trial in stopped} == {1e-5}
    assert set(states(results)) == {"finished", "stopped"}


def _check_front(results: SweepResults) -> None:
    """It has the best, and of its points none is better in both."""
    costs = sorted((point.mean, point.cost("seconds")) for point in results.front if point.mean is not None)
    assert results.best in results.front
    assert all(one[0] < other[0] and one[1] > other[1] for one, other in pairwise(costs))
    fastest = min((point for point in results.points if point.finished), key=lambda point: point.cost("seconds"))
    assert fastest in results.front


def test_a_run_that_begins_anew_keeps_its_lock(tmp_path: Path) -> None:
    run = RunDirectory(tiny(tmp_path / "003"))
    with run.alone() as held:
        (run.path / "metrics.jsonl").write_text("{}\n")
        (run.checkpoints / "step-00000001").mkdir(parents=True)
        _go_back_to(None, run, {"index": 3, "overrides": {}, "default": True})
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "trial.json"]
        held.check()
    assert [path.name for path in run.path.iterdir()] == ["trial.json"]


def test_a_report_over_an_older_one(tmp_path: Path) -> None:
    """As a killed driver leaves it, whose run had another point and was at batch 24: that state is not this run's."""
    packed = tmp_path / "checkpoint_000003"
    for batch in (12, 24):
        (packed / f"step-{batch:08d}").mkdir(parents=True)
    lines = [{"kind": "train", "batch": batch} for batch in range(1, 13)]
    (packed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunDirectory(tiny(tmp_path / "003", {"fptt.alpha": 0.1}))
    point = {"index": 3, "overrides": {"fptt.alpha": 0.1}, "default": False}
    _go_back_to(Checkpoint(str(packed)), run, point)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000012"]
    assert note(run.path) == point
