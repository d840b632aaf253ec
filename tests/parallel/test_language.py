"""Runs on a text by several workers: each carries its own streams' states, and together they are one process's run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fptt_dist.config import Config, ConfigError
from fptt_dist.models import hidden_of, penalty_of
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.tasks import TaskShape
from fptt_dist.training.evaluation import evaluate
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup import factory, task_factory
from fptt_dist.training.trainer import Trainer
from tests.parallel.fault_driver import copied
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, refusal, same_bits, train
from tests.training.helpers import content, differing, isolated
from tests.training.texts import AWD, tiny_text, write_text

SGD: dict[str, Any] = {
    "optimizer.name": "sgd",
    "optimizer.lr": 0.5,
    "fptt.alpha": 0.5,
    "fptt.metric": "euclidean",
    "train.max_norm": None,
    "checkpoint.every_batches": 100,  # and at the end
    "evaluate.every_batches": 100,
}
NAMES = ("weight_drop", *(f"dropout_{part}" for part in ("embedding", "input", "hidden", "output")))
SILENT = {f"model.{name}": 0.0 for name in NAMES}  # no mask is drawn
MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"model.embedding": 3},
    "awd": {**AWD, **SILENT, "model.activation_penalty": 5.0, "model.temporal_penalty": 5.0},
    "experts": {**AWD, **SILENT, "model.num_experts": 3, "model.last_hidden": 7},
    "antisymmetric": {"model.layer": "antisymmetric", "model.layers": 2, "model.step_size": 0.2},
    "lengths": {"task.length_std": 2.0},
}
LENGTHS, FIVE, CLIPPED = MODELS["lengths"], {"train.batch_size": 5}, {"train.max_norm": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "lstm tbptt": {**MODELS["lstm"], **LENGTHS, "algorithm": "tbptt"},
    "awd fptt five": {**MODELS["awd"], **FIVE, **CLIPPED},
    "awd tbptt_accumulated micro": {**MODELS["awd"], "algorithm": "tbptt_accumulated", "train.micro_batch_size": 1},
    "awd bptt_aux": {**MODELS["awd"], "algorithm": "bptt_aux"},
    "awd second_gradient": {**MODELS["awd"], "fptt.update_rule": "second_gradient"},
    "experts fptt": MODELS["experts"],
    "experts bptt five": {**MODELS["experts"], **FIVE, **LENGTHS, "algorithm": "bptt"},
    "antisymmetric fptt five": {**MODELS["antisymmetric"], **FIVE, **LENGTHS},
    "antisymmetric tbptt_accumulated": {**MODELS["antisymmetric"], "algorithm": "tbptt_accumulated"},
}
FLAT = {"strategy": "data_parallel"}
BATCHES = 4
Train = Callable[..., list[Outcome]]


def step(folder: Path, batch: int) -> Path:
    return folder / f"checkpoints/step-{batch:08d}"


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The telemetry's records of one kind."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def state(outcome: Outcome) -> dict[str, Tensor]:
    """Weights, W̄, u, moments and means."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


def assert_close(workers: list[Outcome], single: Outcome) -> None:
    """Every worker ends where the one process ends, to rounding, and they are equal bit for bit."""
    expected = state(single)
    for worker in workers:
        assert same_bits(state(worker), state(workers[0]))
        assert worker.batch == single.batch
        assert worker.values == pytest.approx(single.values, rel=1e-5)
    found = state(workers[0])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case on so many workers, once."""
    done: dict[str, list[Outcome]] = {}

    def run(case: str, world: int, parallel: dict[str, Any]) -> list[Outcome]:
        name = f"{case}-{world}-{'-'.join(map(str, parallel.values()))}".replace(" ", "-")
        if name not in done:
            config = tiny_text(
                tmp_path_factory.mktemp(name) / "run", {**SGD, **CASES[case], "parallel": parallel}, batches=BATCHES
            )
            done[name] = pool.run(train, config, world=world)
        return done[name]

    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_averaged_gradients_are_one_processes(trained: Train, case: str) -> None:
    """Losses, penalties and learning rates are those of all streams together."""
    world = 3 if case == "experts fptt" else 2  # shares of 2, 1 and 1 streams
    [single], workers = trained(case, 1, {"strategy": "single"}), trained(case, world, FLAT)
    check_case(CASES[case], single)
    assert [worker.engine for worker in workers] == ["Replicated GradientSync"] * world
    assert_close(workers, single)
    mine, theirs = lines(workers[0].folder, "train"), lines(single.folder, "train")
    for one, other in zip(mine, theirs, strict=True):
        for key in ("loss", "window_losses", "gradient_norm", "center_distance", "dual_norm"):
            assert one[key] == pytest.approx(other[key], rel=2e-4, abs=1e-6), key


def check_case(words: dict[str, Any], single: Outcome) -> None:
    """The weights move far beyond the tolerance, W̄ is not W, and a clip that is on changes every batch's update."""
    moved = {name: float((single.weights[name] - single.start[name]).abs().max()) for name in single.start}
    assert max(moved.values()) > 5e-3
    assert moved["embedding.weight"] > 1e-4
    records = lines(single.folder, "train")
    assert len(records) == BATCHES
    if words.get("algorithm", "fptt") == "fptt":
        assert min(record["center_distance"] for record in records) > 1e-3
    if words.get("train.max_norm"):
        assert min(record["gradient_norm"] for record in records) > words["train.max_norm"]


def test_the_penalties_weigh(pool: Pool, tmp_path: Path) -> None:
    """A penalty left out, or doubled, is far beyond the tolerance."""
    runs = []
    for factor in (0.0, 5.0, 10.0):
        keys = {**SGD, **MODELS["awd"], "model.activation_penalty": factor, "model.temporal_penalty": factor}
        runs += pool.run(train, tiny_text(tmp_path / f"{factor}", keys, batches=BATCHES), world=1)
    for one, other in ((runs[0], runs[1]), (runs[1], runs[2])):
        assert max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights) > 1e-4


class Nothing:
    """MetricsLogger that records nothing."""

    def training(self, record: dict[str, Any]) -> None:
        """Called after each batch."""


def train_batches(trainer: Trainer, number: int) -> None:
    """Train so many batches more."""
    for _ in range(number):
        trainer._train_batch(Nothing())  # pyright: ignore[reportArgumentType]


def carried(environment: LaunchEnvironment, config: Config, batches: int) -> list[list[Tensor]]:
    """The states this worker holds after each batch, one tensor (layers, streams, units) after the other."""
    trainer = open_trainer(environment, config)
    found = []
    for _ in range(batches):
        train_batches(trainer, 1)
        found.append([tensor.clone() for tensor in plain(trainer.state.carried)])
    return found


def plain(states: Any) -> list[Tensor]:
    """The tensors of a state, without what goes with it."""
    return [leaf for state in states or () for leaf in tree_leaves(hidden_of(state)) if leaf is not None]


@pytest.mark.parametrize("model", ["lstm", "awd", "antisymmetric"])
def test_the_workers_states_are_the_parts_of_the_one_processes(pool: Pool, tmp_path: Path, model: str) -> None:
    """Streams are distributed in order, and a worker's state is that of its own streams."""
    keys = {**SGD, **MODELS[model], "train.batch_size": 5}
    [single] = pool.run(carried, tiny_text(tmp_path / "single", keys), 4, world=1)
    workers = pool.run(carried, tiny_text(tmp_path / "run", {**keys, "parallel": FLAT}), 4, world=3)
    for batch, whole in enumerate(single):
        assert whole
        for place, tensor in enumerate(whole):
            parts = [worker[batch][place] for worker in workers]
            assert sorted(part.shape[1] for part in parts) == [1, 2, 2]
            torch.testing.assert_close(torch.cat(parts, dim=1), tensor, rtol=1e-4, atol=1e-6)


# consensus


def test_agreeing_after_each_window_is_averaging_for_plain_sgd(pool: Pool, tmp_path: Path) -> None:
    """The mean of W − lr (g_r + r) over the workers is W − lr (mean g_r + r), window by window."""
    keys = {**SGD, **MODELS["awd"], **FIVE, **LENGTHS}
    every = {"strategy": "consensus", "sync_every": 1, "weight_sync": "average"}
    gradient, consensus = (
        pool.run(train, tiny_text(tmp_path / parallel["strategy"], {**keys, "parallel": parallel}, batches=BATCHES))
        for parallel in (FLAT, every)
    )
    assert [worker.engine for worker in consensus] == ["Replicated Consensus"] * 2
    for worker, other in zip(consensus, gradient, strict=True):
        found = state(worker)
        for name, tensor in state(other).items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert worker.values == pytest.approx(other.values, rel=1e-5)


CONSENSUS: dict[str, dict[str, Any]] = {
    "each window": {"strategy": "consensus", "sync_every": 1},
    "each batch": {"strategy": "consensus"},
    "two batches": {"strategy": "consensus", "sync_every": 6},
    "late": {"strategy": "consensus", "sync_every": 5, "sync_delay": 2},
    "duals": {"strategy": "consensus", "dual": "local"},
}
DROPPED: dict[str, dict[str, Any]] = {
    "lstm": {"model.dropout": 0.3, "optimizer.name": "adam"},
    "awd": {**AWD, "model.num_experts": 2, "model.dropout_latent": 0.2},
    "antisymmetric": {**MODELS["antisymmetric"], "model.dropout": 0.3, "optimizer.name": "adam"},
}


def synced(environment: LaunchEnvironment, config: Config) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """W̄ before the sync that ends the second batch and after it, and the states that are carried."""
    trainer = open_trainer(environment, config)
    real, before = trainer.engine.after_update, []

    def noted() -> None:
        before[:] = [center.clone() for center in trainer.optimizer.slow_state()[1]]
        real()

    trainer.engine.after_update = noted
    train_batches(trainer, 2)
    return before, [center.clone() for center in trainer.optimizer.slow_state()[1]], plain(trainer.state.carried)


@pytest.mark.parametrize(
    ("model", "how"), [("lstm", "each window"), ("awd", "each batch"), ("antisymmetric", "two batches")]
)
def test_an_agreement_makes_the_centers_the_mean_and_leaves_the_states(
    pool: Pool, tmp_path: Path, model: str, how: str
) -> None:
    """After 2 batches of 3 windows each rule has just synchronized; equal shares."""
    keys = {**DROPPED[model], "parallel": CONSENSUS[how]}
    (one, after, states), (other, there, others) = pool.run(synced, tiny_text(tmp_path / "run", keys))
    for mine, theirs, center, its in zip(one, other, after, there, strict=True):
        torch.testing.assert_close(its, center, rtol=1e-6, atol=1e-7)
        if how != "each window":  # W̄ is sent: a mean of copies
            assert torch.equal(its, center)
            torch.testing.assert_close(center, (mine + theirs) / 2, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert states
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(states, others, strict=True))


def weights_after(environment: LaunchEnvironment, config: Config, batches: int) -> list[Tensor]:
    """W after so many batches."""
    trainer = open_trainer(environment, config)
    train_batches(trainer, batches)
    return [p.detach().clone() for p in trainer.network.parameters()]


@pytest.mark.parametrize(("model", "every"), [("awd", 50), ("awd", 5), ("lengths", 3), ("lstm", 1)])
def test_a_worker_trains_its_own_streams_and_agrees_on_the_mean(
    pool: Pool, tmp_path: Path, model: str, every: int
) -> None:
    """By hand: networks apart, each with its streams and its state, W ← W − lr T/12 ∇(ℓ + penalty) a window, and every
    H windows their mean, weighted by their shares of 5 streams. 4 batches of 3 windows.
    """
    keys = {**SGD, **MODELS[model], **FIVE, "algorithm": "tbptt", "fptt.windows": 3}
    config = tiny_text(tmp_path / "run", {**keys, "parallel": {"strategy": "consensus", "sync_every": every}})
    workers = pool.run(weights_after, config, 4)
    task = task_factory.build_task(config)
    with isolated():
        networks = [factory.build_model(config, TaskShape.of(task)).train() for _ in range(2)]
    states: list[Any] = [None, None]
    updates = 0
    for number in range(4):
        parts = [task.train_batch(0, 5 * number, 5, part) for part in (slice(0, 2), slice(2, 5))]
        steps = len(parts[0].inputs)
        assert steps == len(parts[1].inputs)
        edges = [steps * k // 3 for k in range(4)]
        for window in map(slice, edges, edges[1:]):
            for rank, (network, part) in enumerate(zip(networks, parts, strict=True)):
                output, state = network(part.inputs[window], states[rank])
                log = output.log_softmax(-1).gather(-1, part.targets[window].unsqueeze(-1))
                objective = -log.mean()
                objective = objective + (penalty_of(state) if model == "awd" else 0.0)
                network.zero_grad()
                objective.backward()
                states[rank] = tree_map(Tensor.detach, hidden_of(state))
                with torch.no_grad():
                    for p in network.parameters():
                        assert p.grad is not None
                        p -= 0.5 * (steps / 12 if model == "lengths" else 1.0) * p.grad
            updates += 1
            if updates % every == 0:
                with torch.no_grad():
                    for one, other in zip(*(network.parameters() for network in networks), strict=True):
                        mean = 0.4 * one + 0.6 * other
                        one.copy_(mean)
                        other.copy_(mean)
    for network, worker in zip(networks, workers, strict=True):
        for p, found in zip(network.parameters(), worker, strict=True):
            torch.testing.assert_close(found, p.detach(), rtol=1e-4, atol=1e-6)
    same_everywhere = all(torch.equal(one, other) for one, other in zip(*workers, strict=True))
    assert same_everywhere == (updates % every == 0)


# resuming a run

RESUMED: dict[str, dict[str, Any]] = {
    "gradient": FLAT,
    **{name: CONSENSUS[name] for name in ("each batch", "late", "duals")},
}


@pytest.mark.parametrize(
    ("how", "model"),
    [
        *[("late", "awd"), ("duals", "lstm"), ("each batch", "antisymmetric")],
        pytest.param("gradient", "lstm", marks=pytest.mark.slow),
    ],
)
def test_goes_on_bit_for_bit_in_the_middle_of_an_epoch(pool: Pool, tmp_path: Path, how: str, model: str) -> None:
    keys = {**DROPPED[model], "task.length_std": 2.0, "parallel": RESUMED[how], "checkpoint.every_batches": 3}
    pool.run(copied, tiny_text(tmp_path / "run", keys, batches=5), [3])
    assert all(content(step(tmp_path / "run-3", 3))[f"rank/{rank}/state.json"]["carried"] for rank in range(2))
    pool.run(train, tiny_text(tmp_path / "run-3", {**keys, "resume": "auto"}, batches=5))
    one, other = (content(step(tmp_path / name, 5)) for name in ("run", "run-3"))
    assert differing(one, other) == []


def test_other_workers_go_on_at_an_epochs_end_alone(pool: Pool, tmp_path: Path) -> None:
    """At its end there is no state, and a global batch is the same streams: it is one process's run to rounding."""
    text = str(write_text(tmp_path / "short", 200))
    keys = {**SGD, **MODELS["awd"], "task.text_dir": text, "parallel": FLAT, "checkpoint.every_batches": 1}
    [single] = pool.run(train, tiny_text(tmp_path / "single", keys, batches=6), world=1)
    end = [line["batch"] for line in lines(tmp_path / "single", "train") if line["epoch"] == 0][-1]
    assert 3 <= end < 6
    for before, now in ((2, 1), (1, 3)):
        run = tmp_path / f"{before} to {now}"
        pool.run(copied, tiny_text(run, keys, batches=6), [2, end], world=before)
        again = [tiny_text(tmp_path / f"{run.name}-{n}", {**keys, "resume": "auto"}, batches=6) for n in (2, end)]
        message = (
            f"{step(tmp_path / f'{run.name}-2', 2)} was written by {before} worker{'s' if before > 1 else ''}, this "
            f"run has {now}, and the recurrent states carried from batch to batch cannot be redistributed: start "
            f"{before}, or save at an epoch's end, where there are none"
        )
        assert pool.run(refusal, again[0], world=now) == [message] * now
        assert_close(pool.run(train, again[1], world=now), single)


# the mean of the weights

NT_ASGD: dict[str, Any] = {
    "optimizer.name": "nt_asgd",
    "optimizer.lr": 8.0,
    "optimizer.patience": 1,
    "fptt.alpha": 0.05,
    "fptt.metric": "euclidean",
    "evaluate.every_batches": 2,
    "task.length_std": 2.0,
}
FIRST = 8  # batch that is evaluated with the mean


def test_the_mean_of_the_weights_is_one_processes(pool: Pool, tmp_path: Path) -> None:
    """It begins at the same validation, is the same mean, and is what is evaluated."""
    keys = {**NT_ASGD, "train.batch_size": 5}
    [single] = pool.run(train, tiny_text(tmp_path / "single", keys, batches=10), world=1)
    evaluated = lines(tmp_path / "single", "evaluation")
    assert {line["weights"] for line in evaluated} == {"center", "average"}
    assert any(name.endswith("/average") for name in single.optimizer)
    workers = pool.run(train, tiny_text(tmp_path / "workers", {**keys, "parallel": FLAT}, batches=10), world=3)
    assert_close(workers, single)
    found = lines(tmp_path / "workers", "evaluation")
    assert [(line["batch"], line["weights"]) for line in found] == [
        (line["batch"], line["weights"]) for line in evaluated
    ]
    assert [line["value"] for line in found] == pytest.approx([line["value"] for line in evaluated], rel=1e-5)


def test_the_mean_of_the_weights_goes_on_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    keys = {**NT_ASGD, "parallel": FLAT, "checkpoint.every_batches": 3, "checkpoint.keep_last": 20}
    pool.run(copied, tiny_text(tmp_path / "run", keys, batches=10), [FIRST - 2, FIRST + 1])
    marks = [(line["batch"], line["weights"]) for line in lines(tmp_path / "run", "evaluation")]
    assert next(batch for batch, weights in marks if weights == "average") == FIRST
    for batch, started in ((FIRST - 2, False), (FIRST + 1, True)):  # when it has just been decided, and when it is on
        run = tmp_path / f"run-{batch}"
        assert any(name.endswith("/average") for name in content(step(run, batch))) == started
        pool.run(train, tiny_text(run, {**keys, "checkpoint.every_batches": 100, "resume": "auto"}, batches=10))
        assert differing(content(step(tmp_path / "run", 10)), content(step(run, 10))) == []


def test_the_mean_of_the_weights_needs_equal_workers(pool: Pool, tmp_path: Path) -> None:
    strategies = ["auto", "consensus", "hierarchical", "fsdp", "deepspeed"]
    configs = [tiny_text(tmp_path / "run", {**NT_ASGD, "parallel.strategy": strategy}) for strategy in strategies]
    messages = [
        "optimizer.name=nt_asgd averages weights that are equal on all 2 workers: type "
        f"parallel.strategy=data_parallel, not {strategy}, or another optimizer"
        for strategy in strategies
    ]
    assert [pool.run(nothing_opened, config) for config in configs] == [[message] * 2 for message in messages]
    assert not (tmp_path / "run").exists()


def nothing_opened(environment: LaunchEnvironment, config: Config) -> str:
    """Why the run is refused as the program starts it, which writes nothing before all is built."""
    try:
        Trainer(RunDirectory(config), environment, torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    return "accepted"


# evaluation


def measured(environment: LaunchEnvironment, configs: list[Config]) -> list[dict[str, float]]:
    """The metric of the untrained network."""
    values = []
    for trainer in (open_trainer(environment, config) for config in configs):
        task, everyone = trainer.task, trainer.engine.everyone
        found = {s: evaluate(trainer.network, task, everyone, s, trainer.device) for s in ("validation", "test")}
        values.append({split: metrics[task.metric] for split, metrics in found.items()})
    return values


def test_the_metric_is_the_same_on_any_number_of_workers(pool: Pool, tmp_path: Path) -> None:
    """3 tokens are 2 streams of one prediction: fewer than the workers."""
    rows = [("word", None), ("word", 3), ("word", 8), ("character", None), ("character", 23)]
    keys = {"train.batch_size": 4, "parallel.strategy": "data_parallel"}

    def answers(world: int) -> list[list[dict[str, float]]]:
        configs = [
            tiny_text(
                tmp_path / str(world) / str(row), {**keys, "task.eval_tokens": held_out, "task.token_level": units}
            )
            for row, (units, held_out) in enumerate(rows)
        ]
        return pool.run(measured, configs, world=world)

    [single] = answers(1)
    for world in (2, 3):
        workers = answers(world)
        assert workers == [workers[0]] * world
        for row, found, expected in zip(rows, workers[0], single, strict=True):
            assert found == pytest.approx(expected, rel=1e-6), row
