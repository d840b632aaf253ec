"""N straight batches are k batches, an interruption, and N − k more: bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist import train
from fptt_dist.config import dump
from tests.training.helpers import assert_same_run, checkpoints, resumed, steps, tiny, train_until

CASES: dict[str, dict[str, Any]] = {
    "fptt": {},
    "prox": {"fptt.update": "prox"},
    "algorithm2": {"fptt.update": "algorithm2"},
    "preconditioned": {"fptt.metric": "preconditioned"},
    "clip_gradient": {"fptt.clip": "gradient", "fptt.beta": 0.25, "fptt.prox_weight": 2.0},
    "online": {"algorithm": "online"},
    "tbptt": {"algorithm": "tbptt"},
    "bptt_aux": {"algorithm": "bptt_aux"},
    "bptt": {"algorithm": "bptt"},
    "dropout": {"model.layers": 2, "model.dropout": 0.5},
    "dropout_algorithm2": {"model.layers": 2, "model.dropout": 0.5, "fptt.update": "algorithm2"},
    "step": {"schedule.name": "step", "schedule.milestones": [1]},
    "cosine": {"schedule.name": "cosine", "schedule.warmup": 4},
    "plateau": {"schedule.name": "plateau", "evaluate.every": 3},
    "alpha_linear": {"fptt.schedule.name": "linear"},
    "alpha_inverse_lr": {"fptt.schedule.name": "inverse_lr", "schedule.name": "cosine", "fptt.schedule.maximum": 2.0},
    "algorithm2_alpha_linear": {
        "fptt.update": "algorithm2",
        "fptt.schedule.name": "linear",
        "fptt.schedule.start": 0.1,
    },
    "resets": {"fptt.reset_weights": True, "fptt.reset_dual": True},
    "micro_batches": {"train.micro_batch_size": 2},
    "gru": {"model.cell": "gru", "model.initialisation": "chrono"},
    "rnn": {"model.cell": "rnn"},
    "rmsprop": {"optimizer.name": "rmsprop", "optimizer.momentum": 0.5},
    "rmsprop_preconditioned": {"optimizer.name": "rmsprop", "fptt.metric": "preconditioned"},
    "sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
    "adamw": {"optimizer.name": "adamw"},
    "amsgrad": {"optimizer.amsgrad": True, "optimizer.betas": [0.8, 0.9]},
    "bf16": {"train.precision": "bf16"},
    "gradient_strategy": {"parallel.strategy": "gradient"},
    "consensus": {"parallel.strategy": "consensus"},
    "consensus_each_window": {"parallel.strategy": "consensus", "parallel.every": 1, "parallel.payload": "bf16"},
    "consensus_bf16": {"parallel.strategy": "consensus", "parallel.payload": "bf16"},
    "consensus_delayed": {"parallel.strategy": "consensus", "parallel.delay": 2},
    "consensus_late": {"parallel.strategy": "consensus", "parallel.start_after": 4, "parallel.weights": "center"},
    "consensus_worker_dual": {"parallel.strategy": "consensus", "parallel.dual": "worker", "parallel.every": 2},
    "consensus_admm": {"parallel.strategy": "consensus", "parallel.dual": "worker", "parallel.order": "admm"},
    "consensus_bptt": {"parallel.strategy": "consensus", "algorithm": "bptt"},
    "hierarchical": {"parallel.strategy": "hierarchical", "parallel.every": 2},
}


def hears_late(case: str) -> int:
    """How many batches a stop needs: it is agreed on with the next gradients, or when the next agreement arrives."""
    return 2 if case == "consensus_delayed" else int("parallel.strategy" in CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_interrupted_twice_is_uninterrupted(case: str, tmp_path: Path) -> None:
    overrides = CASES[case]
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides)
    late = hears_late(case)
    train_until(parts, 3, late=late)  # within the first epoch
    train_until(resumed(parts), 5, late=min(late, 1))  # at its end, where a checkpoint is due and all are asked
    assert 5 in steps(tmp_path / "parts")
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("strategy", ["single", "gradient"])
def test_interrupted_in_mid_drop_of_the_learning_rate(strategy: str, tmp_path: Path) -> None:
    """The preconditioned metric's reference rates are still falling when the run is saved."""
    drop = {"schedule.name": "step", "schedule.milestones": [1], "schedule.factor": 1e-5}
    overrides = {"fptt.metric": "preconditioned", "parallel.strategy": strategy, **drop}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides)
    train_until(parts, 6, late=int(strategy != "single"))
    state = json.loads((checkpoints(tmp_path / "parts")[-1] / "rank" / "0" / "state.json").read_text())
    rates = {entry["reference_rate"] for entry in state["optimizer"]["entries"].values()}
    assert len(rates) == 1
    assert 1e-7 < rates.pop() < 1e-2
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("batch", [1, 4, 6, 9])
def test_interrupted_anywhere(batch: int, tmp_path: Path) -> None:
    overrides = {"model.layers": 2, "model.dropout": 0.3, "evaluate.every": 2, "checkpoint.every": 3}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides)
    train_until(parts, batch)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("case", ["fptt", "algorithm2", "rmsprop", "step", "bptt"])
def test_more_batches_go_on_as_if_planned(case: str, tmp_path: Path) -> None:
    overrides = {**CASES[case], "evaluate.every": 5}
    train(tiny(tmp_path / "straight", overrides))
    parts = tiny(tmp_path / "parts", overrides, batches=5)
    assert train(parts).batches == 5
    assert train(resumed(parts, **{"train.batches": 10})).batches == 10
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
