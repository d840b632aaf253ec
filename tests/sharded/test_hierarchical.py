"""Sharded inside a machine, consensus between machines: the same numbers as with whole copies in each worker."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config, apply_overrides
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.checkpoint.store import read_values
from fptt_dist.training.saved_run import evaluate_run
from tests.parallel.fault_driver import WORDS, broken, copied, place, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, tiny
from tests.sharded.helpers import Part, assembled, assert_close, ended, part_of, saved, step
from tests.training.helpers import content, differing, isolated

MACHINES = 2
ADAM: dict[str, Any] = {"optimizer": {"name": "adam", "lr": 1e-3}}
CASES: dict[str, dict[str, Any]] = {
    "every 3, uneven shares": {"train.batch_size": 9, "parallel.sync_every": 3},
    "every 1, clipped": {"parallel.sync_every": 1, "train.max_norm": 0.02},
    "every 7, delayed": {"parallel.sync_every": 7, "parallel.sync_delay": 2},
    "bf16, to the center": {"parallel.sync_every": 3, "parallel.weight_sync": "center", "parallel.sync_dtype": "bf16"},
    "once a sequence, adam, reset": {**ADAM, "fptt.metric": "preconditioned", "fptt.reset_weights": True},
}
BATCHES = 6


def keys(case: str, inside: str) -> dict[str, Any]:
    return {
        **CASES[case],
        "parallel.strategy": "hierarchical",
        "parallel.intra_node": inside,
        "train.max_batches": BATCHES,
    }


def run(pool: Pool, folder: Path, words: dict[str, Any]) -> list[Outcome]:
    return pool.run(whole, tiny(folder, words), MACHINES, world=4)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_parts_follow_whole_copies(pool: Pool, tmp_path: Path, case: str) -> None:
    copies = run(pool, tmp_path / "copies", keys(case, "data_parallel"))
    parts = run(pool, tmp_path / "parts", keys(case, "fsdp"))
    rtol, atol = (1e-3, 5e-5) if "adam" in case or "bf16" in case else (1e-4, 1e-6)
    one, other = ended(copies, BATCHES), ended(parts, BATCHES)
    assert_close(other, one, rtol=rtol, atol=atol)
    moved = max(float((one[f"{name}/weight"] - start).abs().max()) for name, start in copies[0].start.items())
    assert moved > 5e-3
    values = {outcome.values for outcome in parts}
    assert len(values) == 1
    assert values.pop() == pytest.approx(copies[0].values, abs=1e-5)
    manifest = read_values(step(tmp_path / "parts", BATCHES), "state.json")
    assert manifest["copies"] == [[0, 1], [2, 3]]
    assert manifest["num_replicas"] == MACHINES


@pytest.mark.slow
def test_goes_on_bit_for_bit_between_agreements(pool: Pool, tmp_path: Path) -> None:
    parallel = {
        "strategy": "hierarchical",
        "intra_node": "fsdp",
        "sync_every": 7,
        "sync_delay": 2,
        "sync_dtype": "bf16",
    }
    words = {**WORDS, "parallel": parallel, "checkpoint.every_batches": 2, "train.max_batches": 5}
    pool.run(copied, tiny(tmp_path / "run", words), [2], MACHINES, world=4)  # update 8: what left at 7 arrives at 9
    pool.run(whole, apply_overrides(tiny(tmp_path / "run-2", words), {"resume": "auto"}), MACHINES, world=4)
    assert differing(content(step(tmp_path / "run", 5)), content(step(tmp_path / "run-2", 5))) == []


@pytest.mark.slow
def test_one_process_evaluates_the_machines_mean(pool: Pool, tmp_path: Path) -> None:
    words = keys("every 7, delayed", "fsdp") | {"train.max_batches": 4, "checkpoint.every_batches": 4}
    outcomes = run(pool, tmp_path / "run", words)
    with isolated():
        values = evaluate_run(tmp_path / "run")
    assert outcomes[0].values is not None
    assert (values["validation"], values["test"]) == pytest.approx(outcomes[0].values, abs=1e-6)


@pytest.mark.slow
def test_two_workers_go_on_where_four_stopped(pool: Pool, tmp_path: Path) -> None:
    """Two machines of one: the last synced values of a compressed payload start anew."""
    words = {**keys("bf16, to the center", "fsdp"), "checkpoint.every_batches": 4}
    pool.run(broken, tiny(tmp_path / "run", words), 4, MACHINES, world=4)
    expected = saved(step(tmp_path / "run", 4))
    again = apply_overrides(tiny(tmp_path / "run", words), {"resume": "auto"})
    for machines in (1, 2):
        parts = pool.run(opened, again, machines)
        found = assembled(parts) if machines == 1 else assembled(parts[:1])
        assert_close(found, expected, rtol=0.0, atol=0.0)
    outcomes = pool.run(whole, again, 2)
    assert outcomes[0].batch == BATCHES


def opened(environment: LaunchEnvironment, config: Config, machines: int) -> Part:
    return part_of(open_trainer(place(environment, machines), config))


def center_and_shown(environment: LaunchEnvironment, words: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Weights that evaluation computes with after five updates and a sync at the third."""
    trainer = open_trainer(place(environment, MACHINES), tiny(folder, words))
    batch = trainer.task.train_batch(0, 0, 8, trainer.share)
    trainer.loop.run(batch)
    trainer.store.save(1, *trainer.state.collect(trainer.folder.run_id))
    with trainer.engine.eval_weights("center") as network:
        return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.mark.slow
def test_evaluation_computes_with_the_machines_mean(pool: Pool, tmp_path: Path) -> None:
    words = {**keys("every 3, uneven shares", "fsdp"), "train.batch_size": 8}
    shown = pool.run(center_and_shown, words, tmp_path / "run", world=4)
    for other in shown[1:]:
        for name, tensor in shown[0].items():
            assert torch.equal(other[name], tensor)
    mean = saved(step(tmp_path / "run", 1))
    for name, tensor in shown[0].items():
        torch.testing.assert_close(tensor, mean[f"{name}/center"], rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, mean[f"{name}/weight"])
