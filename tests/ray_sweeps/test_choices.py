"""How runs are chosen and stopped: Optuna, the median rule, population based training."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from ray.tune import Checkpoint

from fptt_dist.config import load
from fptt_dist.launchers.sweep import STATE
from fptt_dist.launchers.trial import _go_back_to
from fptt_dist.reporting import SweepResults
from fptt_dist.training.run_folder import RunFolder
from tests.ray_sweeps.helpers import Ray, note, overrides, states, sweep_file
from tests.training.helpers import content, differing, isolated, records, resumed, tiny, train_until

LR = {"choice": [0.01, 0.02, 1e-5]}
CONDITIONAL = {
    "algorithm": {"choice": ["fptt", "bptt"]},
    "optimizer.lr": {"loguniform": [1e-3, 1e-1]},
    "fptt.alpha": {"loguniform": [1e-2, 1], "when": {"algorithm": "fptt"}},
}
PBT_BATCHES, INTERVAL = 36, 6


def test_optuna_is_decided_by_its_seed(shared: Ray, tmp_path: Path) -> None:
    search = {"name": "optuna", "trials": 5, "seed": 1}
    file = sweep_file(tmp_path, CONDITIONAL, search=search, concurrent=1, base={"train.batches": 9})
    one, other = (shared.sweep(file, tmp_path / name)[0] for name in ("one", "other"))
    assert states(one) == ["finished"] * 6
    assert overrides(one) == overrides(other)
    assert [trial.value for trial in one.trials] == [trial.value for trial in other.trials]
    assert overrides(one)[0] == {}
    assert [trial.default for trial in one.trials] == [True] + [False] * 5
    algorithms = set()
    for point in overrides(one)[1:]:
        algorithms.add(point["algorithm"])
        assert ("fptt.alpha" in point) == (point["algorithm"] == "fptt")
        assert 1e-3 <= point["optimizer.lr"] <= 1e-1
    assert algorithms == {"fptt", "bptt"}


def test_several_objectives_and_the_median_rule(shared: Ray, tmp_path: Path) -> None:
    search = {"name": "optuna", "trials": 7, "seed": 0, "objectives": ["quality", "seconds"]}
    file = sweep_file(tmp_path, {"optimizer.lr": LR}, search=search, scheduler={"name": "median"}, concurrent=1)
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


@pytest.fixture(scope="module")
def population(shared: Ray, tmp_path_factory: pytest.TempPathFactory) -> SweepResults:
    """A population of three, each of which is looked at every few batches."""
    place = tmp_path_factory.mktemp("pbt")
    file = sweep_file(
        place,
        {"fptt.alpha": {"loguniform": [1e-3, 1]}},
        batches=PBT_BATCHES,
        search={"name": "random", "trials": 3},
        scheduler={"name": "pbt", "interval": INTERVAL},
    )
    return shared.sweep(file, place / "out")[0]


def test_a_population(population: SweepResults) -> None:
    """All finish, and where a run took another alpha, it was trained with that from there on."""
    assert states(population) == ["finished"] * 4
    assert [(trial.index, trial.name) for trial in population.trials] == [(each, f"{each:03d}") for each in range(4)]
    assert [trial.batch for trial in population.trials] == [PBT_BATCHES] * 4
    assert population.trials[0].history == []
    changed = [trial for trial in population.trials if trial.history]
    assert changed
    for trial in changed:
        assert trial.history[0]["batch"] == 0
        assert trial.history[-1]["overrides"] == trial.overrides == note(trial.path)["overrides"]
        batches = [change["batch"] for change in trial.history]
        assert batches == sorted(batches)
        assert all(batch % 3 == 0 for batch in batches)
        rates = {record["batch"]: record["alpha"] for record in records(trial.path, "train")}
        last = trial.history[-1]
        assert last["overrides"]["fptt.alpha"] == rates[last["batch"] + 1] == rates[PBT_BATCHES]
        assert 1e-3 <= rates[PBT_BATCHES] <= 1


def test_a_run_goes_on_from_anothers_state(population: SweepResults, tmp_path: Path) -> None:
    """Trained again from where it changed: of the states that the others had, one leads to the same weights."""
    trial = next(trial for trial in population.trials if trial.history)
    state = population.path / STATE
    batch = trial.history[-1]["batch"]
    # It may have been there once before, in its own past.
    wanted = content(max((state / trial.name).glob(f"checkpoint_*/step-{batch + 3:08d}")))
    donors = set()
    for other in population.trials[1:]:
        for start in (state / other.name).glob("checkpoint_*"):
            if records(start, "evaluation")[-1]["batch"] != batch:
                continue
            run = tmp_path / f"{other.name}-{start.name}"
            shutil.copytree(start, run / "checkpoints", ignore=shutil.ignore_patterns("trial.json"))
            with isolated():
                train_until(resumed(load(trial.path / "config.yaml", {"run.dir": str(run)})), batch + 3)
            if not differing(content(run / "checkpoints" / f"step-{batch + 3:08d}"), wanted):
                donors.add(other.name)
    assert donors
    assert trial.name not in donors


def test_a_run_that_begins_anew_keeps_its_lock(tmp_path: Path) -> None:
    run = RunFolder(tiny(tmp_path / "003"))
    with run.alone() as held:
        (run.path / "metrics.jsonl").write_text("{}\n")
        (run.checkpoints / "step-00000001").mkdir(parents=True)
        _go_back_to(None, run, {"index": 3, "overrides": {}, "default": True})
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "trial.json"]
        held.check()
    assert [path.name for path in run.path.iterdir()] == ["trial.json"]


def test_a_report_over_an_older_one(tmp_path: Path) -> None:
    """As Ray Tune leaves it when a run at batch 24 took a state of batch 9: the later one is not the run's any more."""
    packed = tmp_path / "checkpoint_000007"
    for batch in (12, 24):
        (packed / f"step-{batch:08d}").mkdir(parents=True)
    lines = [{"kind": "train", "batch": batch} for batch in range(1, 13)]
    (packed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunFolder(tiny(tmp_path / "003", {"fptt.alpha": 0.1}))
    before = {"index": 3, "overrides": {"fptt.alpha": 0.5}, "default": False}
    after = {**before, "overrides": {"fptt.alpha": 0.1}}
    (packed / "trial.json").write_text(json.dumps(before))
    _go_back_to(Checkpoint(str(packed)), run, dict(after))
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000012"]
    assert note(run.path)["history"] == [
        {"batch": 0, "overrides": before["overrides"]},
        {"batch": 12, "overrides": after["overrides"]},
    ]
