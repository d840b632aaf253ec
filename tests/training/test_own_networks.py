"""Runs with a whole network from a user's file: exact resume, what is kept of it, a text, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fptt_dist
from fptt_dist.config import Config, ConfigError, apply_overrides, load
from fptt_dist.models import UserNetwork
from fptt_dist.tasks import TaskShape
from fptt_dist.training.run import train, try_out
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup.factory import build_model
from fptt_dist.training.tools.export import export_run
from tests.program import ROOT
from tests.training.helpers import assert_same_run, resumed, tiny, train_until
from tests.training.texts import tiny_text

EXAMPLE = ROOT / "examples" / "own_network.py"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLE, tmp_path / "mine.py"))


def own(file: Path | str, **options: Any) -> dict[str, Any]:
    return {"model.network": f"{file}:ConvGRU", "model.options": {"width": 4, **options}}


def small(folder: Path, keys: dict[str, Any], make: Callable[..., Config] = tiny, *, batches: int = 10) -> Config:
    return apply_overrides(make(folder, batches=batches), keys)


def test_interrupted_is_uninterrupted(file: Path, tmp_path: Path) -> None:
    """And evaluated, loaded and refused afterwards."""
    done = train(small(tmp_path / "straight", own(file, kernel=3)))
    parts = small(tmp_path / "parts", own(file, kernel=3))
    train_until(parts, 5)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert evaluate_run(tmp_path / "parts")["test"] == done.value
    assert (tmp_path / "parts" / "own_network.py").read_text() == file.read_text()
    assert load(tmp_path / "parts" / "config.yaml").model == parts.model
    assert done.parameters == done.recurrent_parameters == sum(p.numel() for p in example(parts).parameters())
    network = fptt_dist.load(tmp_path / "parts")
    assert isinstance(network, UserNetwork)
    assert type(network.module).__name__ == "ConvGRU"
    with pytest.raises(ConfigError, match=r"has model\.network=.*:ConvGRU, and --format=safetensors is for net"):
        export_run(tmp_path / "parts", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"another configuration:\n  model\.options\.kernel: 3 there, 2 now"):
        train(resumed(small(tmp_path / "parts", own(file, kernel=2))))
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"model\.network=.*mine\.py:ConvGRU, which is not there; the copy is .*own_n"
    ):
        fptt_dist.load(tmp_path / "parts")
    assert isinstance(fptt_dist.load(tmp_path / "parts", trust_code=True), UserNetwork)


def example(config: Config) -> nn.Module:
    return build_model(config, TaskShape(2, 1, 12, None, "last"))


def test_a_text(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py:ConvGRU: ConvGRU\(x, state\) with x of ids, int64, of shape"):
        train(small(tmp_path / "run", own(file), tiny_text))
    assert not (tmp_path / "run").exists()
    train(small(tmp_path / "run", own(file, text=True), tiny_text, batches=4))
    assert evaluate_run(tmp_path / "run")["test"] > 0


def test_a_layer_has_options_too(file: Path, tmp_path: Path) -> None:
    file.write_text(
        "from torch import nn\nclass Wide(nn.Module):\n"
        "    def __init__(self, inputs, hidden, *, slope):\n        super().__init__()\n"
        "        self.linear, self.act = nn.Linear(inputs, hidden), nn.LeakyReLU(slope)\n"
        "    def forward(self, x, state=None):\n        return self.act(self.linear(x)), state\n"
    )
    keys = {"model.layer": f"{file}:Wide", "model.hidden": 3}
    with pytest.raises(ConfigError, match=r"mine\.py:Wide: Wide needs model\.options\.slope: type model\.options\.sl"):
        train(tiny(tmp_path / "run", keys))
    network: Any = build_model(
        tiny(tmp_path / "run", {**keys, "model.options.slope": 0.5}), TaskShape(2, 1, 12, None, "all")
    )
    assert network.recurrent.act.negative_slope == 0.5


def test_an_object_is_taken_as_it_is(tmp_path: Path) -> None:
    config, shape = small(tmp_path / "run", {"model.network": "python:Plain"}), TaskShape(2, 3, 12, None, "last")
    with pytest.raises(
        ConfigError, match=r"^model\.network=python:Plain is an object of a program, which no file holds: give"
    ):
        build_model(config, shape)

    class Plain(nn.Linear):
        def forward(self, input: Any, state: Any = None) -> Any:
            return super().forward(input), state

    network = Plain(2, 3)
    weights = network.weight.clone()
    built = build_model(config, shape, network)
    assert isinstance(built, UserNetwork)
    assert built.module is network
    assert torch.equal(network.weight, weights)
    with pytest.raises(
        ConfigError, match=r"^model\.network=python:Plain: .* not of shape \(4, 3, 3\): steps, sequence"
    ):
        build_model(config, shape, Plain(2, 5))


def test_a_mistake_is_said_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    try_out(small(tmp_path / "run", own(file)))
    for options, said in (
        ({"wdith": 3}, "ConvGRU takes no model.options.wdith; it takes model.options.width, model.options.kernel, "),
        ({"width": None}, "ConvGRU(2, 1, width=None) cannot be made, of 2 inputs and 1 outputs: TypeError"),
    ):
        with pytest.raises(ConfigError) as caught:
            train(small(tmp_path / "run", own(file, **options)))
        assert str(caught.value).startswith(f"model.network={file}:ConvGRU: {said}")
    text = file.read_text()
    file.write_text(text.replace("        x = self.embedding(x)\n", "        import sys\n        sys.exit(0)\n"))
    with pytest.raises(ConfigError, match=r"^model\.network=.*mine\.py:ConvGRU: .*SystemExit: 0"):
        train(small(tmp_path / "run", own(file)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_example_learns_on_two_processes_from_a_folder_of_its_own(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fptt_dist", "launch", "--nproc", "2", "add_task", "model.network=mine.py:ConvGRU"),
            *("model.options.width=64", "task.length=20", "task.examples=64000", "train.max_batches=200", "device=cpu"),
            "run.dir=run",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["value"] < 0.1, "always predicting 1 has 1/6"
    begun = (tmp_path / "run" / "tensorboard").iterdir()
    assert any(b"mine.py:ConvGRU" in each.read_bytes() for each in begun)
