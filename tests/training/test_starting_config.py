"""The configuration that `config init` writes: it says what the file holds, and it can be trained."""

from pathlib import Path

import numpy as np
import pytest

from fptt_dist.config import ArraysTask, load
from fptt_dist.training.run import try_out
from fptt_dist.training.tools.starting_config import starting_config
from tests.training.helpers import isolated

TEXT = """\
# A start, to be changed: fptt-dist config keys says what else there is.
# gas.csv: 40 series of 3 to 12 steps (median 9), 2 channels: temp, "wind speed".
# Target: one class per series in column grade.
# 2 classes, with their numbers of series: high (8), low (32).
# Missing values: 40 of 630, in channels "wind speed" (40).
# Columns left out: note (text).
task:
  name: arrays
  train: gas.csv
  # validation: FILE  # a file of its own; without one, 15 % of the series are held out
  # test: FILE        # the same
  target: class
  length: 12  # steps of the longest series
  series_column: id
  target_columns: [grade]
  feature_columns: [temp, "wind speed"]
  missing: fill  # carry the last value forward, and show the network which are missing
  class_weights: balanced  # the commonest class has 4 times the rarest's
  # metrics: [accuracy]  # also balanced_accuracy, macro_f1, auroc; the first one decides which checkpoint is the best
model:
  layer: lstm  # config keys model.layer lists the others
  hidden: 64
algorithm: fptt  # the baselines: bptt, tbptt
fptt:
  alpha: 0.5  # strength of the regularizer; 0 is tbptt
  windows: 3  # updates per sequence, about sqrt(12); tune it with alpha
  metric: preconditioned
optimizer: {name: adam, lr: 3e-3}
train:
  batch_size: 8
  max_epochs: 200  # of about 3 batches
  patience: 20  # ends after so many epochs in a row without a better one
"""


def steps_of(series: int) -> int:
    return 3 + series % 10 if series < 30 else 9


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [(series, step) for series in range(40) for step in range(steps_of(series))]
    lines = (f"s{s},{t},{s + t},{t or ''},ok,{'low' if s % 5 else 'high'}\n" for s, t in rows)
    path = tmp_path / "gas.csv"
    path.write_text("id,time,temp,wind speed,note,grade\n" + "".join(lines))
    return path


def test_the_text_for_a_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    assert starting_config(table.name, targets=["grade"]) == TEXT


def test_it_loads_and_trains_for_every_kind_of_target(tmp_path: Path, subtests: pytest.Subtests) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(40, 12, 2)).astype(np.float32)
    targets = {
        "class": np.arange(40) % 3,
        "labels": random.integers(0, 2, (40, 3)),
        "value": random.normal(size=40),
        "step_class": random.integers(0, 3, (40, 12)),
        "step_value": random.normal(size=(40, 12, 2)),
        "forecast": None,
    }
    for target, array in targets.items():
        with subtests.test(target):
            data, config = tmp_path / f"{target}.npz", tmp_path / f"{target}.yaml"
            np.savez(data, inputs=inputs, **({} if array is None else {"targets": array}))
            config.write_text(starting_config(str(data)))
            loaded = load(config, {"run.dir": str(tmp_path / "run")})
            assert isinstance(loaded.task, ArraysTask)
            assert loaded.task.target == target
            with isolated():
                try_out(loaded)


def test_names_that_are_not_plain_stay_within_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "odd: name #1.csv"
    rows = "".join(f"{series},{step},{series * step},{series % 2}\n" for series in range(8) for step in range(3))
    path.write_text('id,time,"a\nb: [#,",y\n' + rows)
    config = tmp_path / "config.yaml"
    config.write_text(starting_config(str(path)))
    loaded = load(config)
    assert isinstance(loaded.task, ArraysTask)
    assert loaded.task.train == str(path)
    assert loaded.task.series_column == "id"
    assert '1 channel: "a\\nb: [#,".' in config.read_text()
