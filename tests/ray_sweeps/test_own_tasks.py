"""A sweep over the options of a task from a user's file, which each of Ray's workers loads."""

from pathlib import Path

import pytest

from fptt_dist.training.saved_run import evaluate_run
from tests.own_tasks import write_waves
from tests.ray_sweeps.helpers import Ray, states
from tests.training.helpers import result

CONFIG = """
task: {name: waves.py:Waves, length: 12, options: {steps: 12, noise: 0.0}}
model: {hidden: 16}
optimizer: {lr: 0.01}
train: {batch_size: 100, max_batches: 60}
logging: {tensorboard: false}
device: cpu
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_options_vary(workers: int, shared: Ray, tmp_path: Path) -> None:
    write_waves(tmp_path, metric="hits")
    (tmp_path / "base.yaml").write_text(CONFIG)
    file = tmp_path / "sweep.yaml"
    file.write_text(f"config: base.yaml\nspace: {{task.options.noise: {{grid: [0.0, 50.0]}}}}\nworkers: {workers}\n")
    results, printed = shared.sweep(file, tmp_path / "out", typed_in=tmp_path)
    assert states(results) == ["finished"] * 2, printed
    assert (results.metric, results.higher_is_better) == ("hits", True)
    assert results.best is not None
    best = results.best.trials[0]
    assert best.values["task.options.noise"] == 0.0
    assert evaluate_run(best.path)["test"] == result(best.path)["value"]
