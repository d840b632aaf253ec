"""A run resumes with another number of workers: what was equal stays, what differed becomes its mean, or is refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fptt_dist.config import Config
from fptt_dist.models import load_network
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.checkpoint import state_dict
from fptt_dist.training.process.signals import StopFlag
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup import task_factory
from fptt_dist.training.tools.export import export_run
from tests.parallel.fault_driver import WORDS, again, broken, copied, place, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, open_trainer, refusal, same_bits, tiny
from tests.tasks.test_pixels import some_images, write_images
from tests.training.helpers import content, differing, isolated
from tests.training.toys import Stream

GRADIENT = {"parallel": {"strategy": "data_parallel"}}
CONSENSUS: dict[str, Any] = {"strategy": "consensus", "sync_every": 3}
LATE = {**CONSENSUS, "sync_every": 7, "sync_delay": 2}
WORKER = {**CONSENSUS, "dual": "local"}
ADMM = {**WORKER, "dual_update": "admm"}
SLOW = pytest.mark.slow


def step(folder: Path, batch: int) -> Path:
    return folder / f"checkpoints/step-{batch:08d}"


def state(outcome: Outcome) -> dict[str, Tensor]:
    """Weights, W̄, u and moments."""
    return {**outcome.weights, **{f"optimizer/{name}": tensor for name, tensor in outcome.optimizer.items()}}


def opened(environment: LaunchEnvironment, config: Config, machines: int = 1) -> dict[str, Tensor]:
    """What a worker holds when it has gone back to the newest checkpoint."""
    trainer = open_trainer(place(environment, machines), config)
    optimizer, _ = state_dict.optimizer_files(trainer.engine.placement.shards(), trainer.optimizer)
    kept = trainer.engine.state_dict()
    held = {
        **{
            f"model:{name}": tensor
            for name, tensor in state_dict.model_tensors(
                trainer.engine.placement.shards(), trainer.network, trainer.shapes, trainer.dtypes
            ).items()
        },
        **{f"optimizer:{name}": tensor for name, tensor in optimizer.items()},
        **{f"shared:{name}": tensor for name, tensor in kept.shared.items()},
        **{f"own:{name}": tensor for name, tensor in kept.own.items()},
        "random": torch.get_rng_state(),
    }
    return {name: tensor.detach().clone() for name, tensor in held.items()}


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), pytest.param(2, 4, marks=SLOW)])
def test_gradient_goes_on_like_one_process_with_the_whole_batch(
    pool: Pool, tmp_path: Path, before: int, now: int
) -> None:
    """Equal everywhere before, so the same for all now; a run without random numbers ends as if it were one process."""
    keys = {
        **GRADIENT,
        "checkpoint.every_batches": 2,
        "fptt.reset_dual": True,
        "train.batch_size": 9,
        "train.max_batches": 5,
    }
    [single] = pool.run(whole, tiny(tmp_path / "single", keys), world=1)
    pool.run(broken, tiny(tmp_path / "run", keys), 2, world=before)
    written = content(step(tmp_path / "run", 2))
    for worker in pool.run(opened, again(tmp_path / "run", keys), world=now):
        for name, tensor in worker.items():
            kind, _, thing = name.partition(":")
            if kind in ("model", "optimizer"):
                assert torch.equal(tensor, written[f"{kind}.safetensors:{thing}"]), name
    workers = pool.run(whole, again(tmp_path / "run", keys), world=now)
    for worker in workers:
        for name, expected in state(single).items():
            torch.testing.assert_close(state(worker)[name], expected, rtol=1e-4, atol=1e-6)
        assert same_bits(state(worker), state(workers[0]))
        assert worker.values == pytest.approx(single.values, abs=1e-6)
    assert len({worker.random["torch"].numpy().tobytes() for worker in workers}) == now


@pytest.mark.parametrize(
    ("parallel", "before", "now"),
    [
        *[(CONSENSUS, 3, 2), (LATE, 2, 1), (WORKER, 2, 3), (ADMM, 1, 2)],
        *(pytest.param(*each, marks=SLOW) for each in [(LATE, 3, 2), (WORKER, 3, 1), (ADMM, 2, 3), (CONSENSUS, 4, 2)]),
    ],
    ids=str,
)
def test_consensus_starts_at_the_mean(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], before: int, now: int
) -> None:
    """At batch 2: 8 windows, 2 after a sync, or with one in flight. The shares of a batch of 7 differ."""
    keys = {**WORDS, "parallel": parallel, "checkpoint.every_batches": 2, "train.batch_size": 7, "train.max_batches": 4}
    pool.run(broken, tiny(tmp_path / "run", keys), 2, world=before)
    written = {n: t for n, t in content(step(tmp_path / "run", 2)).items() if isinstance(t, Tensor)}
    edges = [rank * 7 // before for rank in range(before + 1)]
    shares = [(end - start) / 7 for start, end in pairwise(edges)]
    workers = pool.run(opened, again(tmp_path / "run", keys), world=now)
    checked = 0
    for name, got in workers[0].items():
        kind, _, thing = name.partition(":")
        if kind not in ("model", "optimizer") or thing.endswith("/step"):
            continue
        own = [written[f"rank/{rank}/{kind}.safetensors:{thing}"] for rank in range(before)]
        expected = sum((t.double() * s for t, s in zip(own, shares, strict=True)), torch.zeros(())).float()
        if thing.endswith("/center") and "dual" in parallel:
            expected = written[f"sync.safetensors:center/{thing.removesuffix('/center')}"]
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
        if before > 1 and kind == "model":
            assert not torch.equal(own[0], own[1]), "the workers must differ for their mean to say something"
        checked += 1
    assert checked > 20
    for worker in workers:
        assert not any(name.startswith("own:due") for name in worker)
        for name, tensor in worker.items():
            if name.startswith(("own:dual/", "shared:mean_dual/")):
                assert not tensor.any(), name
            elif not name.startswith("own:") and name != "random":
                assert torch.equal(tensor, workers[0][name]), name
    streams = {worker["random"].numpy().tobytes() for worker in workers}
    assert len(streams) == now
    old = {written[f"rank/{rank}/random.safetensors:torch"].numpy().tobytes() for rank in range(before)}
    assert not streams & old
    finished = pool.run(whole, again(tmp_path / "run", keys), world=now)
    assert [worker.batch for worker in finished] == [4] * now
    assert len({worker.values for worker in finished}) == 1


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_auto_is_another_strategy_there(pool: Pool, tmp_path: Path, before: int, now: int) -> None:
    keys = {**WORDS, "checkpoint.every_batches": 2, "train.max_batches": 4}
    pool.run(broken, tiny(tmp_path / "run", keys), 2, world=before)
    workers = pool.run(whole, again(tmp_path / "run", keys), world=now)
    assert {worker.engine for worker in workers} == {"Replicated NoSync" if now == 1 else "Replicated Consensus"}
    assert [worker.batch for worker in workers] == [4] * now
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["workers"], result["batches"], result["updates"]) == (now, 4, 16)


def test_machines_become_one(pool: Pool, tmp_path: Path) -> None:
    """As many workers, but one replica where there were two: their weights become the mean."""
    keys = {
        **WORDS,
        "parallel": {"strategy": "hierarchical", "sync_every": 3},
        "checkpoint.every_batches": 2,
        "train.max_batches": 3,
    }
    pool.run(broken, tiny(tmp_path / "run", keys), 2, 2, world=4)
    written = content(step(tmp_path / "run", 2))
    name = "recurrent.weight_hh_l0"
    own = [written[f"rank/{rank}/model.safetensors:{name}"] for rank in range(4)]
    for worker in pool.run(opened, again(tmp_path / "run", keys), 1, world=4):
        torch.testing.assert_close(worker[f"model:{name}"], torch.stack(own).mean(0), rtol=1e-6, atol=1e-8)
    finished = pool.run(whole, again(tmp_path / "run", keys), 1, world=4)
    assert [worker.batch for worker in finished] == [3] * 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pixels task on 32 training images; an epoch is 4 batches."""
    folder = tmp_path_factory.mktemp("data")
    for prefix, count in (("train", 40), ("t10k", 10)):
        write_images(folder / "mnist", prefix, some_images(count, count), (np.arange(count) % 10).astype(np.uint8))
    task = {"name": "pixels", "pixels_per_step": 28, "validation": 8}
    keys = {"task": task, "data.root": str(folder), "checkpoint.every_batches": 1}
    for name in ("task.length", "task.examples", "task.validation", "task.test"):
        keys[name] = None
    return keys


def pixels(folder: Path, images: dict[str, Any], more: dict[str, Any]) -> Config:
    """A small run of the pixels task."""
    base = tiny(folder)
    keys = {name: value for name, value in images.items() if value is not None}
    return base.model_validate({**base.model_dump(), **tree({**keys, **more}, base.model_dump())})


def tree(keys: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections, beside what the sections have already."""
    made: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        if name:
            made.setdefault(section, dict(base[section]))[name] = value
        else:
            made[section] = value
    return made


def test_sums_of_an_estimate_are_dealt_anew(pool: Pool, tmp_path: Path, images: dict[str, Any]) -> None:
    """In the middle of the first epoch: the second one's Q knows all its examples, none twice."""
    more = {**GRADIENT, "task": {**images["task"], "target_estimate": "class_mean"}, "train.max_batches": 6}
    pool.run(whole, pixels(tmp_path / "single", images, more), world=1)
    expected = content(step(tmp_path / "single", 6))
    assert not torch.allclose(expected["rank/0/loss.safetensors:table"], torch.tensor(0.1), rtol=1e-2)
    for before, now in ((2, 1), (1, 3)):
        folder = tmp_path / f"{before} to {now}"
        pool.run(broken, pixels(folder, images, more), 2, world=before)
        pool.run(whole, pixels(folder, images, {**more, "resume": "auto"}), world=now)
        got = content(step(folder, 6))
        for rank in range(now):
            table = got[f"rank/{rank}/loss.safetensors:table"]
            torch.testing.assert_close(table, expected["rank/0/loss.safetensors:table"], rtol=1e-4, atol=1e-6)
        for name in ("sums", "counts"):
            total = sum((got[f"rank/{rank}/loss.safetensors:{name}"] for rank in range(now)), torch.zeros(()))
            torch.testing.assert_close(total, expected[f"rank/0/loss.safetensors:{name}"], rtol=1e-4, atol=1e-6)


def test_an_estimate_by_example_is_refused(pool: Pool, tmp_path: Path, images: dict[str, Any]) -> None:
    more = {**GRADIENT, "task": {**images["task"], "target_estimate": "example"}, "data.partition": "fixed"}
    more["train.batch_size"] = 6  # for 2 and for 3
    pool.run(broken, pixels(tmp_path / "run", images, more), 2)
    message = (
        f"{step(tmp_path / 'run', 2)} was written by 2 workers, this run has 3: an estimate by example knows its own "
        "worker's examples only: start 2"
    )
    assert pool.run(refusal, pixels(tmp_path / "run", images, {**more, "resume": "auto"}), world=3) == [message] * 3
    assert pool.run(refusal, pixels(tmp_path / "run", images, {**more, "resume": "auto"}), world=2) == ["accepted"] * 2


def streamed(environment: LaunchEnvironment, config: Config, batch: int) -> str:
    """Interrupt a run of a task that carries states, or, with batch=0, resume it: why it is refused."""
    real, task_factory.build_task = task_factory.build_task, lambda config: Stream()
    try:
        if batch:
            return str(broken(environment, config, batch))
        return refusal(environment, config)
    finally:
        task_factory.build_task = real


def test_carried_states_are_refused_but_at_an_epochs_end(pool: Pool, tmp_path: Path) -> None:
    keys = {
        "parallel": CONSENSUS,
        "checkpoint.every_batches": 1,
        "train.batch_size": 4,
        "fptt.windows": 3,
    }  # an epoch is 5
    folder = tmp_path / "run"
    for batch, refused in ((3, True), (5, False)):
        pool.run(streamed, again(folder, keys), batch)
        message = (
            f"{step(folder, batch)} was written by 2 workers, this run has 1, and the recurrent states carried from "
            "batch to batch cannot be redistributed: start 2, or save at an epoch's end, where there are none"
        )
        assert pool.run(streamed, again(folder, keys), 0, world=1) == [message if refused else "accepted"]
        assert pool.run(streamed, again(folder, keys), 0, world=2) == ["accepted"] * 2


@pytest.mark.parametrize(
    ("parallel", "machines", "weights"),
    [
        *[(CONSENSUS, 1, "weights"), (LATE, 1, "center"), (WORKER, 1, "center")],
        ({"strategy": "hierarchical", "sync_every": 3}, 2, "weights"),  # nodes of unequal weight
    ],
    ids=str,
)
def test_one_process_evaluates_and_exports_what_the_workers_said(
    pool: Pool, tmp_path: Path, parallel: dict[str, Any], machines: int, weights: str
) -> None:
    """In the middle of an interval, where the workers differ; unequal shares."""
    keys = {
        **WORDS,
        "parallel": parallel,
        "checkpoint.every_batches": 2,
        "evaluate.every_batches": 2,
        "train.batch_size": 9,
    }
    config = tiny(tmp_path / "run", {**keys, "evaluate.weights": weights})
    pool.run(broken, config, 2, machines, world=2 * machines)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    [said] = [line for line in lines if line["kind"] == "evaluation" and line["batch"] == 2]
    with isolated():
        assert evaluate_run(tmp_path / "run", "latest")["validation"] == pytest.approx(said["value"], rel=1e-6)
        exported = export_run(tmp_path / "run", tmp_path / "export", "latest")
        network = load_network(exported)
        weight = dict(network.named_parameters())["recurrent.weight_hh_l0"]
    [held] = pool.run(opened, again(tmp_path / "run", {**keys, "evaluate.weights": weights}), world=1)
    name = "optimizer:recurrent.weight_hh_l0/center" if weights == "center" else "model:recurrent.weight_hh_l0"
    torch.testing.assert_close(weight.detach(), held[name], rtol=1e-6, atol=1e-8)


def seen(environment: LaunchEnvironment, config: Config) -> tuple[list[list[int]], list[set[int]]]:
    """The examples' ids of this worker's batches, epoch by epoch, and the labels it met."""
    trainer = open_trainer(environment, config)
    real = trainer.task.train_batch
    ids: list[list[int]] = [[], []]
    labels: list[set[int]] = [set(), set()]

    def noted(epoch: int, cursor: int, size: int, part: slice) -> Any:
        batch = real(epoch, cursor, size, part)
        assert batch.examples is not None
        ids[epoch] += batch.examples.tolist()
        labels[epoch] |= set(batch.targets.tolist())
        return batch

    trainer.task.train_batch = noted
    trainer.fit(StopFlag())
    return ids, labels


@pytest.mark.parametrize("shards", ["shuffled", "fixed", "by_label"])
def test_whose_examples_a_worker_trains(pool: Pool, tmp_path: Path, images: dict[str, Any], shards: str) -> None:
    parallel = {"parallel": WORKER, "data.partition": shards, "train.max_batches": 8, "checkpoint.every_batches": 100}
    workers = pool.run(seen, pixels(tmp_path / "run", images, parallel))
    for epoch in range(2):
        together = sorted(workers[0][0][epoch] + workers[1][0][epoch])
        assert together == list(range(32))
    for ids, labels in workers:
        assert ids[0] != ids[1]
        assert (sorted(ids[0]) == sorted(ids[1])) == (shards != "shuffled")
        assert (len(labels[0]) <= 6) == (shards == "by_label")


def test_dealt_examples_go_on_bit_for_bit(pool: Pool, tmp_path: Path, images: dict[str, Any]) -> None:
    more = {"parallel": WORKER, "data.partition": "by_label", "checkpoint.every_batches": 3, "train.max_batches": 5}
    pool.run(copied, pixels(tmp_path / "run", images, more), [3])
    pool.run(whole, pixels(tmp_path / "run-3", images, {**more, "resume": "auto"}))
    assert differing(*(content(step(tmp_path / name, 5)) for name in ("run", "run-3"))) == []
