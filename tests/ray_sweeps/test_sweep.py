"""A sweep from the command line: its table and its folder, its best run again, and runs that fail."""

import json
from pathlib import Path

import pytest

from fptt_dist.config import load
from fptt_dist.launchers.sweeps.plan import STATE
from fptt_dist.reporting import read_sweep
from fptt_dist.training.run import train
from tests.ray_sweeps.helpers import BATCHES, Ray, note, states, sweep_file
from tests.training.helpers import isolated, result

GOOD, POOR = 0.02, 1e-5
SPACE = {"fptt.alpha": {"grid": [0.1, 0.5]}, "optimizer.lr": {"grid": [GOOD, POOR]}}


@pytest.fixture(scope="module")
def asha(shared: Ray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep under asha whose default is poor, and what the command printed.

    One run at a time: what asha does depends on who comes first.
    """
    place = tmp_path_factory.mktemp("asha")
    base = {"optimizer.lr": POOR, "fptt.alpha": 0.5}
    file = sweep_file(place, SPACE, base=base, scheduler={"name": "asha"}, max_concurrent=1)
    folder = place / "out"
    return folder, shared.sweep(file, folder)[1]


def test_the_poor_are_stopped_and_the_default_is_not(asha: tuple[Path, str]) -> None:
    results = read_sweep(asha[0])
    assert len(results.trials) == 4
    assert [(trial.index, trial.state) for trial in results.trials if trial.values["optimizer.lr"] == POOR] == [
        (0, "finished"),
        (2, "stopped"),
    ]
    assert results.trials[0].default
    assert results.trials[2].batch == 3  # a ninth of the run
    assert states(results).count("finished") >= 2
    assert all(trial.batch == BATCHES for trial in results.trials if trial.state == "finished")
    assert results.best is not None
    assert results.best.trials[0].values["optimizer.lr"] != POOR


def test_the_folder_is_complete(asha: tuple[Path, str]) -> None:
    folder, printed = asha
    assert {"sweep.yaml", "sweep.json", "best.yaml", "figures", "tensorboard", STATE} < {
        path.name for path in folder.iterdir()
    }
    assert (folder / STATE).stat().st_mode & 0o777 == 0o700  # what is unpickled there is nobody else's
    assert {"curves.png", "heatmap.png"} == {path.name for path in (folder / "figures").iterdir()}
    assert [note(folder / f"{index:03d}")["index"] for index in range(4)] == list(range(4))
    said = json.loads((folder / "sweep.json").read_text())
    assert said["default"] == [0]
    assert len(said["trials"]) == 4
    lines = printed.splitlines()
    assert lines[0] == "4 runs of 1 worker of 1 CPU: 1 at once"
    assert sum(" of 4  0" in line for line in lines) == 4
    assert lines[4].startswith("4 of 4  002  fptt.alpha=0.1 optimizer.lr=1e-05: stopped at batch 3, validation mse 1.")
    assert lines[-1] == f"again: fptt-dist train {folder}/best.yaml"


def test_the_best_run_again(asha: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = asha
    results = read_sweep(folder)
    assert results.best is not None
    best = results.best.trials[0]
    with isolated():
        again = train(load(folder / "best.yaml", {"run.dir": str(tmp_path / "again")}))
    assert (again.validation, again.value) == (best.value, best.test)
    assert again.validation == result(best.path)["validation"]


def test_all_runs_fail(shared: Ray, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"fptt.alpha": {"grid": [0.1, 0.5]}}, base={"optimizer.lr": 1e30})
    folder = tmp_path / "out"
    results, printed = shared.sweep(file, folder, "sweep.max_failures=0", code=1)
    assert printed.splitlines()[-1].startswith("no run is finished")
    assert states(results) == ["failed", "failed"]
    assert not (folder / "best.yaml").exists()
