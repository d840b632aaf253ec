"""A program under torchrun that calls `fit`: what the command trains, and several runs in one process."""

import json
import os
from pathlib import Path

import pytest

from fptt_dist.config import Config, dump
from fptt_dist.config import load as load_config
from tests.own_tasks import write_waves
from tests.parallel.test_torchrun import PLACES
from tests.program import Program
from tests.training.helpers import assert_same_checkpoint, records, without_clock

pytestmark = pytest.mark.slow

WORLD = 2
KEYS = {
    "model": {"hidden": 4},
    "fptt.windows": 3,
    "train": {"batch_size": 200, "max_batches": 10},
    "logging": {"every_batches": 1, "tensorboard": False},
    "device": "cpu",
}
SCRIPT = """
import json, os
from pathlib import Path

import fptt_dist, torch
from waves import Waves

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = torch.nn.GRU(1, 4), torch.nn.Linear(4, 2)

    def forward(self, x, state=None):
        y, state = self.gru(x, state)
        return self.head(y), state

def refused(name, **objects):
    try:
        fptt_dist.fit({**keys, "run.dir": name}, **objects)
    except fptt_dist.config.ConfigError as error:
        Path(f"{name}.{rank}").write_text(str(error))

keys, rank = json.loads(Path("keys.json").read_text()), os.environ["RANK"]
for run in ("first", "second"):
    result = fptt_dist.fit({**keys, "run.dir": run}, task=Waves(12))
    Path(f"{run}.{rank}").write_text(f"{result.value} {result.workers}")
refused("data", task=Waves(12, noise=0.5 + int(rank)))
torch.manual_seed(int(rank))
refused("weights", task=Waves(12), network=Net())
torch.manual_seed(0)
fptt_dist.fit({**keys, "run.dir": "network"}, task=Waves(12), network=Net())
"""


def start(folder: Path, *words: str) -> None:
    """Run a Python program on two workers to its end."""
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    program = Program(folder / "log", [*agent, *words], environment, folder=folder)
    try:
        assert program.end() == 0, program.text()
    finally:
        program.kill()


def test_a_program_trains_what_the_command_trains(tmp_path: Path) -> None:
    write_waves(tmp_path)
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    (tmp_path / "program.py").write_text(SCRIPT)
    start(tmp_path, "program.py")
    own = {"task.name": "waves.py:Waves", "task.length": 12, "task.options": {"steps": 12}, "run.dir": "command"}
    config: Config = load_config(KEYS, own)
    (tmp_path / "config.yaml").write_text(dump(config))
    start(tmp_path, "-m", "fptt_dist", "train", "config.yaml")
    for run in ("first", "second"):
        assert_same_checkpoint(tmp_path / "command", tmp_path / run)
        evaluations = [without_clock(records(tmp_path / each, "evaluation")) for each in ("command", run)]
        assert evaluations[0] == evaluations[1]
        value = evaluations[1][-1]["value"]
        assert [(tmp_path / f"{run}.{rank}").read_text() for rank in range(WORLD)] == [f"{value} {WORLD}"] * WORLD
    for name, message in (
        ("data", "rank 1 finds other data than rank 0, as many sequences of other values: "),
        ("weights", "rank 1 was given a network of other weights than rank 0: call torch.manual_seed(0) on each"),
    ):
        [refused] = {(tmp_path / f"{name}.{rank}").read_text() for rank in range(WORLD)}
        assert refused.startswith(message)
        assert not (tmp_path / name).exists()
    assert records(tmp_path / "network", "evaluation")[-1]["split"] == "test"
