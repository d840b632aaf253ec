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
from tests.parallel.test_training import BATCHES, check_case
from tests.parallel.test_training import CASES as WHOLE_COPIES
from tests.sharded.helpers import CLASSES, PARALLEL, SHARDED, assert_close, ended, folder_of, records, step

CASES: dict[str, dict[str, Any]] = {
    **{case: words for case, words in WHOLE_COPIES.items() if case != "five clipped"},
    "odd shapes": {"model.hidden": 7, "train.batch_size": 9, "train.max_norm": 0.02},
}
# Pairwise: each case somewhere, and each engine with clipping, micro-batches, moments, resets and unequal shares.
QUICK: dict[str, list[str]] = {
    "fsdp": [
        "uneven",
        "clipped gradient prox",
        "second_gradient",
        "resets micro",
        "adam clipped",
        "bptt",
        "odd shapes",
    ],
    "zero 1": ["clipped gradient prox", "resets micro"],
    "zero 2": ["tbptt_accumulated micro clipped", "tbptt", "adam clipped"],
    "zero 3": ["uneven", "resets micro", "adam clipped", "tbptt_accumulated micro clipped", "bptt_aux", "odd shapes"],
}
MORE: dict[str, list[str]] = {
    "fsdp": ["tbptt_accumulated micro clipped", "bptt_aux", "tbptt"],
    "zero 1": ["uneven", "adam clipped", "tbptt_accumulated micro clipped", "odd shapes"],
    "zero 2": ["clipped gradient prox", "resets micro", "bptt", "odd shapes"],
    "zero 3": ["clipped gradient prox", "bptt"],
}
ON_FOUR = [("fsdp", "clipped gradient prox"), ("zero 1", "adam clipped"), ("zero 3", "tbptt_accumulated micro clipped")]
Train = Callable[[str, str, int], list[Outcome]]


def workers_of(case: str) -> int:
    return 3 if case == "odd shapes" else 2


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case on so many workers, once."""
    done: dict[tuple[str, str, int], list[Outcome]] = {}

    def run(how: str, case: str, world: int) -> list[Outcome]:
        if (how, case, world) not in done:
            folder = tmp_path_factory.mktemp(f"{how}-{case}-{world}".replace(" ", "-")) / "run"
            config = tiny(folder, {**CASES[case], "parallel": PARALLEL[how], "train.max_batches": BATCHES})
            done[how, case, world] = pool.run(train, config, world=world)
        return done[how, case, world]

    return run


@pytest.mark.parametrize(
    ("how", "case", "world"),
    [
        *((how, case, workers_of(case)) for how in QUICK for case in QUICK[how]),
        *(pytest.param(how, case, workers_of(case), marks=pytest.mark.slow) for how in MORE for case in MORE[how]),
        *(pytest.param(how, case, 4, marks=pytest.mark.slow) for how, case in ON_FOUR),
    ],
)
def test_workers_train_what_one_process_trains(trained: Train, how: str, case: str, world: int) -> None:
    """Weights, metrics and telemetry, where losses are means over the workers and norms are those of the whole."""
    [single], workers = trained("single", case, 1), trained(how, case, world)
    check_case(CASES[case], single)
    for worker in workers:
        assert (worker.engine, worker.replicated, worker.batch) == (CLASSES[how], False, BATCHES)
        assert worker.values == workers[0].values
    # Adam divides by the root of its moments: where a gradient is near zero, rounding decides about its direction.
    rtol, atol, rel = (1e-3, 2e-5, 2e-3) if "adam" in case else (1e-4, 1e-6, 2e-4)
    assert_close(ended(workers, BATCHES), ended([single], BATCHES), rtol=rtol, atol=atol)
    assert workers[0].values == pytest.approx(single.values, abs=2e-5 if "adam" in case else 1e-6)
    for one, other in zip(records(workers), records([single]), strict=True):
        for key in ("loss", "window_losses", "gradient_norm", "regularizer_ratio", "center_distance", "dual_norm"):
            assert one[key] == pytest.approx(other[key], rel=rel, abs=1e-6), key
        assert (one["lr"], one["alpha"], one["batch"]) == (other["lr"], other["alpha"], other["batch"])


def held(outcomes: list[Outcome], rank: int) -> dict[str, int]:
    """How many elements of each parameter a worker has written."""
    pieces = json.loads((step(folder_of(outcomes), BATCHES) / f"rank/{rank}/pieces.json").read_text())
    return {name: stop - start for name, (start, stop) in pieces.items()}


def test_each_worker_holds_its_part_alone(trained: Train) -> None:
    """A bias of one element is somebody's, and nobody else's; the others have more of the rest."""
    for how in SHARDED:
        workers = trained(how, "resets micro", 2)
        counts = [held(workers, rank) for rank in range(2)]
        assert sorted(count.get("readout.bias", 0) for count in counts) == [0, 1], how
        whole = sum(tensor.numel() for name, tensor in ended(workers, BATCHES).items() if name.endswith("/weight"))
        sizes = [sum(count.values()) for count in counts]
        assert sum(sizes) == whole, how
        assert max(sizes) < 0.6 * whole, how
        for worker, size in zip(workers, sizes, strict=True):
            assert sum(tensor.numel() for tensor in worker.weights.values()) == size, how
            slow = [t for name, t in worker.optimizer.items() if name.endswith(("/center", "/scaled_dual"))]
            assert sum(tensor.numel() for tensor in slow) == 2 * size, how


def test_odd_shapes_are_odd(trained: Train) -> None:
    """28 rows, or 288 elements, over three workers."""
    for how in ("fsdp", "zero 3"):
        workers = trained(how, "odd shapes", 3)
        parts = [held(workers, rank).get("recurrent.weight_hh_l0", 0) for rank in range(3)]
        assert sum(parts) == 28 * 7
        assert len(set(parts)) > 1 or how == "zero 3"


def padding(environment: LaunchEnvironment, config: Config) -> Tensor:
    """What a worker's partition holds beside the parameters, where memory was not zero before."""
    old = [torch.full((size,), float("nan")) for size in range(1, 200) for _ in range(5)]
    del old
    pieces = open_trainer(environment, config).engine.placement.shards()
    beside = torch.ones(pieces[0].tensor.numel(), dtype=torch.bool)
    for piece in pieces:
        beside[piece.local_slice] = False
    return pieces[0].tensor.detach()[beside]


def test_padding_is_zero(pool: Pool, tmp_path: Path) -> None:
    """The norm that clips goes over it."""
    for how in ("zero 1", "zero 2", "zero 3"):
        beside = pool.run(padding, tiny(tmp_path / how, {"parallel": PARALLEL[how], "model.hidden": 7}), world=3)
        assert sum(tensor.numel() for tensor in beside) > 0, how
        assert not any(tensor.any() for tensor in beside), how


def test_dropout_draws_what_it_draws_with_averaged_gradients(pool: Pool, tmp_path: Path) -> None:
    """There each worker drops by its own random stream."""
    keys = {"model.layers": 2, "model.dropout": 0.5, "schedule": {"name": "cosine"}, "fptt.reset_dual": True}
    expected, *others = (
        pool.run(train, tiny(tmp_path / how, {**keys, "train.max_batches": BATCHES, "parallel": PARALLEL[how]}))
        for how in ("gradient", *SHARDED)
    )
    for workers in others:
        assert_close(ended(workers, BATCHES), ended(expected, BATCHES), rtol=1e-4, atol=1e-6)
        for worker, other in zip(workers, expected, strict=True):
            assert same_bits(worker.random, other.random)
            assert worker.values == pytest.approx(other.values, abs=1e-6)
        assert not same_bits(workers[0].random, workers[1].random)
