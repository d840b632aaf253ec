"""Whole sharded runs: several workers, each with a part of the model, train what one process trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, same_bits, tiny, train
from tests.sharded.helpers import ADAM, CLASSES, PARALLEL, SHARDED, assert_close, ended, folder_of, records, step

CASES: dict[str, dict[str, Any]] = {
    "fptt": {},
    "clipped": {"train.max_norm": 0.02},
    "clipped gradient": {"train.max_norm": 0.02, "fptt.clip": "gradient"},
    "prox": {"fptt.update": "prox", "optimizer.momentum": 0.9},
    "algorithm2": {"fptt.update": "algorithm2"},
    "resets": {"fptt.reset_weights": True, "fptt.reset_dual": True, "schedule": {"name": "cosine"}},
    "alpha schedule": {"fptt.schedule.name": "linear"},
    "micro": {"train.micro_batch_size": 1},
    "adam": {"optimizer": ADAM},
    "adam clipped preconditioned": {"optimizer": ADAM, "fptt.metric": "preconditioned", "train.max_norm": 0.02},
    "online": {"algorithm": "online"},
    "tbptt": {"algorithm": "tbptt"},
    "tbptt micro clipped": {"algorithm": "tbptt", "train.micro_batch_size": 2, "train.max_norm": 0.02},
    "bptt_aux": {"algorithm": "bptt_aux"},
    "bptt": {"algorithm": "bptt"},
    "two layers": {"model.layers": 2, "model.hidden": 5, "train.max_norm": 0.02},
    "uneven": {"train.batch_size": 9, "train.max_norm": 0.02},
    "odd shapes": {"model.hidden": 7, "train.batch_size": 9, "train.max_norm": 0.02},
}
ON_FOUR = ["clipped", "adam clipped preconditioned", "tbptt micro clipped"]  # of the other cases some: slow
SLOW_ON_FOUR = ["resets", "bptt", "two layers", "uneven", "algorithm2"]


def fits(how: str, case: str) -> bool:
    """DeepSpeed gives one gradient an update."""
    return case != "algorithm2" or how == "fsdp"


def marks(how: str, case: str) -> list[pytest.MarkDecorator]:
    """Stages 1 and 2 differ little from 3: all their cases are for the long run."""
    return [] if how in ("fsdp", "zero 3") or case in ON_FOUR else [pytest.mark.slow]


RUNS = pytest.mark.parametrize(
    ("how", "case", "world"),
    [
        *(pytest.param(how, case, 3 if case == "odd shapes" else 2, marks=marks(how, case))
          for case in CASES for how in SHARDED if fits(how, case)),
        *((how, case, 4) for how, case in zip(["fsdp", "zero 2", "zero 3"], ON_FOUR, strict=True)),
        *(pytest.param(how, case, 4, marks=pytest.mark.slow) for case in ON_FOUR[:2] for how in ("fsdp", "zero 1")
          if (how, case) != ("fsdp", ON_FOUR[0])),
        *(pytest.param(how, case, 4, marks=pytest.mark.slow) for case in SLOW_ON_FOUR for how in ("fsdp", "zero 3")
          if fits(how, case)),
    ],
)  # fmt: skip
Train = Callable[[str, str, int], list[Outcome]]


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case on so many workers, once."""
    done: dict[tuple[str, str, int], list[Outcome]] = {}

    def run(how: str, case: str, world: int) -> list[Outcome]:
        if (how, case, world) not in done:
            folder = tmp_path_factory.mktemp(f"{how}-{case}-{world}".replace(" ", "-")) / "run"
            config = tiny(folder, {**CASES[case], "parallel": PARALLEL[how]})
            done[how, case, world] = pool.run(train, config, world=world)
        return done[how, case, world]

    return run


@RUNS
def test_workers_train_what_one_process_trains(trained: Train, how: str, case: str, world: int) -> None:
    single, workers = trained("single", case, 1), trained(how, case, world)
    assert [worker.strategy for worker in workers] == [CLASSES[how]] * world
    assert [worker.replicated for worker in workers] == [False] * world
    assert [worker.batch for worker in workers] == [10] * world
    # Adam divides by the root of its moments: where a gradient is near zero, rounding decides about its direction.
    rtol, atol = (1e-3, 2e-5) if "adam" in case else (1e-4, 1e-6)
    assert_close(ended(workers), ended(single), rtol=rtol, atol=atol)


@RUNS
def test_evaluations_are_equal_on_all_workers_and_the_single_process(
    trained: Train, how: str, case: str, world: int
) -> None:
    [single], workers = trained("single", case, 1), trained(how, case, world)
    values = workers[0].values
    assert values is not None
    assert [worker.values for worker in workers] == [values] * world
    assert values == pytest.approx(single.values, abs=2e-5 if "adam" in case else 1e-6)


@RUNS
def test_telemetry_says_what_one_process_says(trained: Train, how: str, case: str, world: int) -> None:
    """Losses are means over the workers, norms are those of the whole."""
    mine, theirs = records(trained(how, case, world)), records(trained("single", case, 1))
    assert len(mine) == len(theirs) == 10
    rel = 2e-3 if "adam" in case else 2e-4
    for one, other in zip(mine, theirs, strict=True):
        for key in ("loss", "window_losses", "gradient_norm", "force_ratio", "center_distance", "dual_norm"):
            assert one[key] == pytest.approx(other[key], rel=rel, abs=1e-6), key
        assert (one["lr"], one["alpha"], one["batch"]) == (other["lr"], other["alpha"], other["batch"])


@pytest.mark.parametrize("case", CASES)
def test_the_cases_test_something(trained: Train, case: str) -> None:
    """Weights move far beyond the tolerance above, W̄ is not W, and a clip that is on changes every batch's update."""
    [single] = trained("single", case, 1)
    distance = max(float((single.weights[name] - single.start[name]).abs().max()) for name in single.start)
    assert distance > 5e-3
    lines = records([single])
    assert len(lines) == 10
    if case not in ("online", "tbptt", "tbptt micro clipped", "bptt_aux", "bptt"):
        assert max(line["center_distance"] for line in lines) > 1e-3
        assert max(line["dual_norm"] for line in lines) > 1e-3
    if "train.max_norm" in CASES[case]:
        assert min(line["gradient_norm"] for line in lines) > CASES[case]["train.max_norm"]
    if case == "alpha schedule":
        assert len({line["alpha"] for line in lines}) == 10


def held(outcomes: list[Outcome], rank: int) -> dict[str, int]:
    """How many elements of each parameter a worker has written."""
    pieces = json.loads((step(folder_of(outcomes), 10) / f"rank/{rank}/pieces.json").read_text())
    return {name: stop - start for name, (start, stop) in pieces.items()}


@pytest.mark.parametrize("how", SHARDED)
def test_each_worker_holds_its_part_alone(trained: Train, how: str) -> None:
    """A bias of one element is somebody's, and nobody else's; the others have more of the rest."""
    workers = trained(how, "fptt", 2)
    counts = [held(workers, rank) for rank in range(2)]
    assert sorted(count.get("readout.bias", 0) for count in counts) == [0, 1]
    whole = sum(tensor.numel() for name, tensor in ended(workers).items() if name.endswith("/weight"))
    sizes = [sum(count.values()) for count in counts]
    assert sum(sizes) == whole
    assert max(sizes) < 0.6 * whole
    for worker, size in zip(workers, sizes, strict=True):
        assert sum(tensor.numel() for tensor in worker.weights.values()) == size
        slow = [t for name, t in worker.optimizer.items() if name.endswith(("/center", "/scaled_dual"))]
        assert sum(tensor.numel() for tensor in slow) == 2 * size


@pytest.mark.parametrize("how", SHARDED)
def test_odd_shapes_are_odd(trained: Train, how: str) -> None:
    """28 rows, or 288 elements, over three workers."""
    workers = trained(how, "odd shapes", 3)
    parts = [held(workers, rank).get("recurrent.weight_hh_l0", 0) for rank in range(3)]
    assert sum(parts) == 28 * 7
    assert len(set(parts)) > 1 or how == "zero 3"


def padding(environment: LaunchEnvironment, config: Config) -> Tensor:
    """What a worker's partition holds beside the parameters, where memory was not zero before."""
    old = [torch.full((size,), float("nan")) for size in range(1, 200) for _ in range(5)]
    del old
    pieces = open_trainer(environment, config).strategy.pieces()
    beside = torch.ones(pieces[0].tensor.numel(), dtype=torch.bool)
    for piece in pieces:
        beside[piece.at] = False
    return pieces[0].tensor.detach()[beside]


@pytest.mark.parametrize("how", ["zero 1", "zero 2", "zero 3"])
def test_padding_is_zero(pool: Pool, tmp_path: Path, how: str) -> None:
    """The norm that clips goes over it."""
    beside = pool.run(padding, tiny(tmp_path / "run", {"parallel": PARALLEL[how], "model.hidden": 7}), world=3)
    assert sum(tensor.numel() for tensor in beside) > 0
    for tensor in beside:
        assert not tensor.any()


DROPOUT = {"model.layers": 2, "model.dropout": 0.5, "schedule": {"name": "cosine"}, "fptt.reset_dual": True}


@pytest.fixture(scope="module")
def dropped(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """With averaged gradients, where each worker drops by its own random stream."""
    folder = tmp_path_factory.mktemp("dropout") / "run"
    return pool.run(train, tiny(folder, {**DROPOUT, "parallel": PARALLEL["gradient"]}))


@pytest.mark.parametrize("how", SHARDED)
def test_dropout_draws_what_it_draws_with_averaged_gradients(
    pool: Pool, tmp_path: Path, dropped: list[Outcome], how: str
) -> None:
    workers = pool.run(train, tiny(tmp_path / "run", {**DROPOUT, "parallel": PARALLEL[how]}))
    assert_close(ended(workers), ended(dropped), rtol=1e-4, atol=1e-6)
    for worker, other in zip(workers, dropped, strict=True):
        assert same_bits(worker.random, other.random)
        assert worker.values == pytest.approx(other.values, abs=1e-6)
    assert not same_bits(workers[0].random, workers[1].random)
