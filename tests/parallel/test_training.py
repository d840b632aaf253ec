"""Whole runs: several workers train what one process trains with the same global batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training import snapshot
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, checkpoint_tensors, open_trainer, refusal, same_bits, tiny, train

ADAM = {"name": "adam", "lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "fptt": {},
    "fptt clipped": {"train.max_norm": 0.02},
    "fptt clipped gradient": {"train.max_norm": 0.02, "fptt.clip": "gradient"},
    "fptt prox": {"fptt.update": "prox", "optimizer.momentum": 0.9},
    "fptt algorithm2": {"fptt.update": "algorithm2"},
    "fptt resets": {"fptt.reset_weights": True, "fptt.reset_dual": True, "schedule": {"name": "cosine"}},
    "fptt micro": {"train.micro_batch_size": 1},
    "fptt adam": {"optimizer": ADAM},
    "fptt adam clipped preconditioned": {"optimizer": ADAM, "fptt.metric": "preconditioned", "train.max_norm": 0.02},
    "online": {"algorithm": "online"},
    "tbptt": {"algorithm": "tbptt"},
    "tbptt micro clipped": {"algorithm": "tbptt", "train.micro_batch_size": 2, "train.max_norm": 0.02},
    "bptt_aux": {"algorithm": "bptt_aux"},
    "bptt": {"algorithm": "bptt"},
    "bptt adam": {"algorithm": "bptt", "optimizer": ADAM},
}
STRATEGIES = ("auto", "gradient", "consensus", "hierarchical")
ON_FOUR = ("fptt clipped", "fptt adam clipped preconditioned", "tbptt micro clipped")  # the other cases: slow
WORKERS = pytest.mark.parametrize(
    ("case", "world"),
    [(case, 2) for case in CASES]
    + [pytest.param(case, 4, marks=[] if case in ON_FOUR else pytest.mark.slow) for case in CASES],
)
Train = Callable[[str, int], list[Outcome]]


def folder_of(outcomes: list[Outcome]) -> Path:
    """The run's folder, once its workers have agreed on where it is."""
    [path] = {outcome.folder for outcome in outcomes}
    return path


def as_one(outcome: Outcome) -> dict[str, Tensor]:
    """Weights and optimizer state under one roof."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case of `CASES` on so many workers, once; 0 workers stand for one with strategy=gradient."""
    done: dict[tuple[str, int], list[Outcome]] = {}

    def run(case: str, world: int) -> list[Outcome]:
        if (case, world) not in done:
            strategy = {"parallel.strategy": "single" if world == 1 else "gradient"}
            folder = tmp_path_factory.mktemp(f"{case.replace(' ', '-')}-{world}") / "run"
            done[case, world] = pool.run(train, tiny(folder, {**CASES[case], **strategy}), world=max(1, world))
        return done[case, world]

    return run


@pytest.mark.parametrize("case", CASES)
def test_one_worker_of_gradient_is_single_bit_for_bit(trained: Train, case: str) -> None:
    [single], [gradient] = trained(case, 1), trained(case, 0)
    assert (single.strategy, gradient.strategy) == ("Single", "GradientAveraging")
    assert same_bits(gradient.weights, single.weights)
    assert same_bits(gradient.optimizer, single.optimizer)
    assert same_bits(gradient.random, single.random)
    assert gradient.values == single.values


@WORKERS
def test_workers_train_what_one_process_trains(trained: Train, case: str, world: int) -> None:
    [single], workers = trained(case, 1), trained(case, world)
    assert [worker.strategy for worker in workers] == ["GradientAveraging"] * world
    assert [worker.replicated for worker in workers] == [True] * world
    assert [worker.batch for worker in workers] == [single.batch] * world
    # Adam divides by the root of its moments: where a gradient is near zero, rounding decides about its direction.
    rtol, atol = (1e-3, 2e-5) if "adam" in case else (1e-4, 1e-6)
    for name, expected in as_one(single).items():
        torch.testing.assert_close(
            as_one(workers[0])[name], expected, rtol=rtol, atol=atol, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("case", CASES)
def test_the_cases_test_something(trained: Train, case: str) -> None:
    """Weights move far beyond the tolerance above, and a clip that is on changes every batch's update."""
    [single] = trained(case, 1)
    assert single.batch == 10
    distance = max(float((single.weights[name] - single.start[name]).abs().max()) for name in single.start)
    assert distance > 5e-3
    lines = (folder_of([single]) / "metrics.jsonl").read_text().splitlines()
    norms = [record["gradient_norm"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert len(norms) == 10
    if "clipped" in case:
        assert min(norms) > CASES[case]["train.max_norm"]


@WORKERS
def test_workers_end_equal_bit_for_bit(trained: Train, case: str, world: int) -> None:
    first, *others = trained(case, world)
    for other in others:
        assert same_bits(other.weights, first.weights)
        assert same_bits(other.optimizer, first.optimizer)


@WORKERS
def test_evaluations_are_equal_on_all_workers_and_the_single_process(trained: Train, case: str, world: int) -> None:
    [single], workers = trained(case, 1), trained(case, world)
    values = workers[0].values
    assert values is not None
    assert [worker.values for worker in workers] == [values] * world
    assert values == pytest.approx(single.values, abs=2e-5 if "adam" in case else 1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_a_fixed_set_smaller_than_the_workers(pool: Pool, tmp_path: Path, world: int) -> None:
    sizes = {"task.validation": 1, "task.test": 3, "train.batches": 1, "parallel.strategy": "gradient"}
    [single] = pool.run(train, tiny(tmp_path / "single", sizes), world=1)
    workers = pool.run(train, tiny(tmp_path / "workers", sizes), world=world)
    for worker in workers:
        assert worker.values == pytest.approx(single.values, abs=1e-6)


UNEVEN: list[tuple[dict[str, Any], int]] = [
    ({"train.batch_size": 9}, 2),
    ({"train.batch_size": 7}, 4),
    ({"train.batch_size": 5, "train.max_norm": 0.02}, 4),
    ({"train.batch_size": 9, "algorithm": "bptt"}, 2),
]


@pytest.mark.parametrize(("overrides", "world"), UNEVEN)
def test_a_batch_that_is_no_multiple_of_the_workers(
    pool: Pool, tmp_path: Path, overrides: dict[str, Any], world: int
) -> None:
    """Each worker weighs as many sequences as it has, in gradients, records and metrics."""
    keys = {**overrides, "parallel.strategy": "gradient"}
    [single] = pool.run(train, tiny(tmp_path / "single", keys), world=1)
    workers = pool.run(train, tiny(tmp_path / "workers", keys), world=world)
    for worker in workers:
        assert same_bits(worker.weights, workers[0].weights)
        assert same_bits(worker.optimizer, workers[0].optimizer)
        assert worker.values == pytest.approx(single.values, abs=1e-6)
    for name, expected in as_one(single).items():
        torch.testing.assert_close(as_one(workers[0])[name], expected, rtol=1e-4, atol=1e-6)
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("single", "workers")
    )
    for key in ("loss", "window_losses", "gradient_norm"):
        found, expected = ([line[key] for line in lines if line["kind"] == "train"] for lines in (other, one))
        assert len(found) == 10
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("world", "strategy"), [(1, "Single"), (2, "Consensus"), (4, "Consensus")])
def test_auto_is_consensus_of_several(pool: Pool, tmp_path: Path, world: int, strategy: str) -> None:
    """With the defaults of strategy=consensus: the shared dual, once a sequence."""
    short = {"train.batches": 3, "checkpoint.every": 3}
    auto = pool.run(train, tiny(tmp_path / "auto", {**short, "parallel.strategy": "auto"}), world=world)
    assert [outcome.strategy for outcome in auto] == [strategy] * world
    assert [outcome.replicated for outcome in auto] == [world == 1] * world
    named = {**short, "parallel.strategy": strategy.lower()}
    for one, other in zip(auto, pool.run(train, tiny(tmp_path / "named", named), world=world), strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert one.values == other.values


DROPOUT = {
    "parallel.strategy": "gradient",
    "model.layers": 2,
    "model.dropout": 0.5,
    "train.batches": 11,
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
    answers = pool.run(outputs, tiny(tmp_path / "run", DROPOUT), world=4)
    assert len({dropped.numpy().tobytes() for dropped, _ in answers}) == 4
    assert len({whole.numpy().tobytes() for _, whole in answers}) == 1


def test_dropout_is_repeatable(pool: Pool, tmp_path: Path) -> None:
    runs = [pool.run(train, tiny(tmp_path / name, DROPOUT)) for name in ("one", "two")]
    for one, two in zip(*runs, strict=True):
        assert same_bits(one.weights, two.weights)
        assert same_bits(one.random, two.random)


@pytest.mark.parametrize(
    ("world", "stop_at", "optimizer"),
    [
        (1, 3, "sgd"),
        (2, 4, "adam"),
        (4, 5, "sgd"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 4, "adam"), (2, 3, "sgd"), (2, 9, "sgd")]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, 1, "adam"), (4, 7, "adam")]),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    pool: Pool, tmp_path: Path, world: int, stop_at: int, optimizer: str
) -> None:
    """The last rank alone is asked to stop; 4 is an epoch's end. All stop one batch later, a single process at once."""
    more = {"optimizer": ADAM, "fptt.metric": "preconditioned"} if optimizer == "adam" else {}
    if world == 1:
        more = {**more, "parallel.strategy": "single"}
    often = {**DROPOUT, **more, "checkpoint.every": 1, "fptt.reset_dual": True, "fptt.schedule.name": "linear"}
    straight = tiny(tmp_path / "straight", {**often, "checkpoint.every": 11})
    broken = tiny(tmp_path / "broken", often)
    whole = pool.run(train, straight, world=world)

    stopped = pool.run(train, broken, stop_at, world - 1, world=world)
    last = stop_at if world == 1 else stop_at + 1
    for outcome in stopped:
        assert outcome.message.startswith(f"stopped by a signal after batch {last} of 11, saved in ")
        assert outcome.batch == last
        assert outcome.values is None

    resumed = pool.run(train, tiny(tmp_path / "broken", {**often, "resume": "auto"}), world=world)
    for one, other in zip(whole, resumed, strict=True):
        assert other.batch == 11
        assert same_bits(other.weights, one.weights)
        assert same_bits(other.optimizer, one.optimizer)
        assert same_bits(other.random, one.random)
        assert other.values == one.values
    assert len({outcome.random["torch"].numpy().tobytes() for outcome in resumed}) == world
    there, here = (
        checkpoint_tensors(tmp_path / name / "checkpoints/step-00000011", world) for name in ("straight", "broken")
    )
    for name in there:
        assert same_bits(here[name], there[name])


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_another_number_of_workers_goes_on_from_the_same_weights(
    pool: Pool, tmp_path: Path, before: int, now: int
) -> None:
    """Equal everywhere before, so the same for all now; a run without random numbers ends as if it were one process."""
    keys = {"parallel.strategy": "gradient", "checkpoint.every": 1, "train.batches": 4}
    [single] = pool.run(train, tiny(tmp_path / "single", keys), world=1)
    [first, *_] = pool.run(train, tiny(tmp_path / "run", {**keys, "train.batches": 2}), world=before)
    more = tiny(tmp_path / "run", {**keys, "resume": "auto"})
    for weights, optimizer in pool.run(restored, more, world=now):
        assert same_bits(weights, first.weights)
        assert same_bits(optimizer, first.optimizer)
    workers = pool.run(train, more, world=now)
    for worker in workers:
        assert worker.batch == 4
        assert same_bits(worker.weights, workers[0].weights)
        assert same_bits(worker.optimizer, workers[0].optimizer)
        assert worker.values == pytest.approx(single.values, abs=1e-6)
    for name, expected in as_one(single).items():
        torch.testing.assert_close(as_one(workers[0])[name], expected, rtol=1e-4, atol=1e-6)
    assert len({worker.random["torch"].numpy().tobytes() for worker in workers}) == now


def restored(environment: LaunchEnvironment, config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and optimizer's state of a run to go on with."""
    trainer = open_trainer(environment, config)
    optimizer, _ = snapshot.optimizer_files(trainer.strategy.pieces(), trainer.optimizer)
    weights = {
        name: tensor.detach()
        for name, tensor in snapshot.model_tensors(trainer.strategy.pieces(), trainer.network).items()
    }
    return weights, optimizer


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (1, {"strategy": "single"}),
        (2, {"strategy": "gradient"}),
        (2, {"strategy": "consensus"}),
        (2, {"strategy": "consensus", "every": 3, "delay": 2}),
        (2, {"strategy": "consensus", "every": 7, "dual": "worker"}),
    ],
)
def test_looking_and_saving_change_no_weight(pool: Pool, tmp_path: Path, world: int, parallel: dict[str, Any]) -> None:
    same = {**DROPOUT, "parallel": parallel}
    del same["parallel.strategy"]
    rarely = {**same, "checkpoint.every": 100, "evaluate.every": 100, "telemetry.every": 100}
    often = {**same, "checkpoint.every": 1, "evaluate.every": 1, "telemetry.every": 1}
    runs = [
        pool.run(train, tiny(tmp_path / name, keys), world=world)
        for name, keys in [("rarely", rarely), ("often", often)]
    ]
    for one, other in zip(*runs, strict=True):
        assert same_bits(one.weights, other.weights)
        assert same_bits(one.optimizer, other.optimizer)
        assert same_bits(one.random, other.random)


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        *(
            (
                {"train.batch_size": 9, "data.shards": "fixed", "parallel.strategy": strategy},
                2,
                "data.shards=fixed needs equal shares, and train.batch_size=9 is not a multiple of the 2 processes: "
                "type train.batch_size=10, or data.shards=shuffled",
            )
            for strategy in STRATEGIES
        ),
        *(
            (
                {"train.batch_size": 2, "parallel.strategy": strategy},
                4,
                "train.batch_size=2 is the global batch, fewer sequences than the 4 processes: type train.batch_size=4",
            )
            for strategy in STRATEGIES
        ),
        (
            {"train.batch_size": 9, "train.micro_batch_size": 3},
            2,
            "train.micro_batch_size=3 does not divide each process's share of the batch, 9 / 2 = 4.5 sequences: "
            "type train.micro_batch_size=null, or a divisor",
        ),
        (
            {"train.micro_batch_size": 2, "parallel.strategy": "gradient", "parallel.reduce": "ddp"},
            2,
            "train.micro_batch_size=2 does not go with parallel.reduce=ddp, which would send every micro-batch: type "
            "parallel.reduce=flat, or train.micro_batch_size=null",
        ),
        (
            {"train.micro_batch_size": 8},
            2,
            "train.micro_batch_size=8 does not divide each process's share of the batch, 8 / 2 = 4 sequences: "
            "type train.micro_batch_size=null, or a divisor",
        ),
        (
            {"parallel.strategy": "single"},
            2,
            "parallel.strategy=single, but 2 processes were started: type parallel.strategy=consensus or "
            "parallel.strategy=gradient",
        ),
    ],
)
def test_what_does_not_fit_the_workers_is_refused_by_all(
    pool: Pool, tmp_path: Path, overrides: dict[str, Any], world: int, message: str
) -> None:
    assert pool.run(refusal, tiny(tmp_path / "run", overrides), world=world) == [message] * world
