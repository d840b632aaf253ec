"""What is predicted of a process's memory is what its live tensors hold."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training import memory
from fptt_dist.training.dry_run import dry_run, held_bytes, training_of
from fptt_dist.training.run_folder import RunFolder
from fptt_dist.training.trainer import Trainer
from tests.parallel.pool import Pool
from tests.training.helpers import tiny

CPU = torch.device("cpu")
SMALL = 4096  # bytes of losses, flags and counters, and of what the task keeps


def storages() -> dict[int, int]:
    """Bytes of every tensor's storage that Python knows, by address."""
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
    before = storages()
    trainer = Trainer(RunFolder(config), place, CPU)
    batch = trainer.task.train_batch(0, 0, config.train.batch_size, trainer.share)
    with trainer.strategy.guarding():
        trainer.loop.run(batch)
        trainer.strategy.settle()
    del batch
    after = sum(size for pointer, size in storages().items() if pointer not in before)
    names = [name for name, _ in trainer.network.named_parameters()]
    return held_bytes(trainer), after, [trainer.shapes[name] for name in names]


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "gradient": ("gradient", {"parallel": {"strategy": "gradient"}}, 1),
    "consensus": ("consensus", {"parallel": {"strategy": "consensus"}}, 1),
    "H = 1": ("consensus", {"parallel": {"strategy": "consensus", "every": 1}}, 1),
    "center": ("consensus", {"parallel": {"strategy": "consensus", "weights": "center"}}, 1),
    "half": ("consensus", {"parallel": {"strategy": "consensus", "payload": "bf16"}}, 1),
    "duals": ("consensus", {"parallel": {"strategy": "consensus", "dual": "worker"}}, 1),
    "bptt": ("consensus", {"parallel": {"strategy": "consensus"}, "algorithm": "bptt"}, 1),
    "fsdp": ("fsdp", {"parallel": {"strategy": "fsdp"}}, 1),
    "fsdp sgd": ("fsdp", {"parallel": {"strategy": "fsdp"}, "optimizer.name": "sgd"}, 1),
    "fsdp bf16": ("fsdp", {"parallel": {"strategy": "fsdp"}, "train.precision": "bf16"}, 1),
    **{
        f"zero {stage}": (f"deepspeed {stage}", {"parallel": {"strategy": "deepspeed", "stage": stage}}, 1)
        for stage in (1, 2, 3)
    },
    **{
        f"zero {stage} bf16": (
            f"deepspeed {stage}",
            {"parallel": {"strategy": "deepspeed", "stage": stage}, "train.precision": "bf16"},
            1,
        )
        for stage in (1, 2, 3)
    },
    "zero rmsprop": (
        "deepspeed 2",
        {
            "parallel": {"strategy": "deepspeed", "stage": 2},
            "optimizer.name": "rmsprop",
            "optimizer.momentum": 0.9,
        },
        1,
    ),
    "machines": ("hierarchical", {"parallel": {"strategy": "hierarchical"}}, 2),
    "machines fsdp": ("hierarchical fsdp", {"parallel": {"strategy": "hierarchical", "inside": "fsdp"}}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_held_is_what_was_predicted(case: str, pool: Pool, tmp_path: Path) -> None:
    strategy, keys, machines = CASES[case]
    config = tiny(tmp_path / "run", {"model.hidden": 65, "model.layers": 2, "fptt.metric": "euclidean", **keys})
    world = 2 * machines
    for rank, (rows, counted, shapes) in enumerate(pool.run(on_worker, config, machines, world=world)):
        training = training_of(config, shapes, CPU)
        found = memory.predict(training, strategy, world, rank=rank, inside=2)
        assert {name: found.held[name] for name in rows} == rows
        assert found.resident - SMALL < counted < found.resident + SMALL


def test_one_process_holds_everything(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"model.hidden": 65})
    rows, counted, shapes = on_worker(LaunchEnvironment(), config, 1)
    found = memory.predict(training_of(config, shapes, CPU), "single", 1)
    assert {name: found.held[name] for name in rows} == rows
    assert found.resident - SMALL < counted < found.resident + SMALL


TENSORS = ((4, 3), (5,))  # 17 numbers


def test_the_parts_by_hand() -> None:
    training = memory.Training(TENSORS, moments=1, steps=False, temporaries=3)
    whole = memory.predict(training, "single", 1)
    assert whole.resident == 4 * 17 * (1 + 1 + 2)
    assert whole.peak() == whole.resident + 4 * 17 * (1 + 3)
    assert whole.peak(10**6) == whole.resident + 4 * (17 + 2 * 17) + 10**6  # a layer's weights, packed twice
    fsdp = memory.predict(training, "fsdp", 2, rank=1)  # rows 2 and 3, and numbers 3 and 4 of 5
    assert fsdp.held == {
        memory.WEIGHTS: 4 * (6 + 3),
        memory.MASTER: 0,
        memory.MOMENTS: 4 * (6 + 2),
        memory.SLOW: 4 * 2 * (6 + 2),
        memory.BUFFERS: 0,
    }
    flat = memory.predict(training, "deepspeed 2", 2)  # 17 are padded to 20
    assert (flat.held[memory.WEIGHTS], flat.held[memory.MASTER], flat.held[memory.SLOW]) == (4 * 20, 4 * 10, 4 * 20)
    split = memory.predict(training, "deepspeed 3", 2)  # 12 / 2, and 5 / 2 rounded up
    assert (split.held[memory.WEIGHTS], split.held[memory.MASTER]) == (4 * 9, 4 * 9)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3"])
def test_more_workers_hold_less_each(strategy: str) -> None:
    training = memory.Training(((512, 128), (512,), (10, 128)))
    sizes = [memory.predict(training, strategy, world).resident for world in (2, 4, 8, 64)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_a_strategy_must_be_known() -> None:
    with pytest.raises(ValueError, match="strategy='zero'"):
        memory.predict(memory.Training(TENSORS), "zero", 2)


def tried(environment: LaunchEnvironment, config: Config) -> tuple[dict[str, int], dict[str, int], int, list[str]]:
    """What a dry run says on a worker."""
    found = dry_run(Trainer(RunFolder(config), environment, CPU))
    return found.memory, found.predicted, found.peak, found.lines()


@pytest.mark.parametrize("case", ["gradient", "consensus", "fsdp", "zero 1", "zero 2", "zero 3"])
def test_a_dry_run_counts_and_predicts(case: str, pool: Pool, tmp_path: Path) -> None:
    strategy, keys, _ = CASES[case]
    for found, predicted, peak, lines in pool.run(tried, tiny(tmp_path / "run", {"model.hidden": 65, **keys})):
        assert predicted == {name: found[name] for name in predicted}
        assert predicted.keys() >= {memory.WEIGHTS, memory.MOMENTS, memory.SLOW}
        assert (memory.MASTER in predicted) == strategy.startswith("deepspeed")
        assert found["activations of one graph"] > 0
        assert peak > sum(predicted.values()) + found["activations of one graph"]
        assert any(line.startswith("memory a process by strategy, 2 processes") for line in lines)
        assert [line.split("MiB")[0].split()[:-1] for line in lines[-7:-1]] == [
            each.split() for each in memory.STRATEGIES[1:]
        ]
        assert lines[-1] == "nothing was written"
    assert not (tmp_path / "run").exists()
