"""Sharded runs on a text: embeddings, tied weights, states, masks and penalties go through the engines unharmed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.models import load_network
from fptt_dist.models.window_state import WindowState
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.run import try_out
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools import memory_model as memory
from fptt_dist.training.tools.dry_run import dry_run, held_bytes
from fptt_dist.training.tools.export import export_run
from fptt_dist.training.trainer import Trainer
from tests.parallel.fault_driver import broken as cut_off
from tests.parallel.fault_driver import copied, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, refusal, same_bits, train
from tests.parallel.test_language import BATCHES, DROPPED, MODELS, SGD, check_case, train_batches
from tests.sharded.helpers import (
    CLASSES,
    PARALLEL,
    SHARDED,
    assembled,
    assert_close,
    ended,
    opened,
    records,
    same,
    saved,
    step,
)
from tests.training.helpers import content, differing, isolated
from tests.training.texts import AWD, tiny_text, write_text

CASES: dict[str, dict[str, Any]] = {
    "lstm": {**MODELS["lstm"], "task.length_std": 2.0},
    "awd five": {**MODELS["awd"], "train.batch_size": 5, "train.max_norm": 0.1},
    "awd untied": {**MODELS["awd"], "model.tie_weights": False},
    "awd tbptt_accumulated micro": {**MODELS["awd"], "algorithm": "tbptt_accumulated", "train.micro_batch_size": 1},
    "experts": MODELS["experts"],
    "experts adam": {**MODELS["experts"], "optimizer.name": "adam", "optimizer.lr": 1e-3},
    "experts bptt": {**MODELS["experts"], "algorithm": "bptt"},
    "antisymmetric": MODELS["antisymmetric"],
}
SLOW = pytest.mark.slow
Train = Callable[[str, str], list[Outcome]]


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a case with a strategy, once."""
    done: dict[tuple[str, str], list[Outcome]] = {}

    def run(how: str, case: str) -> list[Outcome]:
        if (how, case) not in done:
            folder = tmp_path_factory.mktemp(f"{how}-{case}".replace(" ", "-")) / "run"
            config = tiny_text(folder, {**SGD, **CASES[case], "parallel": PARALLEL[how]}, batches=BATCHES)
            done[how, case] = pool.run(train, config, world=1 if how == "single" else 2)
        return done[how, case]

    return run


# Pairwise: each case somewhere, and each engine with embeddings tied and not, with states and with a clip.
QUICK: dict[str, list[str]] = {
    "fsdp": ["lstm", "awd five", "experts bptt", "antisymmetric"],
    "zero 1": ["awd tbptt_accumulated micro"],
    "zero 2": ["awd five", "experts adam"],
    "zero 3": ["awd untied", "awd five", "experts", "antisymmetric"],
}
MORE: dict[str, list[str]] = {
    "fsdp": ["awd untied", "awd tbptt_accumulated micro", "experts adam"],
    "zero 1": ["lstm", "experts"],
    "zero 2": ["antisymmetric", "experts bptt"],
    "zero 3": ["lstm", "awd tbptt_accumulated micro", "experts adam"],
}


@pytest.mark.parametrize(
    ("how", "case"),
    [
        *((how, case) for how in QUICK for case in QUICK[how]),
        *(pytest.param(how, case, marks=SLOW) for how in MORE for case in MORE[how]),
    ],
)
def test_workers_train_what_one_process_trains(trained: Train, how: str, case: str) -> None:
    [single], workers = trained("single", case), trained(how, case)
    check_case(CASES[case], single)
    assert [worker.engine for worker in workers] == [CLASSES[how]] * 2
    rtol, atol = (1e-3, 2e-5) if "adam" in case else (1e-4, 1e-6)
    assert_close(ended(workers, BATCHES), ended([single], BATCHES), rtol=rtol, atol=atol)
    assert workers[0].values == workers[1].values
    assert workers[0].values == pytest.approx(single.values, rel=1e-5)
    rel = 2e-3 if "adam" in case else 2e-4
    for one, other in zip(records(workers), records([single]), strict=True):
        for key in ("loss", "window_losses", "gradient_norm", "center_distance", "dual_norm"):
            assert one[key] == pytest.approx(other[key], rel=rel, abs=1e-6), key


@pytest.mark.parametrize("how", ["fsdp", pytest.param("zero 3", marks=SLOW)])
def test_three_workers_have_parts_of_unequal_sizes(pool: Pool, tmp_path: Path, trained: Train, how: str) -> None:
    """28 rows, 7 columns and 4 streams are no multiples of 3."""
    config = tiny_text(tmp_path / "run", {**SGD, **CASES["experts"], "parallel": PARALLEL[how]}, batches=BATCHES)
    workers = pool.run(train, config, world=3)
    assert_close(ended(workers, BATCHES), ended(trained("single", "experts"), BATCHES), rtol=1e-4, atol=1e-6)


TIGHT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}


@pytest.mark.parametrize("case", ["awd five", *(pytest.param(case, marks=SLOW) for case in ("experts bptt", "lstm"))])
def test_weights_that_are_dropped_after_each_use(pool: Pool, tmp_path: Path, trained: Train, case: str) -> None:
    """Stage 3 holds a tiny model's weights from one use to the next, as it does not hold a large one's."""
    keys = {**SGD, **CASES[case], "parallel": tight(tmp_path)}
    workers = pool.run(train, tiny_text(tmp_path / "run", keys, batches=BATCHES))
    assert_close(ended(workers, BATCHES), ended(trained("single", case), BATCHES), rtol=1e-4, atol=1e-6)


def tight(folder: Path) -> dict[str, Any]:
    """Stage 3 as it is for a large model."""
    given = folder / "ds.json"
    given.write_text(json.dumps({"zero_optimization": TIGHT}))
    return {**PARALLEL["zero 3"], "deepspeed_config": str(given)}


# dropout


class Seen:
    """The masks that the network comes out with, window by window, in training."""

    def __init__(self, trainer: Trainer) -> None:
        self.masks: list[dict[str, Tensor] | None] = []
        network = trainer.network
        network.register_forward_hook(self._note)

    def _note(self, network: Any, _: Any, output: Any) -> None:
        if network.training:
            state = output[1]
            assert isinstance(state, WindowState)
            self.masks.append(None if state.masks is None else {k: m.detach().clone() for k, m in state.masks.items()})


def dropped(environment: LaunchEnvironment, config: Config) -> tuple[list[dict[str, Tensor] | None], list[float]]:
    """The masks of two sequences of three windows, and the windows' losses."""
    trainer = open_trainer(environment, config)
    seen = Seen(trainer)
    losses: list[float] = []
    run = trainer.loop.run

    def noted(*arguments: Any, **more: Any) -> Any:
        result, norms = run(*arguments, **more)
        losses.extend(result.window_losses.tolist())
        return result, norms

    trainer.loop.run = noted
    train_batches(trainer, 2)
    return seen.masks, losses


EXPERTS = {**DROPPED["awd"], "model.last_hidden": 7}


@pytest.mark.parametrize(
    ("how", "masks"), [("fsdp", "sequence"), ("zero 3", "window"), pytest.param("zero 2", "sequence", marks=SLOW)]
)
def test_masks_are_a_workers_own_and_go_from_window_to_window(pool: Pool, tmp_path: Path, how: str, masks: str) -> None:
    """And they are those that averaged gradients draw: the losses of each window are the same."""
    keys = {**SGD, **EXPERTS, "model.dropout_mask_scope": masks}
    workers = pool.run(dropped, tiny_text(tmp_path / "run", {**keys, "parallel": PARALLEL[how]}))
    others = pool.run(dropped, tiny_text(tmp_path / "gradient", {**keys, "parallel": PARALLEL["gradient"]}))
    for (found, losses), (expected, theirs) in zip(workers, others, strict=True):
        assert losses == pytest.approx(theirs, rel=1e-5)
        assert len(found) == len(expected) == 6
        if masks == "window":
            assert found == [None] * 6
            continue
        for mine, other in zip(found, expected, strict=True):
            assert mine is not None
            assert other is not None
            assert {"embedding", "input", "output", "hidden.0", "weight.0", "weight.1", "latent"} == mine.keys()
            assert same_bits(mine, other)
        first, second, third, fourth, *_ = found
        assert first is not None
        assert second is not None
        assert third is not None
        assert fourth is not None
        assert same_bits(first, second)
        assert same_bits(second, third)
        assert not same_bits(third, fourth)
    if masks == "sequence":
        one, other = workers[0][0][0], workers[1][0][0]
        assert one is not None
        assert other is not None
        assert not same_bits(one, other)


@pytest.mark.parametrize(
    ("how", "algorithm"),
    [
        *[("fsdp", "fptt"), ("zero 3, tight", "bptt_aux")],
        *(
            pytest.param(*each, marks=SLOW)
            for each in [("zero 1", "fptt"), ("zero 2", "tbptt_accumulated"), ("fsdp", "bptt_aux")]
        ),
    ],
)
def test_dropout_trains_what_averaged_gradients_train(pool: Pool, tmp_path: Path, how: str, algorithm: str) -> None:
    parallel = tight(tmp_path) if "tight" in how else PARALLEL[how]
    keys = {**SGD, **EXPERTS, "algorithm": algorithm}
    runs = [
        pool.run(train, tiny_text(tmp_path / name, {**keys, "parallel": each}, batches=BATCHES))
        for name, each in (("run", parallel), ("gradient", PARALLEL["gradient"]))
    ]
    assert_close(ended(runs[0], BATCHES), ended(runs[1], BATCHES), rtol=1e-4, atol=1e-6)
    for one, other in zip(*runs, strict=True):
        assert same_bits(one.random, other.random)
        assert one.values == pytest.approx(other.values, rel=1e-5)


@pytest.mark.parametrize("how", ["fsdp", "zero 3", pytest.param("zero 2", marks=SLOW)])
def test_half_precision_learns_what_full_precision_learns(pool: Pool, tmp_path: Path, how: str) -> None:
    """States, masks and penalties go in and out of a network that computes in bf16."""
    keys = {**SGD, **EXPERTS, "parallel": PARALLEL[how], "optimizer.lr": 0.2}
    masks, losses = zip(
        *pool.run(dropped, tiny_text(tmp_path / "half", {**keys, "train.precision": "bf16"})), strict=True
    )
    _, expected = zip(*pool.run(dropped, tiny_text(tmp_path / "full", keys)), strict=True)
    for mine, theirs in zip(losses, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=0.02)
        assert mine != theirs
    for first, second, *_ in masks:
        assert same_bits(first, second)


# resuming a run


@pytest.mark.parametrize(
    ("how", "model"),
    [("fsdp", "awd"), *(pytest.param(*each, marks=SLOW) for each in [("zero 2", "lstm"), ("zero 3", "awd")])],
)
def test_goes_on_bit_for_bit_in_the_middle_of_an_epoch(pool: Pool, tmp_path: Path, how: str, model: str) -> None:
    keys = {**DROPPED[model], "task.length_std": 2.0, "parallel": PARALLEL[how], "checkpoint.every_batches": 3}
    straight = pool.run(copied, tiny_text(tmp_path / "run", keys, batches=5), [3])
    assert all(content(step(tmp_path / "run-3", 3))[f"rank/{rank}/state.json"]["carried"] for rank in range(2))
    resumed = pool.run(train, tiny_text(tmp_path / "run-3", {**keys, "resume": "auto"}, batches=5))
    one, other = (content(step(tmp_path / name, 5)) for name in ("run", "run-3"))
    assert differing(one, other) == []
    assert [worker.values for worker in resumed] == [worker.values for worker in straight]


@pytest.mark.parametrize(
    ("before", "after", "now"),
    [
        ("fsdp", "gradient", 2),
        pytest.param("zero 2", "single", 1, marks=SLOW),
        pytest.param("gradient", "zero 3", 2, marks=SLOW),
    ],
)
def test_goes_over_to_another_strategy_at_an_epochs_end_alone(
    pool: Pool, tmp_path: Path, before: str, after: str, now: int
) -> None:
    keys = {
        **SGD,
        **MODELS["awd"],
        "task.text_dir": str(write_text(tmp_path / "short", 200)),
        "checkpoint.every_batches": 1,
    }
    [single] = pool.run(train, tiny_text(tmp_path / "single", keys, batches=6), world=1)
    end = max(line["batch"] for line in records([single]) if line["epoch"] == 0)
    assert 3 <= end < 6
    pool.run(copied, tiny_text(tmp_path / "run", {**keys, "parallel": PARALLEL[before]}, batches=6), [2, end])
    middle, again = (
        tiny_text(tmp_path / f"run-{n}", {**keys, "parallel": PARALLEL[after], "resume": "auto"}, batches=6)
        for n in (2, end)
    )
    for message in pool.run(refusal, middle, world=now):
        assert "the recurrent states carried from batch to batch cannot be redistributed" in message
    here = pool.run(opened, again, world=now)
    copies = [here] if after in SHARDED else [[part] for part in here]
    for copy in copies:
        assert same(assembled(copy), saved(step(tmp_path / f"run-{end}", end))) == []
    workers = pool.run(train, again, world=now)
    assert_close(ended(workers, 6), ended([single], 6), rtol=1e-4, atol=1e-6)


# what a run would be


def test_a_dry_run_of_one_process(tmp_path: Path) -> None:
    """As the command line asks for it."""
    with isolated():
        found = try_out(tiny_text(tmp_path / "run", DROPPED["awd"]))
    assert found.shapes["inputs of the batch (steps, sequences, features)"] == (12, 4)
    assert found.shapes["output of a window"][:2] == (4, 4)
    assert found.windows == [(0, 4), (4, 8), (8, 12)]
    assert found.memory[memory.SLOW] == 2 * 4 * found.parameters["total"] == 2 * found.memory[memory.WEIGHTS]
    assert not (tmp_path / "run").exists()


def tried(environment: LaunchEnvironment, config: Config) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What a dry run says on a worker: bytes by what holds them, what was predicted, and what is held."""
    trainer = Trainer(RunDirectory(config), environment, torch.device("cpu"))
    found = dry_run(trainer)
    assert found.lines()[-1] == "nothing was written"
    assert found.loss > 0
    return found.memory, found.predicted, held_bytes(trainer)


@pytest.mark.parametrize(
    ("how", "model"),
    [
        *[("single", "lstm"), ("gradient", "awd"), ("consensus", "experts"), ("fsdp", "lstm"), ("fsdp", "experts")],
        *[("zero 1", "awd"), ("zero 2", "experts"), ("zero 3", "awd")],
    ],
)
def test_a_dry_run_counts_and_predicts(pool: Pool, tmp_path: Path, how: str, model: str) -> None:
    keys = {
        "lstm": {"model.hidden": 9, "model.embedding": 5},
        "awd": {**AWD, "model.layers": 3},
        "experts": {**EXPERTS, "optimizer.name": "adam"},
    }[model]
    config = tiny_text(tmp_path / "run", {**keys, "parallel": PARALLEL[how]})
    for found, predicted, held in pool.run(tried, config, world=1 if how == "single" else 2):
        assert found["activations of one graph"] > 0
        for name in (memory.WEIGHTS, memory.MOMENTS, memory.SLOW):
            assert found[name] == held[name] > 0
            if how in ("gradient", "consensus"):
                assert predicted[name] == held[name]
    assert not (tmp_path / "run").exists()


# what is read from a run


@pytest.mark.parametrize("how", ["fsdp", pytest.param("zero 3", marks=SLOW)])
def test_one_process_evaluates_and_exports_what_the_workers_said(pool: Pool, tmp_path: Path, how: str) -> None:
    """In the middle of an epoch, of a network whose output layer is its embedding."""
    keys = {**DROPPED["awd"], "model.num_experts": 1, "model.dropout_latent": 0.0, "parallel": PARALLEL[how]}
    [worker, _] = pool.run(train, tiny_text(tmp_path / "run", {**keys, "evaluate.weights": "weights"}, batches=4))
    assert worker.values is not None
    with isolated():
        found = evaluate_run(tmp_path / "run", "latest")
        network = load_network(export_run(tmp_path / "run", tmp_path / "export", "latest"))
    assert (found["validation"], found["test"]) == pytest.approx(worker.values, rel=1e-6)
    whole = saved(step(tmp_path / "run", 4))
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    assert "decoder_weight" not in weights
    assert same({f"{name}/weight": weight for name, weight in weights.items()}, weights_of(whole)) == []


def weights_of(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in whole.items() if name.endswith("/weight")}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "inside"), [("awd", "fsdp"), ("lstm", "data_parallel"), ("antisymmetric", "fsdp")])
def test_two_machines_go_on_bit_for_bit(pool: Pool, tmp_path: Path, inside: str, model: str) -> None:
    """Two nodes that synchronize every 5 windows, with copies or shards inside; saved in the background."""
    parallel = {"strategy": "hierarchical", "sync_every": 5, "intra_node": inside}
    keys = {**DROPPED[model], "task.length_std": 2.0, "parallel": parallel, "checkpoint.every_batches": 3}
    keys["checkpoint.async_save"] = True
    pool.run(whole, tiny_text(tmp_path / "straight", keys, batches=5), 2, world=4)
    pool.run(cut_off, tiny_text(tmp_path / "run", keys, batches=5), 3, 2, world=4)
    pool.run(whole, tiny_text(tmp_path / "run", {**keys, "resume": "auto"}, batches=5), 2, world=4)
    one, other = (content(step(tmp_path / name, 5)) for name in ("straight", "run"))
    assert differing(one, other) == []
