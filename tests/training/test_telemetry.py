"""What a run says of itself, against the same numbers computed another way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.config import Config
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.tasks import Adding
from fptt_dist.training.run import train
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.dry_run import dry_run
from fptt_dist.training.trainer import Trainer
from tests.parallel.pool import Pool
from tests.parallel.runs import train as train_on_workers
from tests.training.helpers import checkpoints, content, records, result, tiny

FIELDS = {
    *("kind", "batch", "epoch", "cursor", "updates", "sequences", "seconds", "loss", "window_losses", "gradient_norm"),
    *(
        "regularizer_ratio",
        "center_distance",
        "dual_norm",
        "lr",
        "alpha",
        "sequences_per_second",
        "data_wait",
        "memory_bytes",
        "time",
    ),
}
ALPHA = 0.7


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_a_record_is_what_it_says(tmp_path: Path) -> None:
    # With one window, the norms before batch n's update belong to the checkpoint of batch n − 1.
    overrides = {"fptt.windows": 1, "fptt.alpha": ALPHA, "checkpoint.every_batches": 1, "checkpoint.keep_last": 99}
    run = tmp_path / "run"
    train(tiny(run, overrides, batches=7))
    lines = records(run, "train")
    assert [line["batch"] for line in lines] == list(range(1, 8))
    assert all(set(line) >= FIELDS for line in lines)
    assert [(line["epoch"], line["cursor"]) for line in lines] == [(n // 5, n % 5 * 4 + 4) for n in range(7)]
    assert [(line["updates"], line["sequences"]) for line in lines] == [(n, 4 * n) for n in range(1, 8)]
    network = Network(recurrent_layer("lstm", 2, 4), 4, 1, output_steps="last")
    names = [name for name, _ in network.named_parameters()]
    task = Adding(length=12, examples=20)
    for folder, line in zip(checkpoints(run)[1:-1], lines[2:], strict=True):
        saved = content(folder)
        weights = {name: saved[f"model.safetensors:{name}"] for name in names}
        center = {name: saved[f"optimizer.safetensors:{name}/center"] for name in names}
        dual = {name: saved[f"optimizer.safetensors:{name}/scaled_dual"] for name in names}
        network.load_state_dict(weights)
        number = line["batch"] - 1
        batch = task.train_batch(number // 5, number % 5 * 4, 4, slice(0, 4))
        loss = functional.mse_loss(network(batch.inputs)[0][-1], batch.targets)
        gradient = norm(list(torch.autograd.grad(loss, list(network.parameters()))))
        regularizer = norm([ALPHA * (weights[name] - center[name] - dual[name]) for name in names])
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(gradient, rel=1e-5)
        assert line["center_distance"] == pytest.approx(norm([weights[n] - center[n] for n in names]), rel=1e-5)
        assert line["dual_norm"] == pytest.approx(norm([ALPHA * dual[name] for name in names]), rel=1e-5)
        assert line["regularizer_ratio"] == pytest.approx(regularizer / gradient, rel=1e-4)
        assert regularizer > 0


TRAFFIC = {"collectives", "bytes_sent", "blocked_seconds", "blocked_share"}


@pytest.mark.parametrize("strategy", ["single", "data_parallel", "consensus"])
def test_one_worker_has_no_traffic(strategy: str, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", {"parallel.strategy": strategy}, batches=3))
    for line in records(tmp_path / "run", "train"):
        assert not TRAFFIC & set(line)
        assert ("drift" in line) == (strategy == "consensus")
        assert line.get("drift", 0.0) == 0.0


def lstm_parameters(hidden: int) -> int:
    return 4 * hidden * (2 + hidden) + 8 * hidden + hidden + 1


def two_workers(pool: Pool, run: Path, overrides: dict[str, Any], *, batches: int = 7) -> list[dict[str, Any]]:
    """The training records of a run on two workers."""
    pool.run(train_on_workers, tiny(run, overrides, batches=batches))
    return records(run, "train")


def planned(pool: Pool, run: Path, overrides: dict[str, Any]) -> list[list[str]]:
    """What `--dry-run` says of the traffic, on each worker."""
    return pool.run(traffic_of_dry_run, tiny(run, overrides))


def traffic_of_dry_run(environment: LaunchEnvironment, config: Config) -> list[str]:
    return dry_run(Trainer(RunDirectory(config), environment, torch.device("cpu"))).traffic


# bytes a batch of K = 3 windows, by the collectives' names: P parameters, of 6 tensors
P, TENSORS = lstm_parameters(4), 6
RATES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, int]]]] = {
    "gradient": ({"parallel.strategy": "data_parallel"}, {"gradients": (3, 3 * 4 * (P + TENSORS + 2))}),
    "auto": ({}, {"sync": (1, 4 * (3 * P + 2))}),
    "each window": ({"parallel.strategy": "consensus", "parallel.sync_every": 1}, {"sync": (3, 3 * 4 * (P + 2))}),
    "center": (
        {"parallel.strategy": "consensus", "parallel.weight_sync": "center"},
        {"sync": (1, 4 * (2 * P + 2))},
    ),
    "bf16": ({"parallel.strategy": "consensus", "parallel.sync_dtype": "bf16"}, {"sync": (1, 2 * (3 * P + 2))}),
    "worker": ({"parallel.strategy": "consensus", "parallel.dual": "local"}, {"sync": (1, 4 * (P + 3))}),
    "baseline": ({"parallel.strategy": "consensus", "algorithm": "tbptt_accumulated"}, {"sync": (1, 4 * (P + 2))}),
}


@pytest.mark.parametrize("case", RATES)
def test_what_two_workers_sent(case: str, pool: Pool, tmp_path: Path) -> None:
    """Records hold what was sent since the last one, by the collectives' names, to the byte; and a dry run knew it."""
    overrides, rates = RATES[case]
    lines = two_workers(pool, tmp_path / "run", {**overrides, "evaluate.every_batches": 100}, batches=5)
    assert [line["batch"] for line in lines] == list(range(1, 6))
    assert lines[1]["collectives"]["first batch done"]["calls"] == 1
    for line in lines[2:]:  # the first two have the start
        found = {name: (cost["calls"], cost["bytes"]) for name, cost in line["collectives"].items()}
        metrics = found.pop("metrics")
        assert found == rates
        assert metrics[0] == 1  # the losses of the record itself
        assert line["bytes_sent"] == metrics[1] + sum(size for _, size in rates.values())
        seconds = sum(cost["seconds"] for cost in line["collectives"].values())
        assert line["blocked_seconds"] == pytest.approx(seconds)
        assert line["blocked_share"] > 0.0
    name, (calls, size) = next(iter(rates.items()))
    each = size // calls
    said = planned(pool, tmp_path / "planned", overrides)
    assert said[0] == said[1]
    what = (
        "the gradients, at every update"
        if name == "gradients"
        else f"the synchronized tensors, every {3 // calls} updates"
    )
    if case == "baseline":
        what = "the synchronized tensors, every 1 updates"
    assert said[0] == [
        f"payload: {what}, {each / 2**20:.3f} MiB each",
        f"  per batch of sequences: {calls:g} collectives, {size / 2**20:.3f} MiB per worker",
        f"  data-parallel BPTT:     1 collective, {4 * P / 2**20:.3f} MiB per worker",
    ]
    assert not (tmp_path / "planned").exists()


def test_the_drift_is_how_far_the_workers_were_apart(pool: Pool, tmp_path: Path) -> None:
    """With a sync every 6 updates it is looked at with every third, for the first time with the first."""
    overrides = {"parallel.strategy": "consensus", "parallel.sync_every": 6}
    lines = two_workers(pool, tmp_path / "run", overrides, batches=8)
    drift = [line["drift"] for line in lines]
    assert drift[0] == 0.0
    assert all(0.0 < value < 0.5 for value in drift[1:])
    assert drift[1:7] == [drift[1]] * 6
    assert drift[7] != drift[1]
    assert "drift" not in two_workers(pool, tmp_path / "gradient", {"parallel.strategy": "data_parallel"})[0]


def test_tensorboard_shows_the_traffic(pool: Pool, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    two_workers(pool, tmp_path / "run", {"logging.tensorboard": True}, batches=2)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (_, line) = records(tmp_path / "run", "train")
    for tag, field in (("drift", "drift"), ("bytes_sent", "bytes_sent"), ("blocked_share", "blocked_share")):
        event = board.Scalars(f"Consensus/{tag}")[-1]
        assert (event.step, event.value) == (2, pytest.approx(line[field], rel=1e-6))


def test_the_first_record_has_no_force_yet(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", {"fptt.windows": 1}, batches=1))
    (line,) = records(tmp_path / "run", "train")
    assert (line["regularizer_ratio"], line["center_distance"], line["dual_norm"]) == (0.0, 0.0, 0.0)


def test_baselines_have_no_force(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", {"algorithm": "tbptt"}, batches=3))
    assert all(
        (line["regularizer_ratio"], line["alpha"], line["dual_norm"]) == (0, 0, 0)
        for line in records(tmp_path / "run", "train")
    )


@pytest.mark.parametrize("every", [1, 2, 3])
def test_records_come_when_asked_for(every: int, tmp_path: Path) -> None:
    overrides = {"logging.every_batches": every, "evaluate.every_batches": 2, "fptt.windows": 4}
    train(tiny(tmp_path / "run", overrides, batches=7))
    lines = records(tmp_path / "run", "train")
    assert [line["batch"] for line in lines] == [n for n in range(1, 8) if n % every == 0]
    assert all(len(line["window_losses"]) == 4 for line in lines)
    assert all(line["loss"] == sum(line["window_losses"]) / 4 for line in lines)
    validations = [line for line in records(tmp_path / "run", "evaluation") if line["split"] == "validation"]
    assert [line["batch"] for line in validations] == [2, 4, 6, 7]


def test_the_clock_moves_on(tmp_path: Path) -> None:
    outcome = train(tiny(tmp_path / "run", batches=3))
    lines = records(tmp_path / "run", "train")
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert all(0 < line["sequences_per_second"] < 1e6 and line["memory_bytes"] > 1e6 for line in lines)
    assert outcome.seconds == seconds[-1]
    assert outcome.sequences_per_second == pytest.approx(12 / outcome.seconds)


def test_no_escape_codes_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny(tmp_path / "run", batches=6))
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    assert [line.split(":")[0] for line in err.splitlines()] == ["batch 5", "batch 6", "batch 6"]


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("gru", 1), ("rnn", 2)])
def test_the_result_is_right(cell: str, layers: int, tmp_path: Path) -> None:
    run, hidden = tmp_path / "run", 6
    overrides: dict[str, Any] = {"model.layer": cell, "model.hidden": hidden, "model.layers": layers, "seed": 5}
    outcome = train(tiny(run, {**overrides, "evaluate.every_batches": 2}, batches=7))
    saved = result(run)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    inputs = [2, *[hidden] * (layers - 1)]
    recurrent = sum(gates * hidden * (size + hidden) + 2 * gates * hidden for size in inputs)
    expected = {
        "task": "adding",
        "algorithm": "fptt",
        "metric": "mse",
        "higher_is_better": False,
        "weights": "center",
        "updates": 3 * 7,
        "batches": 7,
        "stopped_early": False,
        "sequences": 28,
        "parameters": recurrent + hidden + 1,
        "recurrent_parameters": recurrent,
        "workers": 1,
        "seed": 5,
    }
    assert {key: saved[key] for key in expected} == expected
    assert {**saved, "path": run} == json.loads(json.dumps(outcome.__dict__, default=str)) | {"path": outcome.path}
    measured = {"value", "validation", "metrics", "best_batch", "seconds", "sequences_per_second", "peak_memory_bytes"}
    assert set(saved) == {*expected, *measured, "run_id", "versions", "unknown_tokens"}
    assert set(saved["versions"]) == {"fptt_dist", "python", "torch", "numpy", "platform", "processor", "gpu"}
    assert saved["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("weights", ["auto", "center", "weights"])
def test_the_best_checkpoint_is_the_one_tested(weights: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = {
        "evaluate.every_batches": 1,
        "evaluate.weights": weights,
        "optimizer.lr": 0.05,
        "checkpoint.keep_last": 99,
    }
    outcome = train(tiny(run, overrides, batches=20))
    lines = [line for line in records(run, "evaluation") if line["split"] == "validation"]
    best = min(lines, key=lambda line: line["value"])
    assert (outcome.best_batch, outcome.validation) == (best["batch"], best["value"])
    assert outcome.best_batch < 20  # otherwise the latest would do
    assert evaluate_run(run) == {
        "validation": outcome.validation,
        "test": outcome.value,
        "metrics": {"validation": {"mse": outcome.validation}, "test": {"mse": outcome.value}},
    }
    assert evaluate_run(run, "latest")["test"] != outcome.value

    saved = content(run / "checkpoints" / f"step-{outcome.best_batch:08d}")
    network = Network(recurrent_layer("lstm", 2, 4), 4, 1, output_steps="last")
    where = "model.safetensors:{}" if weights == "weights" else "optimizer.safetensors:{}/center"
    network.load_state_dict({name: saved[where.format(name)] for name, _ in network.named_parameters()})
    (batch,) = Adding(length=12, test=16).evaluation_batches("test", 0, 1)
    with torch.no_grad():
        error = (network(batch.inputs)[0][-1].double() - batch.targets.double()).square().mean().item()
    assert outcome.value == pytest.approx(error, rel=1e-6)
