"""Runs with a cell from a user's file: exact resume, what is kept of it, and a project that is not this one."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist import load as load_network
from fptt_dist.config import ConfigError, load
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.export import export_run
from tests.program import ROOT
from tests.training.helpers import assert_same_run, resumed, tiny, train_until
from tests.training.texts import tiny_text

EXAMPLE = ROOT / "examples" / "own_cell.py"


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLE, tmp_path / "mine.py"))


def own(cell: Path, **keys: Any) -> dict[str, Any]:
    return {"model.layer": f"{cell}:GatedCell", "model.hidden": 4, **keys}


def test_interrupted_is_uninterrupted(cell: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "straight", own(cell)))
    parts = tiny(tmp_path / "parts", own(cell))
    train_until(parts, 5)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_the_file_is_kept_and_a_change_is_said(cell: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, text = tiny(tmp_path / "run", own(cell)), cell.read_text()
    train_until(config, 5)
    assert (tmp_path / "run" / "own_cell.py").read_text() == text
    cell.write_text(f"{text}\n# another line\n")
    train(resumed(config))
    assert f"model.layer={cell}:GatedCell has changed since the run began: {tmp_path}/run/own_cell.py is" in caplog.text
    assert (tmp_path / "run" / "own_cell.py").read_text() == text


def test_a_run_is_evaluated_from_anywhere(cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(tiny(tmp_path / "run", own(Path("mine.py"))))
    assert getattr(load(tmp_path / "run" / "config.yaml").model, "layer", None) == f"{cell}:GatedCell"
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "run")["test"] == result.value


def test_a_language_model_has_an_embedding(cell: Path, tmp_path: Path) -> None:
    keys = own(cell, **{"model.embedding": 3, "model.dropout": 0.2})
    result = train(tiny_text(tmp_path / "run", keys))
    assert result.parameters > result.recurrent_parameters == 3 * 4 + 4 + 16 + 3 * 4 + 4


@pytest.mark.slow
def test_its_program_is_exported_and_its_weights_alone_are_not(cell: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", own(cell), batches=2))
    with pytest.raises(ConfigError, match=r"--format=safetensors is for networks of this package's layers: type --for"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(tmp_path / "run", tmp_path / "out", format="torch")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    x = torch.randn(12, 3, 2)
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    [state] = described["state"]
    assert state == {"name": "state_0", "shape": ["batch", 4], "dtype": "float32"}
    y, after = program(x, torch.zeros(3, 4))
    with torch.no_grad():
        _, last = load_network(tmp_path / "run").get_submodule("recurrent")(x)
        torch.testing.assert_close(y[-1:], load_network(tmp_path / "run")(x)[0])
    torch.testing.assert_close(after, last)
    assert described["sha256"]["model.pt2"] == sha256((tmp_path / "out" / "model.pt2").read_bytes()).hexdigest()


def test_a_mistake_leaves_no_folder(cell: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^model.layer=.*mine.py:Nobody: .*mine.py has no Nobody; its classes derived from torch.nn.Module: Gat",
    ):
        train(tiny(tmp_path / "run", {"model.layer": f"{cell}:Nobody"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["__init__", "forward", "evaluation", "training"])
def test_it_may_not_end_the_program(where: str, tmp_path: Path) -> None:
    """In the middle of a run, with exit code 0."""
    cell = tmp_path / "mine.py"
    calls = {"__init__": "sys.exit(0)", "forward": "pass", "evaluation": "pass", "training": "pass"}
    condition = {"forward": "True", "evaluation": "not self.training and x.shape[1] > 3", "training": "self.training"}
    cell.write_text(f"""
import sys
from torch import nn
class Layer(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.inner = nn.Linear(inputs, hidden)
        {calls[where]}
    def forward(self, x, state=None):
        if {condition.get(where, "False")}:
            sys.exit(0)
        y = self.inner(x)
        return y, y[-1]
""")
    with pytest.raises(ConfigError, match=r"^model\.layer=.*mine.py:Layer: .*SystemExit: 0"):
        train(tiny(tmp_path / "run", {"model.layer": f"{cell}:Layer", "model.hidden": 4}, batches=2))


@pytest.mark.slow
def test_the_example_runs_on_two_processes_from_a_folder_of_its_own(cell: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fptt_dist", "launch", "--nproc", "2", "add_task", "model.layer=mine.py:GatedCell"),
            *("model.hidden=64", "task.length=20", "task.examples=64000", "train.max_batches=200", "device=cpu"),
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
    assert not (tmp_path / "fptt_dist").exists()
