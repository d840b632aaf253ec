"""What a sharded run shows of its weights: in evaluations, in checkpoints, and in what it computes with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.config import Config
from fptt_dist.models import load_network
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.tasks import TaskShape
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup import factory, task_factory
from fptt_dist.training.tools.export import export_run
from tests.parallel.pool import Pool
from tests.parallel.runs import open_trainer, same_bits, tiny, train
from tests.sharded.helpers import PARALLEL, Part, assembled, broken, part_of, same, saved, step, stopped
from tests.training.helpers import isolated

SLOW = pytest.mark.slow
HOW = pytest.mark.parametrize("how", ["fsdp", pytest.param("zero 1", marks=SLOW), "zero 2", "zero 3"])
KEYS: dict[str, Any] = {
    "checkpoint.every_batches": 1,
    "model.layers": 2,
    "optimizer": {"name": "sgd", "lr": 0.3},
    "task.examples": 16,  # an epoch is 2 batches
}
RESET = {"fptt.reset_weights": True, "fptt.reset_dual": True}
INPUT = torch.linspace(0.0, 1.0, 40).view(10, 2, 2)


@dataclass
class Shown:
    """What a worker shows at one moment: its part, the modules that it evaluates, and what it computes in training."""

    part: Part
    center: dict[str, Tensor]
    weights: dict[str, Tensor]
    outputs: Tensor


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def shown(environment: LaunchEnvironment, config: Config, batch: int, restored: bool = False) -> Shown:
    """At the end of `batch`, or as it is after the newest checkpoint was restored."""
    trainer = open_trainer(environment, config) if restored else stopped(environment, config, batch)
    assert trainer.state.position.batch == batch
    with trainer.engine.eval_weights("center") as network:
        center = parameters(network)
    with trainer.engine.eval_weights("weights") as network:
        weights = parameters(network)
    part = part_of(trainer)
    with trainer.engine.placement.collective_errors():
        outputs = trainer.model(INPUT)[0].detach().clone()
    return Shown(part, center, weights, outputs)


def computed(config: Config, weights: dict[str, Tensor]) -> Tensor:
    """What a plain network with these weights computes, in this process."""
    with isolated(), torch.no_grad():
        network = factory.build_model(config, TaskShape.of(task_factory.build_task(config)))
        for name, p in network.named_parameters():
            p.copy_(weights[name])
        return network(INPUT)[0]


def named(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """One tensor of each parameter, by the parameter's name."""
    return {name.removesuffix(f"/{key}"): tensor for name, tensor in state.items() if name.endswith(f"/{key}")}


@HOW
def test_evaluations_and_training_compute_with_the_weights_that_are_stepped(
    pool: Pool, tmp_path: Path, how: str
) -> None:
    """In the middle of an epoch, and again when that checkpoint is restored."""
    config = tiny(tmp_path / "run", {**KEYS, "parallel": PARALLEL[how]})
    before = pool.run(shown, config, 1)
    after = pool.run(shown, tiny(tmp_path / "run", {**KEYS, "parallel": PARALLEL[how], "resume": "auto"}), 1, True)
    for workers in (before, after):
        state = assembled(worker.part for worker in workers)
        assert same(state, saved(step(tmp_path / "run", 1))) == []
        weights, center = named(state, "weight"), named(state, "center")
        expected = computed(config, weights)
        assert (expected - computed(config, center)).abs().max() > 1e-4, "W̄ must differ from W to say something"
        for worker in workers:
            assert same(worker.center, center) == []
            assert same(worker.weights, weights) == []
            torch.testing.assert_close(worker.outputs, expected, rtol=1e-6, atol=1e-7)


@HOW
def test_after_an_epochs_reset_training_computes_with_the_center(pool: Pool, tmp_path: Path, how: str) -> None:
    """Batch 2 ends the first epoch: what the engine computes with are copies of the tensors that were reset."""
    plain = tiny(tmp_path / "plain", {**KEYS, "parallel": PARALLEL[how]})
    reset = tiny(tmp_path / "reset", {**KEYS, **RESET, "parallel": PARALLEL[how]})
    untouched = assembled(pool.run(broken, plain, 2))
    workers = pool.run(shown, reset, 2)
    state = assembled(worker.part for worker in workers)
    center = named(untouched, "center")
    assert same(named(state, "weight"), center) == []
    assert same(named(state, "center"), center) == []
    assert not any(tensor.any() for tensor in named(state, "scaled_dual").values())
    assert any(tensor.any() for tensor in named(untouched, "scaled_dual").values())
    expected = computed(reset, center)
    assert (expected - computed(reset, named(untouched, "weight"))).abs().max() > 1e-4
    for worker in workers:
        torch.testing.assert_close(worker.outputs, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        *[("fsdp", "weights"), ("zero 3", "center")],
        *(
            pytest.param(*each, marks=SLOW)
            for each in [("fsdp", "center"), ("zero 1", "center"), ("zero 2", "weights")]
        ),
    ],
)
def test_what_is_evaluated_is_what_one_process_evaluates(pool: Pool, tmp_path: Path, how: str, weights: str) -> None:
    """In the run, from its checkpoint in a single process, and exported; the shares of the batch are not equal."""
    keys = {
        **KEYS,
        "train.batch_size": 9,
        "evaluate.every_batches": 1,
        "evaluate.weights": weights,
        "train.max_batches": 2,
    }
    [single] = pool.run(train, tiny(tmp_path / "single", {**keys, "parallel": PARALLEL["single"]}), world=1)
    workers = pool.run(train, tiny(tmp_path / "run", {**keys, "parallel": PARALLEL[how]}))
    values = workers[0].values
    assert values is not None
    assert [worker.values for worker in workers] == [values] * 2
    assert values == pytest.approx(single.values, abs=1e-6)
    said = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [line["value"] for line in said if line["kind"] == "evaluation" and line["split"] == "validation"][-1]
    with isolated():
        latest = evaluate_run(tmp_path / "run", "latest")
        best = evaluate_run(tmp_path / "run", "best")
        exported = parameters(load_network(export_run(tmp_path / "run", tmp_path / "export", "latest")))
    assert latest["validation"] == pytest.approx(last, rel=1e-6)
    assert (best["validation"], best["test"]) == pytest.approx(values, rel=1e-6)
    state = saved(step(tmp_path / "run", 2))
    assert same(exported, named(state, "center" if weights == "center" else "weight")) == []


@pytest.mark.parametrize("how", ["fsdp", pytest.param("zero 1", marks=SLOW), "zero 3"])
def test_looking_and_saving_change_no_weight(pool: Pool, tmp_path: Path, how: str) -> None:
    same_keys = {**KEYS, **RESET, "model.dropout": 0.5, "train.max_batches": 3, "parallel": PARALLEL[how]}
    rarely = {**same_keys, "checkpoint.every_batches": 100, "evaluate.every_batches": 100, "logging.every_batches": 100}
    often = {**same_keys, "evaluate.every_batches": 1, "logging.every_batches": 1}
    runs = [pool.run(train, tiny(tmp_path / name, keys)) for name, keys in [("rarely", rarely), ("often", often)]]
    for one, other in zip(*runs, strict=True):
        assert one.batch == other.batch == 3
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert same_bits(one.random, other.random)
