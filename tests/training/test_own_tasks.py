"""Runs with a task from a user's file, that of docs/own-task.md: exact resume, what is kept of it, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptt_dist.config import Config, ConfigError, apply_overrides, load
from fptt_dist.config import Train as TrainSection
from fptt_dist.reporting import read_runs
from fptt_dist.reporting.html.table import _words
from fptt_dist.reporting.plots.style import styled
from fptt_dist.reporting.plots.subject import subjects
from fptt_dist.reporting.runs.groups import group_runs
from fptt_dist.training.run import train, try_out
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.export import export_run
from tests.own_tasks import write_waves
from tests.training.helpers import assert_same_run, result, resumed, train_until

STEPS = 12


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """The example's file."""
    return write_waves(tmp_path)


def own(file: Path | str, folder: Path, overrides: dict[str, Any] | None = None, *, batches: int = 10) -> Config:
    """A run of a second."""
    keys = {
        "task": {"name": f"{file}:Waves", "length": STEPS, "options": {"steps": STEPS}},
        "model.hidden": 4,
        "fptt.windows": 3,
        "optimizer.lr": 1e-2,
        "train.batch_size": 200,  # 5 batches an epoch
        "logging": {"every_batches": 1, "tensorboard": False},
        "device": "cpu",
        "run.dir": str(folder),
    }
    return apply_overrides(apply_overrides(Config(train=TrainSection(max_batches=batches)), keys), overrides or {})


def test_the_example_is_short(waves: Path) -> None:
    assert len(waves.read_text().splitlines()) <= 30


def test_interrupted_is_uninterrupted(waves: Path, tmp_path: Path) -> None:
    keys = {"model.dropout": 0.1, "model.layers": 2}
    train(own(waves, tmp_path / "straight", keys))
    parts = own(waves, tmp_path / "parts", keys)
    train_until(parts, 7)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_the_file_is_kept_and_a_change_is_said(waves: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, text = own(waves, tmp_path / "run"), waves.read_text()
    train_until(config, 5)
    assert (tmp_path / "run" / "own_task.py").read_text() == text
    waves.write_text(f"{text}\n# another line\n")
    train(resumed(config))
    assert f"task.name={waves}:Waves has changed since the run began: {tmp_path}/run/own_task.py is" in caplog.text
    assert (tmp_path / "run" / "own_task.py").read_text() == text


def test_a_run_is_evaluated_and_exported_from_anywhere(
    waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(own("waves.py", tmp_path / "run"))
    assert (result.task, result.metric) == ("Waves", "accuracy")
    task = load(tmp_path / "run" / "config.yaml").task
    given = {"name": f"{waves}:Waves", "length": STEPS, "options": {"steps": STEPS}}
    assert task.model_dump(exclude_defaults=True) == given
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "run")["test"] == result.value
    export_run(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["task"]["options"] == {"steps": STEPS}


def test_the_folder_has_the_class_in_its_name(waves: Path) -> None:
    config = own(waves, Path("x")).model_copy(update={"run": Config(train=TrainSection(max_batches=1)).run})
    assert RunDirectory(config).path == Path("runs/Waves-fptt-seed0")


def test_what_the_constructor_draws_from_the_global_streams_is_the_same_at_every_start(
    waves: Path, tmp_path: Path
) -> None:
    waves.write_text(waves.read_text().replace("rng = np.random.default_rng(0)", "rng = np.random.mtrand._rand"))
    waves.write_text(waves.read_text().replace("rng.integers(", "rng.randint("))
    result = train(own(waves, tmp_path / "run"))
    assert evaluate_run(tmp_path / "run")["test"] == result.value


def test_a_dry_run_writes_nothing(waves: Path, tmp_path: Path) -> None:
    assert try_out(own(waves, tmp_path / "run")).shapes["inputs of the batch (steps, sequences, features)"] == (
        *(STEPS, 200, 1),
    )
    assert not (tmp_path / "run").exists()


MISTAKES: list[tuple[dict[str, Any], str, str, str]] = [  # keys, text of the file, what stands there instead, message
    ({"task.length": 13}, "", "", r"^task\.name=.*waves\.py:Waves: Waves\.length is 12, .*: type task\.length=12$"),
    ({"task.options.stpes": 3}, "", "", r": Waves\(steps=12, stpes=3, seed=0\) failed: TypeError: .*'stpes'"),
    ({}, "", "import nothing_like_this\n", r"cannot be run: ModuleNotFoundError: .*\(waves\.py, line 1\)$"),
    ({}, "class Waves", "class Wave", r"has no Waves; its classes derived from fptt_dist\.Task: Wave$"),
    (
        {"model.embedding": 3},
        "",
        "",
        r"model\.embedding=3 is for words .* no vocabulary_size: type model\.embedding",
    ),
    (
        {"model": {"layer": "awd_lstm"}},
        "",
        "",
        r"^model\.layer=awd_lstm is a language model, and .* no vocabulary_siz",
    ),
    ({"data.partition": "fixed"}, "", "", r"^data\.partition=fixed: .*Waves can only be shuffled.*: type data\.partit"),
    (
        {},
        "return (output",
        "raise SystemExit(0)\n        return (output",
        r"Waves\.score.* failed: SystemExit: 0 \(wa",
    ),
]


def test_mistakes_leave_no_folder(waves: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    good = waves.read_text()
    for keys, old, new, said in MISTAKES:
        with subtests.test(said=said):
            waves.write_text(good.replace(old, new, 1))
            with pytest.raises(ConfigError, match=said) as caught:
                train(own(waves, tmp_path / "run", keys))
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "run").exists()


def test_it_may_not_end_the_program_in_the_middle(waves: Path, tmp_path: Path) -> None:
    """With exit code 0, at a batch that is not tried out before the run."""
    early = "        if epoch == 1 and cursor == 400: raise SystemExit(0)\n"
    text = waves.read_text()
    waves.write_text(text.replace("        order =", f"{early}        order ="))
    with pytest.raises(ConfigError, match=r"^task\.name=.*waves\.py:Waves: it ended the program \(SystemExit: 0\)"):
        train(own(waves, tmp_path / "run"))


def test_options_are_plain_keyword_arguments(waves: Path, tmp_path: Path) -> None:
    cases = {
        "seed": (3, "task.options.seed: the class is given the run's: type seed=3"),
        "a b": (3, 'task.options: "a b" is no name of a keyword argument: write letters, digits and _'),
        "steps": (float("nan"), "task.options.steps=.nan is not allowed; allowed: text, a finite number (64 bits)"),
        "big": (2**63, "task.options.big=9223372036854775808 is not allowed"),
        "noise": (Path("x"), "task.options.noise=PosixPath('x') is not allowed; allowed: text, a finite"),
    }
    for name, (value, said) in cases.items():
        with pytest.raises(ConfigError) as caught:
            own(waves, tmp_path, {"task.options": {name: value}})
        assert said in str(caught.value)


def test_a_metric_of_ones_own_has_its_direction_in_reports(waves: Path, tmp_path: Path) -> None:
    write_waves(tmp_path, metric="hits")
    runs = []
    for algorithm, rate in (("fptt", 1e-2), ("tbptt", 1e-6)):
        for seed in (0, 1):
            runs.append(tmp_path / f"{algorithm}-{seed}")
            keys = {"algorithm": algorithm, "optimizer.lr": rate, "seed": seed, "model.hidden": 16}
            train(own(waves, runs[-1], {**keys, "train.batch_size": 50}, batches=120))
    assert result(runs[0])["higher_is_better"] is True
    groups = group_runs(read_runs(runs))
    [subject] = subjects(styled(groups))
    assert subject.title == "Waves, 12 steps"
    assert subject.direction == "Higher is better."
    words = _words(*groups)
    assert words.startswith("test hits ")
    assert "every seed of fptt lr=0.01 is better than every seed of tbptt lr=1e-06" in words


def test_a_description_of_the_inputs_is_plain_json(waves: Path, tmp_path: Path) -> None:
    """It is kept with the run, for those who use the network without the task."""
    text = waves.read_text()
    cases = {
        "raise SystemExit(0)": r"Waves\.input_description\(\) failed: SystemExit: 0 \(waves\.py, line \d+\)",
        "return {'mean': self}": r"Waves\.input_description\(\) failed: TypeError: Object of type Waves is not JSON",
        "return 3": r"Waves\.input_description\(\) gave 3, not a dictionary of plain JSON values",
    }
    for line, said in cases.items():
        waves.write_text(f"{text}\n    def input_description(self):\n        {line}\n")
        with pytest.raises(ConfigError, match=said):
            train(own(waves, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    waves.write_text(f"{text}\n    def input_description(self):\n        return {{'unit': 'mV'}}\n")
    train(own(waves, tmp_path / "run", batches=2))
    assert json.loads((tmp_path / "run" / "network.json").read_text())["input"] == {"unit": "mV"}


@pytest.mark.slow
def test_the_example_learns_on_two_processes_from_a_folder_of_its_own(waves: Path, tmp_path: Path) -> None:
    words = ["add_task", "task.name=waves.py:Waves", "task.length=40", "train.max_epochs=15", "model.hidden=32"]
    words += ["train.max_batches=null", "train.batch_size=50", "optimizer.lr=5e-3", "device=cpu", "run.dir=run"]
    command = [sys.executable, "-m", "fptt_dist", "launch", "--nproc", "2", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["value"] > 0.9, "guessing has 0.5"


def test_files_of_task_name_arrays_are_kept_and_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", inputs=rng.normal(size=(40, 9)), targets=np.arange(40) % 2)
    (tmp_path / "half.py").write_text(
        "import torchmetrics\n\nclass Half(torchmetrics.MeanMetric):\n    higher_is_better = True\n\n"
        "    def update(self, predictions, targets):\n        super().update(0.5)\n"
    )
    monkeypatch.chdir(tmp_path)
    keys = {"task": {"name": "arrays", "train": "own.npz", "length": 9, "metrics": ["accuracy", "half.py:Half"]}}
    base = Config(train=TrainSection(max_batches=3, batch_size=4))
    done = train(apply_overrides(base, {**keys, "logging.tensorboard": False, "run.dir": "run"}))
    assert (done.metric, done.metrics["test"]["Half"]) == ("accuracy", 0.5)
    assert (tmp_path / "run" / "own_metrics_1.py").read_text() == (tmp_path / "half.py").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_run(tmp_path / "run")["test"] == done.value
