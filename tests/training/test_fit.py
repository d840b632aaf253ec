"""Training from Python: configurations in every form, objects in the place of files, and what a program finds after."""

import random
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fptt_dist import Task, fit, load
from fptt_dist.cli import main
from fptt_dist.config import Config, ConfigError, dump
from fptt_dist.config import load as load_config
from fptt_dist.records import read_lines
from fptt_dist.training.process.signals import Interrupted
from fptt_dist.training.result import Result
from fptt_dist.training.run import train
from fptt_dist.user_code import load_class
from tests.own_tasks import write_waves
from tests.training.helpers import assert_same_run, without_clock

STEPS = 12
KEYS = {
    "model": {"hidden": 4, "dropout": 0.1, "layers": 2},
    "fptt.windows": 3,
    "optimizer": {"name": "adam", "lr": 1e-2},
    "train": {"batch_size": 200, "max_batches": 10},  # 5 batches an epoch
    "logging": {"every_batches": 1, "tensorboard": False},
    "device": "cpu",
}


def keys(folder: Path, **more: Any) -> dict[str, Any]:
    return {**KEYS, "run": {"dir": folder}, **more}


def waves(folder: Path) -> Any:
    """The class of docs/own-task.md."""
    return load_class(write_waves(folder), "Waves", Task)


def settings_of_the_process() -> list[object]:
    """State of the process that a run changes while it lasts."""
    flushes = bool(torch.tensor(1e-38) * 0.1 == 0)
    streams = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
    return [flushes, torch.get_num_threads(), torch.get_default_dtype(), signal.getsignal(signal.SIGINT), *streams]


def test_an_object_trains_what_its_class_in_a_file_trains(tmp_path: Path) -> None:
    task, before = waves(tmp_path)(STEPS), settings_of_the_process()
    result = fit(keys(tmp_path / "object"), task=task)
    assert settings_of_the_process() == before
    again: list[Result] = []
    # As in a program with windows of its own; the object has forgotten the first run.
    thread = threading.Thread(target=lambda: again.append(fit(keys(tmp_path / "thread"), task=task)))
    thread.start()
    thread.join()
    own = {"task.name": f"{tmp_path / 'waves.py'}:Waves", "task.length": STEPS, "task.options": {"steps": STEPS}}
    file = train(load_config(keys(tmp_path / "file"), own))
    for each in ("object", "thread"):
        assert_same_run(tmp_path / "file", tmp_path / each)
    assert (result.value, again[0].path) == (file.value, tmp_path / "thread")
    assert result.history == list(read_lines(tmp_path / "object" / "metrics.jsonl"))
    assert [record["kind"] for record in result.history][-2:] == ["evaluation", "evaluation"]
    assert '"path"' not in (tmp_path / "object" / "result.json").read_text()
    assert 'name: "python:Waves"\n  length: 12\n' in (tmp_path / "object" / "config.yaml").read_text()
    assert isinstance(load(tmp_path / "object"), torch.nn.Module)  # which needs no task


class Net(nn.Module):
    """The network of model.layer=gru, with weights that are drawn in the same order."""

    def __init__(self, inputs: int = 1, outputs: int = 2, hidden: int = 4) -> None:
        super().__init__()
        self.first = nn.GRU(inputs, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Any]:
        hidden, state = self.first(x, state)
        return self.head(hidden), state


def test_a_network_of_ones_own_is_the_package_s(tmp_path: Path) -> None:
    """It learns what the same network learns by its name in the configuration, which has one output per window."""
    torch.manual_seed(0)
    network, task = Net(), waves(tmp_path)(STEPS)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gru = fit(keys(tmp_path / "gru", model={"layer": "gru", "hidden": 4}), task=task)
    own, again = (fit(keys(tmp_path / name), task=task, network=network) for name in ("own", "again"))
    assert without_clock(own.history) == without_clock(again.history)
    losses, expected = ([each["loss"] for each in run.history if each["kind"] == "train"] for run in (own, gru))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert (own.metrics, own.best_batch, own.parameters) == (gru.metrics, gru.best_batch, gru.parameters)
    assert all(torch.equal(first[name], tensor) for name, tensor in network.state_dict().items())
    assert '\n  network: "python:Net"\n' in (tmp_path / "own" / "config.yaml").read_text()
    x = torch.randn(STEPS, 3, 1)
    with torch.no_grad():
        y, state = load(tmp_path / "own", network=network)(x, None)
        expected, after = load(tmp_path / "gru")(x, None)
    torch.testing.assert_close((y, state), (expected, after))
    assert not torch.allclose(y, network.eval()(x, None)[0][-1:])
    with pytest.raises(
        ConfigError, match=r"^model\.network=python:Net is an object of .* in Python, network=Net\(…\), or type "
    ):
        load(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"gru was given no network: leave network=… out$"):
        load(tmp_path / "gru", network=network)
    with pytest.raises(ConfigError, match=r"other model"):
        load(tmp_path / "own", network=Net(hidden=5))


def test_a_configuration_is_a_mapping_a_file_a_name_or_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {
        "task": {"length": 12, "examples": 20, "validation": 16, "test": 16},
        "model.hidden": 4,
        "fptt.windows": 3,
        "train.batch_size": 4,
        "train.max_batches": 2,
        "logging.tensorboard": False,
        "device": "cpu",
    }
    flat = load_config("add_task", {**small, "run.dir": "file"})
    Path("small.yaml").write_text(dump(flat))
    Path("base.yaml").write_text("seed: 3\n")
    ways: dict[str, Any] = {
        "mapping": {"extends": ["add_task", "base.yaml"], **small, "seed": 0, "run": {"dir": "mapping"}},
        "config": flat.model_copy(update={"run": flat.run.model_copy(update={"dir": "config"})}),
        "file": "small.yaml",
    }
    for name, config in ways.items():
        assert fit(config).path == tmp_path / name
        assert_same_run(tmp_path / "mapping", tmp_path / name)


def test_ctrl_c_saves_and_the_same_objects_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(keys(tmp_path / "straight"), task=waves(tmp_path)(STEPS))

    class Waves(waves(tmp_path)):
        def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
            if (epoch, cursor) == (1, 200):
                signal.raise_signal(signal.SIGINT)
            return super().train_batch(epoch, cursor, size, part)

    run = tmp_path / "parts"
    with pytest.raises(
        Interrupted, match=r"batch 7 of 10, saved in .*\nresume with the same program, and resume: auto"
    ):
        fit(keys(run), task=Waves(STEPS))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    capsys.readouterr()
    without(run, tmp_path / "sweep.yaml", capsys, monkeypatch)
    with pytest.raises(ConfigError, match=r"^run\.dir=.* holds a run already: type resume=auto"):
        fit(run / "config.yaml", task=waves(tmp_path)(STEPS))
    fit({"extends": str(run / "config.yaml"), "resume": "auto"}, task=waves(tmp_path)(STEPS))
    assert_same_run(tmp_path / "straight", run)


def without(run: Path, sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subcommand says in one message that the run needs an object, and writes nothing."""
    config, there = str(run / "config.yaml"), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    sweep.write_text(f"config: {config}\nspace: {{fptt.alpha: {{grid: [0, 0.5]}}}}\n")
    message = (
        "fptt-dist: task.name=python:Waves is an object of a program, which no file holds: give it again in Python"
    )
    for words in (
        ["train", config, "resume=auto"],
        ["train", config, "--dry-run"],
        ["launch", config, "--nproc", "2", "resume=auto"],
        ["submit", config, "--local", "resume=auto"],
        ["submit", str(sweep), "--array", f"run.dir={run.parent / 'swept'}"],
        ["sweep", str(sweep), f"run.dir={run.parent / 'swept'}"],
        ["evaluate", str(run)],
    ):
        monkeypatch.setattr("sys.argv", ["fptt-dist", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().err
        assert (left.value.code, said.count("\n"), said.startswith(message)) == (2, 1, True), (words, said)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == there
    assert not (run.parent / "swept").exists()


def test_a_mistake_is_one_message_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, before = waves(tmp_path)(STEPS), settings_of_the_process()
    short, lengthless = waves(tmp_path)(STEPS), waves(tmp_path)(STEPS)
    short.train_examples, lengthless.length = 0, None
    mistakes: list[tuple[Any, Task | None, str]] = [
        ({"train": {"max_batchs": 1}}, None, r"train\.max_batchs: unknown key; .* \(key train\)"),
        ({"train.max_epochs": np.int64(3)}, None, r"train\.max_epochs: np\.int64\(3\) is not allowed; .*"),
        ({"train": {"max_epochs": 3}, "train.max_epochs": 4}, None, r"train\.max_epochs is given twice: .*"),
        ({"extends": "nosuch"}, None, r"key extends: nosuch: no such file; .*"),
        ({"extends": 3}, None, r"key extends: extends needs the path of a configuration.*"),
        ("nosuch", None, r"nosuch: no such file; .*"),
        (
            keys(tmp_path / "run", **{"model.embedding": 3}),
            task,
            r"model\.embedding is given twice.*|model.embedding=3.*",
        ),
        (keys(tmp_path / "run", **{"fptt.windows": 13}), task, r"fptt\.windows=13 is more than .* task\.length=12: .*"),
        (keys(tmp_path / "run"), short, r"task\.name=python:Waves: Waves\.train_examples is 0, not a whole number .*"),
        (keys(tmp_path / "run"), lengthless, r"task=Waves\(…\): Waves\.length is None, not a whole number from 1 on"),
        (
            keys(tmp_path / "run", task={"name": "python:Waves", "length": 12}),
            None,
            r"task\.name=python:Waves is an .*",
        ),
    ]
    notebook = waves(tmp_path)(STEPS)
    type(notebook).__module__ = "__main__"
    monkeypatch.delattr("__main__.__file__", raising=False)
    said = r"data\.workers=2: Waves is defined in a notebook, where .* import it from a file, or type data\.workers=0"
    mistakes.append((keys(tmp_path / "run", **{"data.workers": 2}), notebook, said))
    for config, object_, message in mistakes:
        with pytest.raises(ConfigError) as raised:
            fit(config, task=object_)
        assert re.fullmatch(message, str(raised.value)), str(raised.value)
        assert settings_of_the_process() == before
    assert not (tmp_path / "run").exists()
    assert isinstance(load_config(keys(tmp_path / "run")), Config)
