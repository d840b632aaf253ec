"""Whole runs: several workers train what one process trains with the same global batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, checkpoint_tensors, open_trainer, records, refusal, same_bits, tiny, train

ADAM = {"name": "adam", "lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "uneven": {"train.batch_size": 9, "model.layers": 2, "model.hidden": 5},
    "clipped gradient prox": {
        "train.max_norm": 0.02,
        "fptt.clip_scope": "gradient",
        "fptt.update_rule": "proximal",
        "optimizer.momentum": 0.9,
        "fptt.schedule.name": "linear",
    },
    "second_gradient": {"fptt.update_rule": "second_gradient"},
    "resets micro": {
        "fptt.reset_weights": True,
        "fptt.reset_dual": True,
        "schedule": {"name": "cosine"},
        "train.micro_batch_size": 1,
    },
    "adam clipped": {"optimizer": ADAM, "fptt.metric": "preconditioned", "train.max_norm": 0.02},
    "tbptt": {"algorithm": "tbptt"},
    "tbptt_accumulated micro clipped": {
        "algorithm": "tbptt_accumulated",
        "train.micro_batch_size": 2,
        "train.max_norm": 0.02,
    },
    "bptt_aux": {"algorithm": "bptt_aux"},
    "bptt": {"algorithm": "bptt", "train.batch_size": 9},
    "five clipped": {"train.batch_size": 5, "train.max_norm": 0.02},
}
STRATEGIES = ("auto", "data_parallel", "consensus", "hierarchical")
BATCHES = 6  # 4 an epoch
Train = Callable[[str, int], list[Outcome]]


def as_one(outcome: Outcome) -> dict[str, Tensor]:
    """Weights and optimizer state under one roof."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case of `CASES` on so many workers, once; 0 workers stand for one with strategy=data_parallel."""
    done: dict[tuple[str, int], list[Outcome]] = {}

    def run(case: str, world: int) -> list[Outcome]:
        if (case, world) not in done:
            strategy = {"parallel.strategy": "single" if world == 1 else "data_parallel"}
            folder = tmp_path_factory.mktemp(f"{case.replace(' ', '-')}-{world}") / "run"
            words = {**CASES[case], **strategy, "train.max_batches": BATCHES}
            done[case, world] = pool.run(train, tiny(folder, words), world=max(1, world))
        return done[case, world]

    return run


@pytest.mark.parametrize("case", ["resets micro", "tbptt_accumulated micro clipped"])
def test_one_worker_of_gradient_is_single_bit_for_bit(trained: Train, case: str) -> None:
    [single], [gradient] = trained(case, 1), trained(case, 0)
    assert (single.engine, gradient.engine) == ("Replicated NoSync", "Replicated GradientSync")
    assert same_bits(gradient.weights, single.weights)
    assert same_bits(gradient.optimizer, single.optimizer)
    assert same_bits(gradient.random, single.random)
    assert gradient.values == single.values


@pytest.mark.parametrize(
    ("case", "world"),
    [
        *((case, 4 if "five" in case else 2) for case in CASES),
        *(
            pytest.param(case, 4, marks=pytest.mark.slow)
            for case in ("uneven", "adam clipped", "tbptt_accumulated micro clipped")
        ),
    ],
)
def test_workers_train_what_one_process_trains(trained: Train, case: str, world: int) -> None:
    """Each weighs as many sequences as it has, in gradients, records and metrics; all end equal."""
    [single], workers = trained(case, 1), trained(case, world)
    check_case(CASES[case], single)
    for worker in workers:
        assert (worker.engine, worker.replicated, worker.batch) == ("Replicated GradientSync", True, BATCHES)
        assert same_bits(worker.weights, workers[0].weights)
        assert same_bits(worker.optimizer, workers[0].optimizer)
        assert worker.values == workers[0].values
    # Adam divides by the root of its moments: where a gradient is near zero, rounding decides about its direction.
    rtol, atol = (1e-3, 2e-5) if "adam" in case else (1e-4, 1e-6)
    for name, expected in as_one(single).items():
        torch.testing.assert_close(
            as_one(workers[0])[name], expected, rtol=rtol, atol=atol, msg=lambda m, n=name: n + m
        )
    assert workers[0].values == pytest.approx(single.values, abs=2e-5 if "adam" in case else 1e-6)
    for mine, theirs in zip(records(workers), records([single]), strict=True):
        for key in ("loss", "window_losses", "gradient_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-3 if "adam" in case else 1e-4), key


def check_case(words: dict[str, Any], single: Outcome) -> None:
    """Weights move far beyond the tolerance, W̄ is not W, and a clip that is on changes every batch's update."""
    assert max(float((single.weights[name] - single.start[name]).abs().max()) for name in single.start) > 5e-3
    lines = records([single])
    assert len(lines) == BATCHES
    if words.get("algorithm", "fptt") == "fptt":
        assert max(line["center_distance"] for line in lines) > 1e-3
        assert max(line["dual_norm"] for line in lines) > 1e-3
    if "train.max_norm" in words:
        assert min(line["gradient_norm"] for line in lines) > words["train.max_norm"]
    if "fptt.schedule.name" in words:
        assert len({line["alpha"] for line in lines}) == BATCHES


def test_a_fixed_set_smaller_than_the_workers(pool: Pool, tmp_path: Path) -> None:
    sizes = {"task.validation": 1, "task.test": 3, "train.max_batches": 1, "parallel.strategy": "data_parallel"}
    [single] = pool.run(train, tiny(tmp_path / "single", sizes), world=1)
    for worker in pool.run(train, tiny(tmp_path / "workers", sizes), world=4):
        assert worker.values == pytest.approx(single.values, abs=1e-6)


@pytest.mark.parametrize(("world", "engine"), [(1, "Replicated NoSync"), (2, "Replicated Consensus")])
def test_auto_is_consensus_of_several(pool: Pool, tmp_path: Path, world: int, engine: str) -> None:
    """With the defaults of strategy=consensus: the shared dual, once a sequence."""
    short = {"train.max_batches": 2, "checkpoint.every_batches": 2}
    auto = pool.run(train, tiny(tmp_path / "auto", {**short, "parallel.strategy": "auto"}), world=world)
    assert [outcome.engine for outcome in auto] == [engine] * world
    assert [outcome.replicated for outcome in auto] == [world == 1] * world
    named = {**short, "parallel.strategy": "single" if world == 1 else "consensus"}
    for one, other in zip(auto, pool.run(train, tiny(tmp_path / "named", named), world=world), strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert one.values == other.values


DROPOUT = {
    "model.layers": 2,
    "model.dropout": 0.5,
    "parallel.strategy": "data_parallel",
    "schedule": {"name": "cosine"},
}


def outputs(environment: LaunchEnvironment, config: Config) -> tuple[Tensor, Tensor]:
    """The model's outputs for one fixed input, with dropout and without."""
    trainer = open_trainer(environment, config)
    x = torch.linspace(0.0, 1.0, 40).view(10, 2, 2)
    with torch.no_grad():
        dropped = trainer.model.train()(x)[0]
        return dropped, trainer.model.eval()(x)[0]


def test_dropout_differs_between_workers(pool: Pool, tmp_path: Path) -> None:
    (one, whole), (other, same) = pool.run(outputs, tiny(tmp_path / "run", DROPOUT))
    assert not torch.equal(one, other)
    assert torch.equal(whole, same)


@pytest.mark.parametrize(("world", "optimizer"), [(2, "adam"), pytest.param(4, "sgd", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(pool: Pool, tmp_path: Path, world: int, optimizer: str) -> None:
    """The last rank alone is asked to stop, at an epoch's end, and all stop one batch later."""
    more = {"optimizer": ADAM, "fptt.metric": "preconditioned"} if optimizer == "adam" else {}
    often = {**DROPOUT, **more, "checkpoint.every_batches": 4, "fptt.reset_dual": True, "fptt.schedule.name": "linear"}
    often["train.max_batches"] = 7
    whole = pool.run(train, tiny(tmp_path / "straight", {**often, "checkpoint.every_batches": 100}), world=world)

    for outcome in pool.run(train, tiny(tmp_path / "broken", often), 4, world - 1, world=world):
        assert outcome.message.startswith("stopped by a signal after batch 5 of 7, saved in ")
        assert outcome.batch == 5
        assert outcome.values is None

    resumed = pool.run(train, tiny(tmp_path / "broken", {**often, "resume": "auto"}), world=world)
    for one, other in zip(whole, resumed, strict=True):
        assert other.batch == 7
        assert same_bits(other.weights, one.weights)
        assert same_bits(other.optimizer, one.optimizer)
        assert same_bits(other.random, one.random)
        assert other.values == one.values
    assert len({outcome.random["torch"].numpy().tobytes() for outcome in resumed}) == world
    there, here = (
        checkpoint_tensors(tmp_path / name / "checkpoints/step-00000007", world) for name in ("straight", "broken")
    )
    for name in there:
        assert same_bits(here[name], there[name])


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"train.batch_size": 9, "data.partition": "fixed", "parallel.strategy": strategy},
            "data.partition=fixed needs equal shares, and train.batch_size=9 is not a multiple of the 2 workers: "
            "type train.batch_size=10, or data.partition=shuffled",
        )
        for strategy in STRATEGIES
    ),
    *(
        (
            {"train.batch_size": 1, "parallel.strategy": strategy},
            "train.batch_size=1 is the global batch, fewer sequences than the 2 workers: type train.batch_size=2",
        )
        for strategy in STRATEGIES
    ),
    (
        {"train.batch_size": 9, "train.micro_batch_size": 3},
        "train.micro_batch_size=3 does not divide each worker's share of the batch, 9 / 2 = 4.5 sequences: "
        "type train.micro_batch_size=null, or a divisor",
    ),
    (
        {"train.micro_batch_size": 2, "parallel.strategy": "data_parallel", "parallel.reduce": "ddp"},
        "train.micro_batch_size=2 does not go with parallel.reduce=ddp, which would send every micro-batch: type "
        "parallel.reduce=flat, or train.micro_batch_size=null",
    ),
    (
        {"train.micro_batch_size": 8},
        "train.micro_batch_size=8 does not divide each worker's share of the batch, 8 / 2 = 4 sequences: "
        "type train.micro_batch_size=null, or a divisor",
    ),
    (
        {"parallel.strategy": "single"},
        "parallel.strategy=single, but 2 workers were started: type parallel.strategy=consensus or "
        "parallel.strategy=data_parallel",
    ),
]


def test_what_does_not_fit_the_workers_is_refused_by_all(pool: Pool, tmp_path: Path) -> None:
    wrong = [
        (overrides, said)
        for row, (overrides, message) in enumerate(REFUSED)
        if (said := pool.run(refusal, tiny(tmp_path / str(row), overrides))) != [message] * 2
    ]
    assert wrong == []
