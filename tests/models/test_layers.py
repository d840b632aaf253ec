"""The registry of layers; one more of them is two files, a line in the registry and a line in the docs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fptt_dist.config.schema.models import ChronoStack, OneStack
from fptt_dist.layers import PLACES, class_of
from fptt_dist.models import recurrent_layer
from fptt_dist.models.recurrent import LAYERS
from tests.docs.snippets import ROOT, fresh_copy

SECTIONS = {layer: class_of(layer, "fptt_dist.config.schema.cells") for layer in PLACES}
LAYER = """
from torch import nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.unroll import unroll


class Decay(RecurrentStack):
    options = ("rate",)

    def __init__(self, inputs, hidden, *, layers=1, rate=0.5, dropout=0.0):
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.rate = rate
        self.make_parameters()

    def shapes(self, inputs):
        return {"weight_ih": (self.hidden_size, inputs)}

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def run_layer(self, layer, x, state):
        return unroll(step, functional.linear(x, *self.parameters_of(layer)), state, self.rate, compiled=self.compiled)


def step(h, drive, rate):
    return rate * h + drive
"""
SECTION = """
from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class Decay(OneStack):
    layer: Literal["decay"] = Field(default="decay", description=LAYER)
    rate: float = Field(default=0.5, ge=0, description="what is left after a step")
"""


def test_keys_and_layer_are_of_one_name_and_have_the_same_options() -> None:
    found = {}
    for layer, section in SECTIONS.items():
        shared = {"layer", *OneStack.model_fields, *ChronoStack.model_fields}
        keys = set(section().layer_arguments(30))
        found[layer] = section.model_fields["layer"].default, keys
        assert keys >= section.model_fields.keys() - shared
    assert found == {layer: (layer, set(getattr(kind, "options", ()))) for layer, kind in LAYERS.items()}


def test_every_layer_is_in_the_list_of_cells() -> None:
    table = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs/cells.md").read_text(), flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(table[1:]))) == sorted([*PLACES, "awd_lstm"])


def test_no_layer_of_that_name() -> None:
    with pytest.raises(ValueError, match=r"^cell='lsmt': a recurrent layer is one of lstm, gru, rnn, "):
        recurrent_layer("lsmt", 3, 5)


@pytest.mark.slow
def test_one_more_layer(tmp_path: Path) -> None:
    copy = fresh_copy(tmp_path / "checkout")
    (copy / "fptt_dist/models/cells/decay.py").write_text(LAYER)
    (copy / "fptt_dist/config/schema/cells/decay.py").write_text(SECTION)
    for file, before, line in (
        ("fptt_dist/layers.py", '    "lem": ', '    "decay": "decay.Decay",'),
        ("docs/cells.md", "| `lem` | ", "| `decay` | forgets | ρ h + W x | steps |"),
    ):
        text = (copy / file).read_text()
        assert text.count(before) == 1
        (copy / file).write_text(text.replace(before, f"{line}\n{before}"))

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"}
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ["model.hidden=4", "model.layers=2", "task.length=9", "task.validation=4", "task.test=4", "fptt.windows=3"]
    small += ["train.max_batches=2", "train.batch_size=4", "device=cpu", "run.dir=run"]
    run("fptt_dist", "train", "add_task", "model.layer=decay", "model.rate=0.25", *small)
    run("fptt_dist", "export", "run")
    exported = json.loads((copy / "run/export/model.json").read_text())["network"]["recurrent"]
    assert (exported["cell"], exported["rate"]) == ("decay", 0.25)
    keys = run("fptt_dist", "config", "keys", "model")
    assert "orthogonal, decay, lem" in " ".join(keys.split())
    assert "what is left after a step" in keys
    tests = ["tests/models/test_layers.py", "tests/models/test_models.py", "tests/test_paper_configs.py"]
    run("pytest", *tests, "-q", "-p", "no:cacheprovider", "-k", "not one_more and (layer or shapes or windows or cell)")
