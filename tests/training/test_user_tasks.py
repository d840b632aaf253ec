"""Tasks of a user's own: one whose state is carried from batch to batch, one whose loss learns an estimate."""

from pathlib import Path

import pytest
import torch

from fptt_dist.training.run import train
from fptt_dist.training.setup import task_factory
from tests.training.helpers import (
    assert_same_run,
    checkpoints,
    content,
    records,
    resumed,
    tiny,
    train_until,
)
from tests.training.toys import CLASSES, Majority, Stream


def carried(run: Path) -> dict[str, torch.Tensor]:
    saved = content(checkpoints(run)[-1])
    return {k: v for k, v in saved.items() if k.startswith("rank/0/carried.safetensors:carried")}


@pytest.mark.parametrize(
    ("cell", "algorithm", "micro"),
    [("lstm", "fptt", None), ("lstm", "bptt_aux", 2), ("gru", "fptt", 2), ("gru", "bptt_aux", None)],
)
def test_a_stream_goes_on_within_an_epoch(
    cell: str, algorithm: str, micro: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Stream())
    overrides = {"model.layer": cell, "algorithm": algorithm, "train.micro_batch_size": micro}
    train(tiny(tmp_path / "straight", overrides, batches=8))
    parts = tiny(tmp_path / "parts", overrides, batches=8)
    train_until(parts, 3)
    states = carried(tmp_path / "parts")
    assert len(states) == (2 if cell == "lstm" else 1) * (2 if micro else 1)
    assert all(state.shape == (1, micro or 4, 4) and state.any() for state in states.values())
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_the_state_matters_and_ends_with_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for carries in (True, False):
        monkeypatch.setattr(task_factory, "build_task", lambda config, carries=carries: Stream(carries_state=carries))
        run = tmp_path / str(carries)
        train(tiny(run, batches=5))
        losses[carries] = content(checkpoints(run)[-1])
        assert carried(run) == {}  # the fifth batch ends the epoch
    name = "model.safetensors:readout.weight"
    assert not torch.equal(losses[True][name], losses[False][name])


def test_an_estimate_goes_on_and_is_renewed_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Majority(config.windows))
    straight = tiny(tmp_path / "straight", batches=12)
    train(straight)
    parts = tiny(tmp_path / "parts", batches=12)
    train_until(parts, 3)
    early = content(checkpoints(tmp_path / "parts")[-1])
    assert torch.equal(early["rank/0/loss.safetensors:table"], torch.full((3, CLASSES, CLASSES), 1 / CLASSES))
    assert early["rank/0/loss.safetensors:counts"].sum() == 3 * 12  # 3 batches of 4, in each of 3 windows
    train_until(resumed(parts), 7)
    later = content(checkpoints(tmp_path / "parts")[-1])
    assert not torch.equal(later["rank/0/loss.safetensors:table"], early["rank/0/loss.safetensors:table"])
    assert later["rank/0/loss.safetensors:counts"].sum() == 3 * 8
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize(("batches", "ends"), [(4, 0), (5, 1), (11, 2)])
def test_each_epoch_ends_once(batches: int, ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Majority(3)
    monkeypatch.setattr(task_factory, "build_task", lambda config: task)
    train(tiny(tmp_path / "run", batches=batches))
    assert task.counted.ends == ends


@pytest.mark.parametrize("update", ["gradient", "second_gradient"])
@pytest.mark.parametrize("micro", [None, 2])
def test_an_estimate_sees_each_example_once_a_window(
    update: str, micro: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Majority(config.windows))
    train(tiny(tmp_path / "run", {"fptt.update_rule": update, "train.micro_batch_size": micro}, batches=4))
    saved = content(checkpoints(tmp_path / "run")[-1])
    assert saved["rank/0/loss.safetensors:counts"].sum(-1).tolist() == [16.0] * 3
    torch.testing.assert_close(saved["rank/0/loss.safetensors:sums"].sum(-1), saved["rank/0/loss.safetensors:counts"])


def test_higher_is_better_where_the_task_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Majority(config.windows))
    outcome = train(tiny(tmp_path / "run", {"evaluate.every_batches": 1, "optimizer.lr": 0.1}, batches=15))
    lines = [line for line in records(tmp_path / "run", "evaluation") if line["split"] == "validation"]
    values = [line["value"] for line in lines]
    assert len(set(values)) > 2
    assert [line["best"] for line in lines] == [value > max(values[:n], default=-1) for n, value in enumerate(values)]
    assert outcome.validation == max(values)
    assert outcome.best_batch == 1 + values.index(max(values))
