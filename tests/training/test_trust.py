"""Code that a run's folder keeps: opening a run executes none of it that nobody allowed, in any way of opening one."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fptt_dist import load
from fptt_dist.cli import main
from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.history import load_to_train
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.export import export_run
from tests.own_tasks import write_waves
from tests.program import ROOT
from tests.training.helpers import assert_same_run, isolated, tiny, train_until

CELL = (ROOT / "examples" / "own_cell.py").read_text()
NOTED = "with open('{}', 'a') as noted:\n    print(__file__, file=noted)\n"
METRIC = """import torchmetrics


class Half(torchmetrics.MeanMetric):
    higher_is_better = True

    def update(self, predictions, targets):
        super().update(0.5)
"""


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose layer is code of its own; wherever it is executed it says so in the file `executed`."""
    (tmp_path / "mine.py").write_text(f"{NOTED.format(tmp_path / 'executed')}{CELL}")
    train(tiny(tmp_path / "run", {"model.layer": f"{tmp_path}/mine.py:GatedCell", "model.hidden": 4}, batches=4))
    (tmp_path / "executed").unlink()
    return tmp_path / "run"


def executed(tmp_path: Path) -> list[str]:
    """Return the files that were executed since they were asked for last."""
    noted = tmp_path / "executed"
    found = noted.read_text().splitlines() if noted.exists() else []
    noted.unlink(missing_ok=True)
    return found


OPENED: dict[str, Callable[[Path], object]] = {
    "load": load,
    "evaluate": evaluate_run,
    "export": lambda run: export_run(run, run / "out"),
    "resume": lambda run: load_to_train(run / "config.yaml", ["resume=auto"]),
    "dry run": lambda run: load_to_train(run / "config.yaml", []),
}


def name_in_config(run: Path, path: str) -> None:
    config = (run / "config.yaml").read_text()
    assert f"{run.parent}/mine.py" in config
    (run / "config.yaml").write_text(config.replace(f"{run.parent}/mine.py", path))


def test_a_run_of_ones_own_is_opened_without_a_word(run: Path, tmp_path: Path) -> None:
    load(run)
    evaluate_run(run)
    assert executed(tmp_path) == [str(tmp_path / "mine.py")] * 2


def test_nothing_is_executed_until_it_is_allowed(
    subtests: pytest.Subtests, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "mine.py").read_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    saved = (run / "config.yaml").read_text()
    (tmp_path / "link").symlink_to(run)
    cases: dict[str, tuple[Callable[[], object], str]] = {
        "has changed": (lambda: (tmp_path / "mine.py").write_text(f"{text}\n# more\n"), "has changed since the run"),
        "is not there": (lambda: (tmp_path / "mine.py").unlink(), "which is not there"),
        "in the folder": (lambda: name_in_config(run, f"{run}/own_cell.py"), "is in the run's folder"),
        "behind a link": (lambda: name_in_config(run, f"{tmp_path}/link/own_cell.py"), "is in the run's folder"),
        "relative": (lambda: name_in_config(run, "mine.py"), "is no absolute path"),
    }
    if os.geteuid() == 0:
        cases["another's"] = lambda: os.chown(run / "config.yaml", 12345, 12345), "which another user's run names"
    for case, (change, reason) in cases.items():
        change()
        for name, opened in OPENED.items():
            with subtests.test(case=case, opened=name):
                with pytest.raises(ConfigError) as caught:
                    opened(run)
                assert reason in str(caught.value)
                assert f"the copy is {run}/own_cell.py, sha256 {digest}" in str(caught.value)
                assert "type --trust-code (in Python trust_code=True)" in str(caught.value)
                assert executed(tmp_path) == []
        with subtests.test(case=case, allowed=True):
            load(run, trust_code=True)
            assert executed(tmp_path) == [f"{run}/own_cell.py"]
        (tmp_path / "mine.py").write_text(text)
        (run / "config.yaml").unlink()
        (run / "config.yaml").write_text(saved)
    assert not (run / "out").exists()


def test_a_run_without_its_copy_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "own_cell.py").unlink()
    with pytest.raises(ConfigError, match=r"the run keeps no copy of it, own_cell\.py: train it again"):
        load(run, trust_code=True)
    assert executed(tmp_path) == []


def test_a_run_goes_on_with_the_copy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CELL)
    keys = {"model.layer": f"{tmp_path}/mine.py:GatedCell", "model.hidden": 4}
    train(tiny(tmp_path / "straight", keys))
    train_until(tiny(tmp_path / "run", keys), 5)
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    words, file = ["resume=auto"], tmp_path / "run" / "config.yaml"
    with pytest.raises(ConfigError, match=r"which is not there; the copy is"):
        load_to_train(file, words)
    train(load_to_train(file, words, trust_code=True))
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_run_goes_on_with_the_same_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CELL)
    keys = {"model.hidden": 4, "model.layer": f"{tmp_path}/mine.py:GatedCell"}
    train(tiny(tmp_path / "straight", keys))
    train_until(tiny(tmp_path / "run", keys), 5)
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    typed = [f"model.layer={tmp_path}/moved.py:GatedCell", "model.hidden=4", "resume=auto"]
    train(load_to_train(tmp_path / "run" / "config.yaml", typed))
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def small(folder: Path, task: dict[str, Any]) -> Config:
    """Return a run of three batches on a task."""
    keys = {"task": task, "model.hidden": 4, "logging.tensorboard": False, "device": "cpu", "run.dir": str(folder)}
    return apply_overrides(Config(train=TrainSection(max_batches=3, batch_size=4)), keys)


def arrays(folder: Path, metrics: list[str] | None = None) -> dict[str, Any]:
    """Write 40 series of 9 steps in two classes; return the keys of the task."""
    file = folder / "own.npz"
    np.savez(file, inputs=np.random.default_rng(0).normal(size=(40, 9)), targets=np.arange(40) % 2)
    return {"name": "arrays", "train": str(file), "length": 9, "metrics": metrics}


def test_tasks_and_metrics_are_code_too(tmp_path: Path) -> None:
    waves, half = write_waves(tmp_path), tmp_path / "half.py"
    half.write_text(METRIC)
    cases = (
        ({"name": f"{waves}:Waves", "length": 12, "options": {"steps": 12}}, waves, "own_task.py"),
        (arrays(tmp_path, ["accuracy", f"{half}:Half"]), half, "own_metrics_1.py"),
    )
    for number, (task, file, kept) in enumerate(cases):
        run = tmp_path / str(number)
        result = train(small(run, task))
        assert evaluate_run(run)["metrics"]["test"] == result.metrics["test"]
        file.unlink()
        with pytest.raises(ConfigError, match=rf"which is not there; the copy is {run}/{kept}"):
            evaluate_run(run)
        assert evaluate_run(run, trust_code=True)["metrics"]["test"] == result.metrics["test"]


def test_a_network_is_loaded_without_its_data(tmp_path: Path) -> None:
    train(small(tmp_path / "run", arrays(tmp_path)))
    network = load(tmp_path / "run")
    (tmp_path / "own.npz").unlink()
    again = load(str(tmp_path / "run"))
    x = torch.randn(9, 2, 1)
    assert torch.equal(network(x)[0], again(x)[0])
    assert not again.training


def test_the_commands_have_the_option(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = shutil.copytree(run, tmp_path / "theirs")
    name_in_config(theirs, f"{theirs}/own_cell.py")
    config = str(theirs / "config.yaml")
    commands = (
        ("evaluate", str(theirs)),
        ("export", str(theirs), f"--out={tmp_path}/new"),
        ("train", config, f"run.dir={tmp_path}/new", "train.max_batches=1"),
        ("train", "--dry-run", config, f"run.dir={tmp_path}/new"),
        ("launch", "--nproc", "1", config, f"run.dir={tmp_path}/new"),
        ("submit", "--local", "--tasks-per-node=1", config, f"run.dir={tmp_path}/new"),
    )
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["fptt-dist", *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2, words
        assert "own_cell.py, sha256 " in capsys.readouterr().err, words
    assert executed(tmp_path) == []
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(sys, "argv", ["fptt-dist", "evaluate", str(theirs), "--trust-code"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert executed(tmp_path) == [f"{theirs}/own_cell.py"]
