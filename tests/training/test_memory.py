"""What is predicted of a process's memory is what its live tensors hold."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.tools import memory_model as memory
from fptt_dist.training.tools.dry_run import dry_run, held_bytes, memory_inputs
from fptt_dist.training.trainer import Trainer
from tests.parallel.pool import Pool
from tests.training.helpers import tiny

CPU = torch.device("cpu")
SMALL = 4096  # bytes of losses, flags and counters, and of what the task keeps


@contextmanager
def earlier_objects_hidden() -> Iterator[None]:
    """Hide from `storages` the objects that exist already, modules above all."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def storages() -> dict[int, int]:
    """Bytes of every new tensor's storage that Python knows, by address."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.device.type == "cpu" and each.layout == torch.strided:
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None and type(tensor) in (Tensor, torch.nn.Parameter):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def on_worker(
    environment: LaunchEnvironment, config: Config, machines: int
) -> tuple[dict[str, int], int, list[list[int]]]:
    """What a worker counts after a batch: by the optimizer's state, and in all; and the parameters' shapes."""
    inside = environment.world // machines
    node, local_rank = divmod(environment.rank, inside)
    place = replace(environment, local_rank=local_rank, local_world=inside, node=node, nodes=machines)
    with earlier_objects_hidden():
        trainer = Trainer(RunDirectory(config), place, CPU)
        batch = trainer.task.train_batch(0, 0, config.train.batch_size, trainer.share)
        with trainer.engine.placement.collective_errors():
            trainer.loop.run(batch)
            trainer.engine.sync.now()
        del batch
        after = sum(storages().values())
    names = [name for name, _ in trainer.network.named_parameters()]
    return held_bytes(trainer), after, [trainer.shapes[name] for name in names]


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "data_parallel": ("data_parallel", {"parallel": {"strategy": "data_parallel"}}, 1),
    "consensus": ("consensus", {"parallel": {"strategy": "consensus"}}, 1),
    "H = 1": ("consensus", {"parallel": {"strategy": "consensus", "sync_every": 1}}, 1),
    "center": ("consensus", {"parallel": {"strategy": "consensus", "weight_sync": "center"}}, 1),
    "half": ("consensus", {"parallel": {"strategy": "consensus", "sync_dtype": "bf16"}}, 1),
    "duals": ("consensus", {"parallel": {"strategy": "consensus", "dual": "local"}}, 1),
    "bptt": ("consensus", {"parallel": {"strategy": "consensus"}, "algorithm": "bptt"}, 1),
    "machines": ("hierarchical", {"parallel": {"strategy": "hierarchical"}}, 2),
}


def config_of(case: dict[str, Any], run: Path) -> Config:
    return tiny(run, {"model.hidden": 65, "model.layers": 2, "fptt.metric": "euclidean", **case})


def test_what_is_held_is_what_was_predicted(subtests: pytest.Subtests, pool: Pool, tmp_path: Path) -> None:
    for case in CASES:
        with subtests.test(case=case):
            strategy, keys, machines = CASES[case]
            config = config_of(keys, tmp_path / "run")
            for rows, counted, shapes in pool.run(on_worker, config, machines, world=2 * machines):
                found = memory.predict(memory_inputs(config, shapes, CPU), strategy, inside=2)
                assert {name: found.held[name] for name in rows} == rows
                assert found.resident - SMALL < counted < found.resident + SMALL


FSDP, ZERO, BF16 = {"strategy": "fsdp"}, {"strategy": "deepspeed"}, {"train.precision": "bf16"}
SHARDED: dict[str, tuple[dict[str, Any], int, tuple[float, float, float]]] = {
    # what a worker of two holds, in copies of the model: weights, master weights, state of the base optimizer
    "fsdp": ({"parallel": FSDP}, 1, (1 / 2, 0, 2 / 2)),
    "fsdp sgd": ({"parallel": FSDP, "optimizer.name": "sgd"}, 1, (1 / 2, 0, 0)),
    "fsdp bf16": ({"parallel": FSDP, **BF16}, 1, (1 / 2, 0, 2 / 2)),
    "zero 1": ({"parallel": {**ZERO, "zero_stage": 1}}, 1, (1, 1 / 2, 2 / 2)),
    "zero 2": ({"parallel": {**ZERO, "zero_stage": 2}}, 1, (1, 1 / 2, 2 / 2)),
    "zero 3": ({"parallel": {**ZERO, "zero_stage": 3}}, 1, (1 / 2, 1 / 2, 2 / 2)),
    "zero 1 bf16": ({"parallel": {**ZERO, "zero_stage": 1}, **BF16}, 1, (1 / 2, 1 / 2, 2 / 2)),
    "zero 2 bf16": ({"parallel": {**ZERO, "zero_stage": 2}, **BF16}, 1, (1 / 2, 1 / 2, 2 / 2)),
    "zero 3 bf16": ({"parallel": {**ZERO, "zero_stage": 3}, **BF16}, 1, (1 / 4, 1 / 2, 2 / 2)),
    "machines fsdp": ({"parallel": {"strategy": "hierarchical", "intra_node": "fsdp"}}, 2, (1 / 2, 0, 2 / 2)),
}


@pytest.mark.slow
def test_what_sharded_strategies_hold(subtests: pytest.Subtests, pool: Pool, tmp_path: Path) -> None:
    """W̄ and u are sharded too; the rest is padding, and what does not divide by two."""
    for case, (keys, machines, (weights, master, moments)) in SHARDED.items():
        with subtests.test(case=case):
            config = config_of(keys, tmp_path / "run")
            for rows, _, shapes in pool.run(on_worker, config, machines, world=2 * machines):
                whole = 4 * sum(map(math.prod, shapes))
                expected = {memory.WEIGHTS: weights, memory.MASTER: master, memory.MOMENTS: moments, memory.SLOW: 2 / 2}
                found = {name: size / whole for name, size in rows.items()}
                assert found == pytest.approx({name: expected[name] for name in found}, abs=0.01)
                assert (memory.MASTER in found) == (master > 0)


def test_one_process_holds_everything(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"model.hidden": 65})
    rows, counted, shapes = on_worker(LaunchEnvironment(), config, 1)
    found = memory.predict(memory_inputs(config, shapes, CPU), "single")
    assert {name: found.held[name] for name in rows} == rows
    assert found.resident - SMALL < counted < found.resident + SMALL


TENSORS = ((4, 3), (5,))  # 17 numbers


def test_the_parts_by_hand() -> None:
    inputs = memory.MemoryInputs(TENSORS, moments=1, steps=False, temporaries=3)
    whole = memory.predict(inputs, "single")
    assert whole.resident == 4 * 17 * (1 + 1 + 2)
    assert whole.peak() == whole.resident + 4 * 17 * (1 + 3)
    assert whole.peak(10**6) == whole.resident + 4 * (17 + 2 * 17) + 10**6  # a layer's weights, packed twice


def test_a_strategy_must_be_known() -> None:
    with pytest.raises(ValueError, match="strategy='fsdp'"):
        memory.predict(memory.MemoryInputs(TENSORS), "fsdp")


def tried(environment: LaunchEnvironment, config: Config) -> tuple[dict[str, int], dict[str, int], int, list[str]]:
    """What a dry run says on a worker."""
    found = dry_run(Trainer(RunDirectory(config), environment, CPU))
    return found.memory, found.predicted, found.peak, found.lines()


def test_a_dry_run_counts_and_predicts(subtests: pytest.Subtests, pool: Pool, tmp_path: Path) -> None:
    for case in ("data_parallel", "consensus"):
        with subtests.test(case=case):
            config = tiny(tmp_path / "run", {"model.hidden": 65, **CASES[case][1]})
            for found, predicted, peak, lines in pool.run(tried, config):
                assert predicted == {name: found[name] for name in predicted}
                assert predicted.keys() == {memory.WEIGHTS, memory.MOMENTS, memory.SLOW}
                assert found["activations of one graph"] > 0
                assert peak > sum(predicted.values()) + found["activations of one graph"]
                assert lines[-4].startswith("memory per worker by strategy")
                assert [line.split()[0] for line in lines[-3:-1]] == ["data_parallel", "consensus"]
                assert lines[-5].split("  ")[1] == "peak, predicted"
                assert lines[-1] == "nothing was written"
            assert not (tmp_path / "run").exists()


def test_a_dry_run_predicts_nothing_of_what_is_sharded(subtests: pytest.Subtests, pool: Pool, tmp_path: Path) -> None:
    for case, keys in {
        "fsdp": "parallel.strategy=fsdp",
        "zero 2": "parallel.strategy=deepspeed",
        "zero 3": "parallel.strategy=deepspeed",
    }.items():
        with subtests.test(case=case):
            config = tiny(tmp_path / "run", {"model.hidden": 65, **SHARDED[case][0]})
            for found, predicted, peak, lines in pool.run(tried, config):
                assert (predicted, peak) == ({}, 0)
                held = [memory.WEIGHTS, *[memory.MASTER] * ("zero" in case), memory.MOMENTS, memory.SLOW]
                assert list(found) == [*held, "activations of one graph", "the batch"]
                assert min(found.values()) > 0
                assert f"  memory is not predicted for {keys}" in lines
                assert not [line for line in lines if "sum" in line or "peak," in line]
            assert not (tmp_path / "run").exists()
