"""A user's own series of different lengths: trained by two workers, killed, resumed, evaluated and shown."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.launchers.test_local import command, processes_of
from tests.training.helpers import assert_same_checkpoint, result, without_clock

CONFIG = """
task: {{name: arrays, train: {data}, length: 20, class_weights: balanced, missing: fill, target_estimate: class_mean}}
model: {{hidden: 8}}
fptt: {{window_length: 6}}
optimizer: {{lr: 0.01}}
parallel: {{strategy: consensus, dual: averaged}}
train: {{batch_size: 8, max_batches: 40}}
checkpoint: {{every_batches: 5}}
evaluate: {{every_batches: 10}}
logging: {{tensorboard: false}}
run: {{dir: {run}}}
"""


def written(folder: Path, *, seed: int = 0) -> Path:
    """Series of 3 to 20 steps of three classes, some values missing."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 21, 90)
    classes = np.arange(90) % 3
    steps = [
        generator.normal(size=(n, 2)) + np.outer(np.sin(np.arange(n) * (c + 1)), [1, -1])
        for n, c in zip(lengths, classes, strict=True)
    ]
    rows = np.concatenate(steps)
    rows[generator.random(rows.shape) < 0.05] = np.nan
    np.savez(folder / "own.npz", inputs=rows, lengths=lengths, targets=np.array(["a", "b", "c"])[classes])
    return folder / "own.npz"


@pytest.mark.slow
def test_own_series_with_two_workers(tmp_path: Path) -> None:
    data = written(tmp_path)
    for name in ("straight", "killed"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(data=data, run=tmp_path / name))
    launch = ("-m", "fptt_dist", "launch", "--nproc", "2")
    with command(tmp_path / "log1", *launch, str(tmp_path / "straight.yaml")) as program:
        assert program.end() == 0, program.text()

    with command(tmp_path / "log2", *launch, str(tmp_path / "killed.yaml")) as program:
        program.wait_until(lambda: "batch 10: validation" in program.text())
        for pid in [program.process.pid, *processes_of(program)]:
            os.kill(pid, signal.SIGKILL)
        program.process.wait(30)
    assert not (tmp_path / "killed" / "result.json").exists()
    with command(tmp_path / "log3", *launch, str(tmp_path / "killed.yaml"), "resume=auto") as program:
        assert program.end() == 0, program.text()
        assert "resumed from" in program.text()
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "killed")
    straight, killed = (without_clock(result(tmp_path / name)) for name in ("straight", "killed"))
    assert straight == killed
    assert (killed["task"], killed["metric"], killed["workers"]) == ("arrays", "accuracy", 2)

    with command(tmp_path / "log4", "-m", "fptt_dist", "evaluate", str(tmp_path / "killed")) as program:
        assert program.end() == 0, program.text()
        assert json.loads(program.text())["test"] == pytest.approx(killed["value"])
    with command(tmp_path / "log5", "-m", "fptt_dist", "report", str(tmp_path / "killed")) as program:
        assert program.end() == 0, program.text()

    written(tmp_path, seed=1)  # the file has other examples now
    resume = ("-m", "fptt_dist", "train", str(tmp_path / "killed.yaml"), "resume=auto", "train.max_batches=60")
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "killed").rglob("*"))
    with command(tmp_path / "log6", *resume) as program:
        assert program.end() == 2
        said = f"the run was trained on other examples than those that {data} has now: put that file back, or train"
        (line,) = program.text().splitlines()  # no older checkpoint is tried
        assert line.startswith(f"fptt-dist: {tmp_path}/killed/checkpoints/step-")
        assert line.endswith(f": {said} a new run")
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "killed").rglob("*")) == before
