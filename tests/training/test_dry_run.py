"""A dry run builds all, says what it takes, and writes nothing."""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.config import Config, ConfigError, load
from fptt_dist.config.loading.loader import packaged
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.run import try_out
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.tools.dry_run import dry_run
from fptt_dist.training.trainer import Trainer
from tests.parallel.pool import Pool
from tests.training.helpers import MEMORY, tiny

APPEND = {"fptt.windows": None, "fptt.window_length": 5, "fptt.window_remainder": "append"}


def parameters(hidden: int) -> int:
    return 4 * hidden * (2 + hidden) + 8 * hidden + hidden + 1


@pytest.mark.parametrize(
    ("optimizer", "moments", "steps"),
    [
        ({"optimizer.name": "adam"}, 2, True),
        ({"optimizer.name": "adamw", "optimizer.amsgrad": True}, 3, True),
        ({"optimizer.name": "rmsprop"}, 1, True),
        ({"optimizer.name": "rmsprop", "optimizer.momentum": 0.9}, 2, True),
        ({"optimizer.name": "sgd"}, 0, False),
        ({"optimizer.name": "sgd", "optimizer.momentum": 0.9}, 1, False),
    ],
)
def test_memory_of_the_state_is_exact(optimizer: dict[str, Any], moments: int, steps: bool, tmp_path: Path) -> None:
    tried = try_out(tiny(tmp_path / "run", {**optimizer, "model.hidden": 8}))
    count = parameters(8)
    assert tried.parameters == {"total": count, "recurrent": count - 9}
    assert tried.memory["weights"] == tried.memory["gradients"] == 4 * count
    assert tried.memory["W̄ and u"] == 2 * 4 * count
    assert tried.memory["state of the base optimizer"] == moments * 4 * count + (6 * 4 if steps else 0)
    assert tried.memory["the batch"] == 12 * 4 * 2 * 4
    assert not (tmp_path / "run").exists()


def test_shapes_and_windows(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for overrides, windows, first, updates in (
        ({}, [(0, 4), (4, 8), (8, 12)], 4, 3),
        ({"fptt.windows": 5}, [(0, 2), (2, 4), (4, 7), (7, 9), (9, 12)], 2, 5),
        ({"fptt.windows": None, "fptt.window_length": 5}, [(0, 4), (4, 8), (8, 12)], 4, 3),
        (APPEND, [(0, 5), (5, 10), (10, 12)], 5, 3),
        ({"algorithm": "bptt"}, [(0, 12)], 12, 1),
        ({"algorithm": "bptt_aux"}, [(0, 4), (4, 8), (8, 12)], 12, 1),
        ({"algorithm": "tbptt_accumulated"}, [(0, 4), (4, 8), (8, 12)], 4, 1),
        ({"fptt.update_rule": "second_gradient"}, [(0, 4), (4, 8), (8, 12)], 4, 3),
        ({"train.micro_batch_size": 2}, [(0, 4), (4, 8), (8, 12)], 4, 3),
    ):
        with subtests.test(overrides=overrides, windows=windows, first=first, updates=updates):
            tried = try_out(tiny(tmp_path / "run", overrides))
            part = overrides.get("train.micro_batch_size", 4)
            assert tried.windows == windows
            assert tried.updates_per_batch == updates
            assert list(tried.shapes.values()) == [(12, 4, 2), (first, part, 2), (4, 1), (1, part, 1)]
            assert tried.loss > 0
            assert tried.lines()[-1] == "nothing was written"


def test_nothing_travels_from_one_process(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for strategy in ("single", "data_parallel", "consensus", "hierarchical"):
        with subtests.test(strategy=strategy):
            tried = try_out(tiny(tmp_path / "run", {"parallel.strategy": strategy}))
            assert tried.traffic == []
            assert not [line for line in tried.lines() if "payload" in line or "collective" in line]


def on_worker(environment: LaunchEnvironment, config: Config, machines: int) -> tuple[list[str], list[str]]:
    """The traffic and all lines of a dry run, of a worker among so many machines."""
    inside = environment.world // machines
    node, local_rank = divmod(environment.rank, inside)
    place = replace(environment, local_rank=local_rank, local_world=inside, node=node, nodes=machines)
    tried = dry_run(Trainer(RunDirectory(config), place, torch.device("cpu")))
    return tried.traffic, tried.lines()


# P weights of 6 tensors, one update a window; (what, bytes of each, collectives a batch, bytes a batch)
P, TENSORS = parameters(4), 6
GRADIENTS = 4 * (P + TENSORS + 2)
TRAFFIC: dict[str, tuple[dict[str, Any], int, tuple[str, int, str, float]]] = {
    "flat": ({"strategy": "data_parallel"}, 1, ("the gradients, at every update", GRADIENTS, "3", 3 * GRADIENTS)),
    "ddp": (
        {"strategy": "data_parallel", "reduce": "ddp"},
        1,
        ("the gradients, at every update", 4 * P, "3", 3 * 4 * P),
    ),
    "ddp bf16": (
        {"strategy": "data_parallel", "reduce": "ddp", "comm_hook": "bf16"},
        1,
        ("the gradients, at every update", 2 * P, "3", 3 * 2 * P),
    ),
    "auto": ({}, 1, ("the synchronized tensors, every 3 updates", 4 * (3 * P + 2), "1", 4 * (3 * P + 2))),
    "rarely": (
        {"strategy": "consensus", "sync_every": 12},
        1,
        ("the synchronized tensors, every 12 updates", 4 * (3 * P + 2), "0.25", (3 * P + 2)),
    ),
    "machines": (
        {"strategy": "hierarchical", "dual": "local"},
        2,
        (
            "the synchronized tensors, every 3 updates; inside a node the gradients, at every update",
            6 * (P + 3),  # half of the numbers across the machines, all of them inside
            "5",
            6 * (P + 3) + 3 * GRADIENTS,
        ),
    ),
}


def test_what_travels_between_processes(subtests: pytest.Subtests, pool: Pool, tmp_path: Path) -> None:
    for case in TRAFFIC:
        with subtests.test(case=case):
            parallel, machines, (what, each, often, size) = TRAFFIC[case]
            config = tiny(tmp_path / "run", {"parallel": parallel})
            answers = pool.run(on_worker, config, machines, world=2 * machines)
            expected = [
                f"payload: {what}, {each / 2**20:.3f} MiB each",
                f"  per batch of sequences: {often} collectives, {size / 2**20:.3f} MiB per worker",
                f"  data-parallel BPTT:     1 collective, {4 * P / 2**20:.3f} MiB per worker",
            ]
            for traffic, lines in answers:
                assert traffic == expected
                place = lines.index(expected[0])
                assert lines[place : place + 4] == [*expected, "memory per worker, estimated"]
                assert lines[-1] == "nothing was written"
            assert not (tmp_path / "run").exists()


def test_activations_grow_with_the_graph(tmp_path: Path) -> None:
    def activations(**more: Any) -> int:
        overrides = {"task.length": 96, **more}
        return try_out(tiny(tmp_path / "run", overrides)).memory["activations of one graph"]

    whole = activations(algorithm="bptt")
    assert whole > activations() * 2.5
    assert whole < activations() * 3.5


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is more than the 20 training sequences"):
        try_out(tiny(tmp_path / "run", {"train.batch_size": 24}))


def write_images(folder: Path, name: str, count: int) -> None:
    """A data set of grey images in the files of MNIST."""
    folder.mkdir(exist_ok=True)
    images, labels = (2051).to_bytes(4, "big"), (2049).to_bytes(4, "big")
    size = count.to_bytes(4, "big")
    side = (28).to_bytes(4, "big")
    (folder / f"{name}-images-idx3-ubyte").write_bytes(images + size + side + side + bytes([127]) * (count * 28 * 28))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels + size + bytes(n % 10 for n in range(count)))


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        write_images(Path(folder) / "mnist", "train", 5200)
        write_images(Path(folder) / "mnist", "t10k", 10)
        yield Path(folder)


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_configuration_runs(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = try_out(load(name, {"device": "cpu", "data.root": str(data)}))
    assert tried.parameters["total"] > tried.parameters["recurrent"] > 0
    assert math.isfinite(tried.loss)
    assert list(tmp_path.iterdir()) == []
