"""On an NVIDIA GPU: `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.training.run import train
from fptt_dist.training.tools.dynamic_evaluation import evaluate_dynamically
from tests.training.helpers import assert_same_run, checkpoints, content, differing, resumed, tiny, train_until
from tests.training.test_language_runs import CASES
from tests.training.texts import AWD, tiny_text

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("algorithm", ["fptt", "bptt"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_run_on_the_gpu_resumes_exactly(algorithm: str, cell: str, tmp_path: Path) -> None:
    keys = {"device": "cuda", "algorithm": algorithm, "model": {"layer": cell, "layers": 2, "dropout": 0.3}}
    train(tiny(tmp_path / "straight", keys))
    parts = tiny(tmp_path / "parts", keys)
    train_until(parts, 4)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_data_workers_send_the_gpu_the_same_batches(tmp_path: Path) -> None:
    for workers in (0, 2):
        train(tiny(tmp_path / str(workers), {"device": "cuda", "data.workers": workers}))
    assert_same_run(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize("metric", ["euclidean", "preconditioned"])
def test_the_gpu_trains_as_the_cpu_does(metric: str, tmp_path: Path) -> None:
    values = {}
    for device in ("cpu", "cuda"):
        config = tiny(tmp_path / device, {"device": device, "fptt.metric": metric, "optimizer.lr": 1e-3})
        values[device] = train(config).value
    assert values["cuda"] == pytest.approx(values["cpu"], rel=1e-3)
    assert torch.cuda.max_memory_allocated() > 0


@pytest.mark.parametrize("case", ["fptt", "awd", "awd_experts", "nt_asgd", "bf16", "antisymmetric"])
def test_a_text_on_the_gpu_resumes_exactly(case: str, tmp_path: Path) -> None:
    """The dropped weights, whose order is cuDNN's, included: a warning of torch's would fail the test."""
    keys = {"device": "cuda", **CASES[case]}
    train(tiny_text(tmp_path / "straight", keys))
    parts = tiny_text(tmp_path / "parts", keys)
    train_until(parts, 4)
    train(resumed(parts))
    newest = [checkpoints(tmp_path / name)[-1] for name in ("straight", "parts")]
    assert differing(content(newest[0]), content(newest[1])) == []


def test_dynamic_evaluation_differentiates_cudnns_layers(tmp_path: Path) -> None:
    train(tiny_text(tmp_path / "run", {"device": "cuda", **AWD}))
    found = evaluate_dynamically(tmp_path / "run")
    assert found["validation"] <= found["static_validation"]


@pytest.mark.parametrize("keys", [{}, {"algorithm": "tbptt"}, {"algorithm": "bptt"}, {"model.dropout": 0.3}], ids=str)
def test_a_captured_run_is_the_run_itself(
    keys: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, moments, W̄, u and the metric of a run whose batches are replayed, against one window after another."""
    fast = {"device": "cuda", "model.layers": 2, "logging.every_batches": 4, "train.compile_update": True, **keys}
    for name, captured in (("graph", True), ("eager", False)):
        train(tiny(tmp_path / name, {**fast, "train.cuda_graph": captured}, batches=20))
    newest = [checkpoints(tmp_path / name)[-1] for name in ("graph", "eager")]
    assert differing(content(newest[0]), content(newest[1])) == []
    assert "not captured" not in caplog.text


def test_a_captured_run_resumes_exactly(tmp_path: Path) -> None:
    keys = {
        "device": "cuda",
        "logging.every_batches": 4,
        "train.compile_update": True,
        "train.cuda_graph": True,
        "model.layer": "gru",
    }
    train(tiny(tmp_path / "straight", keys, batches=20))
    parts = tiny(tmp_path / "parts", keys, batches=20)
    train_until(parts, 9)
    train(resumed(parts))
    newest = [checkpoints(tmp_path / name)[-1] for name in ("straight", "parts")]
    assert differing(content(newest[0]), content(newest[1])) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_compiled_update_is_the_plain_one(optimizer: str, tmp_path: Path) -> None:
    values = {}
    for compiled in (True, False):
        keys = {"device": "cuda", "optimizer.name": optimizer, "optimizer.lr": 1e-3, "train.compile_update": compiled}
        values[compiled] = train(tiny(tmp_path / str(compiled), keys)).value
    assert values[True] == pytest.approx(values[False], rel=1e-4)
