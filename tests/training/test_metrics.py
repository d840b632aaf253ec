"""A run that is measured by several metrics: what it records, which one decides, and what reports show of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from fptt_dist.algorithm import TerminalLoss
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.history import read_runs
from fptt_dist.reporting import make_report, results_table
from fptt_dist.reporting.plots.style import styled
from fptt_dist.reporting.plots.subject import subjects
from fptt_dist.reporting.runs.groups import group_runs
from fptt_dist.tasks import Batch, DataError, Split, Task, rank_slice
from fptt_dist.tasks.metrics import TaskMetrics
from fptt_dist.training import saved_run
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup import task_factory
from tests.training.helpers import assert_same_run, records, result, resumed, tiny, train_until

LISTED = ("accuracy", "balanced_accuracy", "auroc")
OWN = """
from torchmetrics.regression import MeanAbsoluteError

class Wrongness(MeanAbsoluteError):
    def update(self, predictions, targets):
        super().update(predictions.argmax(-1).float(), targets.float())
"""


class Rare(Task):
    """Three classes by the mean of a sequence, high (rare), middling or low, from noisy steps."""

    name = "rare"
    inputs = 1
    outputs = 3
    length = 12
    train_examples = 20

    def __init__(self, listed: tuple[str, ...] = LISTED, monitor: str | None = None) -> None:
        self.loss = TerminalLoss(UniformEstimate(3))
        self.measure_by(TaskMetrics("class", listed, monitor, size=3))

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        return self._batch([11, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        yield self._batch([12, len(split)], 60).select(rank_slice(60, rank, world))

    def _batch(self, seed: list[int], size: int) -> Batch:
        rng = np.random.default_rng(seed)
        means = rng.normal(size=size)
        inputs = torch.from_numpy(means + rng.normal(size=(self.length, size))).float().unsqueeze(-1)
        targets = np.digitize(means, [-0.3, 1.2])
        return Batch(inputs, torch.from_numpy(targets))


def config_of(monkeypatch: pytest.MonkeyPatch, run: Path, task: Task, batches: int = 12, **more: Any) -> Any:
    for module in (task_factory, saved_run):
        monkeypatch.setattr(module, "build_task", lambda config: task)
    return tiny(run, {"evaluate.every_batches": 1, "optimizer.lr": 0.05, **more}, batches=batches)


def of_split(run: Path, split: str) -> list[dict[str, Any]]:
    return [record for record in records(run, "evaluation") if record["split"] == split]


@pytest.mark.parametrize("monitor", [None, *LISTED])
def test_all_metrics_are_recorded_and_one_chooses_the_checkpoint(
    monitor: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    outcome = train(config_of(monkeypatch, run, Rare(monitor=monitor)))
    monitor = monitor or LISTED[0]
    validations = of_split(run, "validation")
    values = [record["metrics"][monitor] for record in validations]
    assert len(set(values)) > 3
    for record in validations:
        assert list(record["metrics"]) == list(LISTED)
        assert (record["metric"], record["value"]) == (monitor, record["metrics"][monitor])
        assert record["higher_is_better"] is True
    best = values.index(max(values))
    assert outcome.best_batch == best + 1
    (test,) = of_split(run, "test")
    saved = result(run)
    assert saved["metrics"] == {"validation": validations[best]["metrics"], "test": test["metrics"]}
    assert (saved["metric"], saved["value"], saved["validation"]) == (monitor, test["value"], values[best])
    assert saved["higher_is_better"] is True
    assert evaluate_run(run) == {
        "validation": outcome.validation,
        "test": outcome.value,
        "metrics": saved["metrics"],
    }


def test_the_checkpoints_of_metrics_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above could not tell one monitor from another."""
    runs = {name: tmp_path / name for name in LISTED}
    batches = [train(config_of(monkeypatch, run, Rare(monitor=name))).best_batch for name, run in runs.items()]
    assert len(set(batches)) > 1


def test_a_measured_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = config_of(monkeypatch, tmp_path / "straight", Rare(monitor="auroc"), **{"train.patience": 3})
    ended = train(straight)
    parts = config_of(monkeypatch, tmp_path / "parts", Rare(monitor="auroc"), **{"train.patience": 3})
    train_until(parts, max(1, ended.batches - 2))
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_a_plateau_falls_by_the_monitored_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric of one's own, of which lower is better, beside one of which higher is."""
    (tmp_path / "mine.py").write_text(OWN)
    task = Rare(("accuracy", f"{tmp_path}/mine.py:Wrongness"), "Wrongness")
    run = tmp_path / "run"
    keys = {"schedule.name": "plateau", "schedule.patience": 0, "schedule.factor": 0.5, "train.patience": 4}
    outcome = train(config_of(monkeypatch, run, task, 40, **keys, **{"evaluate.every_batches": 5}))
    values = [record["metrics"]["Wrongness"] for record in of_split(run, "validation")]
    assert (outcome.metric, outcome.higher_is_better, outcome.validation) == ("Wrongness", False, min(values))
    rates = {record["batch"]: record["lr"] for record in records(run, "train")}
    expected, lowest = 0.05, np.inf
    for number, value in enumerate(values[:-1]):
        expected *= 0.5 if value >= lowest * (1 - 1e-4) else 1.0  # torch's threshold
        lowest = min(lowest, value) if value < lowest * (1 - 1e-4) else lowest
        assert rates[5 * number + 6] == pytest.approx(expected)
    assert expected < 0.05


def test_tensorboard_has_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    train(config_of(monkeypatch, run, Rare(), 3, **{"logging.tensorboard": True}))
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    for name in LISTED:
        shown = [event.value for event in board.Scalars(f"validation/{name}")]
        assert shown == pytest.approx([record["metrics"][name] for record in of_split(run, "validation")], rel=1e-6)
        assert f"test/{name}" in tags
    assert "Loss/validation_accuracy" in tags


def test_reports_show_each_metric_and_know_an_unknown_ones_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    run = tmp_path / "run"
    task = Rare(("auroc", f"{tmp_path}/mine.py:Wrongness"), "Wrongness")
    outcome = train(config_of(monkeypatch, run, task, 3))
    (history,) = read_runs([run])
    table = results_table([history])
    assert list(table.columns[2].cells) == ["Wrongness"]
    assert list(table.columns[-1].cells) == [f"auroc {outcome.metrics['test']['auroc']:.5g}"]
    (subject,) = subjects(styled(group_runs([history])))
    assert (subject.metric, subject.direction) == ("Wrongness", "Lower is better.")
    text = make_report([run]).path.read_text()
    assert "<h3>Metrics</h3>" in text
    assert "Wrongness (monitored)" in text
    assert f"{outcome.metrics['validation']['auroc']:.5g} (1)" in text


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_data_that_are_not_finite_end_the_run(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = split

    class Broken(Rare):
        def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
            for batch in super().evaluation_batches(split, rank, world):
                if split == broken:
                    batch.inputs[3, 2] = float("nan")
                yield batch

    run = tmp_path / "run"
    with pytest.raises(DataError, match=rf"^the {split} split has 1 inputs or targets that are not finite"):
        train(config_of(monkeypatch, run, Broken(), 2))
    assert not (run / "result.json").exists()
    if split == "test":  # the run resumes with the corrected data
        assert train(resumed(config_of(monkeypatch, run, Rare(), 2))).batches == 2


def test_a_score_of_numbers_that_are_not_finite_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scored(Rare):
        metric, higher_is_better = "error", False

        def __init__(self) -> None:
            self.loss = TerminalLoss(UniformEstimate(3))

        def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
            return output.double().sum() * 0, 0

    with pytest.raises(DataError, match=r"^the validation split is empty: give it at least one sequence"):
        train(config_of(monkeypatch, tmp_path / "run", Scored(), 2))
