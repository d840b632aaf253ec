"""N straight batches are k batches, an interruption, and N − k more: bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.config import dump
from fptt_dist.training.run import train
from tests.training.helpers import assert_same_run, checkpoints, resumed, steps, tiny, train_until

DROPOUT = {"model.layers": 2, "model.dropout": 0.5}
CASES: dict[str, dict[str, Any]] = {  # each setting with a state of its own is in one of them
    "fptt": {},
    "proximal": {"fptt.update_rule": "proximal", "model.layer": "gru", "model.init": "chrono"},
    "second_gradient": {
        "fptt.update_rule": "second_gradient",
        "fptt.schedule.name": "linear",
        "fptt.schedule.start": 0.1,
        **DROPOUT,
    },
    "preconditioned": {"fptt.metric": "preconditioned", "optimizer.amsgrad": True, "optimizer.betas": [0.8, 0.9]},
    "rmsprop": {"fptt.metric": "preconditioned", "optimizer.name": "rmsprop", "optimizer.momentum": 0.5},
    "clip_gradient": {
        "fptt.clip_scope": "gradient",
        "fptt.beta": 0.25,
        "fptt.prox_weight": 2.0,
        "optimizer.name": "adamw",
    },
    "tbptt": {
        "algorithm": "tbptt",
        "schedule.name": "cosine",
        "schedule.warmup_batches": 4,
        "train.micro_batch_size": 2,
    },
    "tbptt_accumulated": {
        "algorithm": "tbptt_accumulated",
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        **DROPOUT,
    },
    "bptt_aux": {
        "algorithm": "bptt_aux",
        "schedule.name": "plateau",
        "evaluate.every_batches": 3,
        "model.layer": "rnn",
    },
    "bptt": {"algorithm": "bptt", "train.precision": "bf16", "schedule.name": "step", "schedule.milestones": [1]},
    "inverse_lr": {"fptt.schedule.name": "inverse_lr", "schedule.name": "cosine", "fptt.schedule.maximum": 2.0},
    "resets": {"fptt.reset_weights": True, "fptt.reset_dual": True, "train.precision": "bf16"},
    "gradient": {"parallel.strategy": "data_parallel", **DROPOUT},
    "consensus": {"parallel.strategy": "consensus"},
    "consensus_each_window": {
        "parallel.strategy": "consensus",
        "parallel.sync_every": 1,
        "parallel.sync_dtype": "bf16",
    },
    "consensus_bf16": {"parallel.strategy": "consensus", "parallel.sync_dtype": "bf16"},
    "consensus_delayed": {"parallel.strategy": "consensus", "parallel.sync_delay": 2},
    "consensus_late": {
        "parallel.strategy": "consensus",
        "parallel.warmup_updates": 4,
        "parallel.weight_sync": "center",
    },
    "consensus_worker_dual": {"parallel.strategy": "consensus", "parallel.dual": "local", "parallel.sync_every": 2},
    "consensus_admm": {"parallel.strategy": "consensus", "parallel.dual": "local", "parallel.dual_update": "admm"},
    "consensus_bptt": {"parallel.strategy": "consensus", "algorithm": "bptt"},
    "hierarchical": {"parallel.strategy": "hierarchical", "parallel.sync_every": 2},
}


def test_interrupted_twice_is_uninterrupted(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for case, overrides in CASES.items():
        with subtests.test(case=case):
            straight, run = tmp_path / case / "straight", tmp_path / case / "parts"
            train(tiny(straight, overrides, batches=7))
            parts = tiny(run, overrides, batches=7)
            train_until(parts, 3)  # within the first epoch
            train_until(resumed(parts), 5)  # at its end: a checkpoint is due, and all are asked
            assert 5 in steps(run)
            train(resumed(parts))
            assert_same_run(straight, run)


@pytest.mark.parametrize("strategy", ["single", "data_parallel"])
def test_interrupted_in_mid_drop_of_the_learning_rate(strategy: str, tmp_path: Path) -> None:
    """The preconditioned metric's reference rates are still falling when the run is saved."""
    drop = {"schedule.name": "step", "schedule.milestones": [1], "schedule.factor": 1e-5}
    overrides = {"fptt.metric": "preconditioned", "parallel.strategy": strategy, **drop}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides)
    train_until(parts, 6)
    state = json.loads((checkpoints(tmp_path / "parts")[-1] / "rank" / "0" / "state.json").read_text())
    rates = {entry["reference_rate"] for entry in state["optimizer"]["entries"].values()}
    assert len(rates) == 1
    assert 1e-7 < rates.pop() < 1e-2
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_interrupted_anywhere(subtests: pytest.Subtests, tmp_path: Path) -> None:
    overrides = {"model.layers": 2, "model.dropout": 0.3, "evaluate.every_batches": 2, "checkpoint.every_batches": 3}
    train(tiny(tmp_path / "straight", overrides))
    for batch in (1, 4, 6, 9):
        with subtests.test(batch=batch):
            parts = tiny(tmp_path / str(batch), overrides)
            train_until(parts, batch)
            train(resumed(parts))
            assert_same_run(tmp_path / "straight", tmp_path / str(batch))


@pytest.mark.parametrize("keys", [{"fptt.update_rule": "second_gradient"}, CASES["rmsprop"], CASES["bptt"]], ids=str)
def test_more_batches_go_on_as_if_planned(keys: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**keys, "evaluate.every_batches": 5}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides, batches=5)
    assert train(parts).batches == 5
    assert train(resumed(parts, **{"train.max_batches": 10})).batches == 10
    differ = [line for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines() if '"test"' in line]
    assert len(differ) == 2  # the first part was finished, and tested
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "parts" / "metrics.jsonl").write_text("".join(line for line in lines if line[:-1] != differ[0]))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_goes_on_in_a_fresh_process(tmp_path: Path) -> None:
    overrides = {"model.layers": 2, "model.dropout": 0.5, "fptt.metric": "preconditioned", "schedule.name": "cosine"}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides)
    train_until(parts, 3)
    torch.rand(3)  # what this process draws meanwhile does not matter
    config = tmp_path / "config.yaml"
    config.write_text(dump(resumed(parts)))
    subprocess.run(
        [sys.executable, "-m", "fptt_dist", "train", str(config)],
        check=True,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_what_a_process_draws_before_training_does_not_matter(tmp_path: Path) -> None:
    overrides = {"model.layers": 2, "model.dropout": 0.5}
    train(tiny(tmp_path / "one", overrides, batches=3))
    torch.manual_seed(99)
    train(tiny(tmp_path / "other", overrides, batches=3))
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    train(tiny(tmp_path / "one", batches=3))
    train(tiny(tmp_path / "other", {"seed": 1}, batches=3))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "other")
