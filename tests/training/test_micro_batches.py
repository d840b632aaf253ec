"""Micro-batches are the whole batch up to rounding; bfloat16 trains; updates are counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist import train
from tests.training.helpers import checkpoints, content, records, result, tiny

FPTT: dict[str, dict[str, Any]] = {
    "explicit": {},
    "prox": {"fptt.update": "prox"},
    "algorithm2": {"fptt.update": "algorithm2"},
    "preconditioned": {"fptt.metric": "preconditioned"},
}
BASELINES: dict[str, dict[str, Any]] = {name: {"algorithm": name} for name in ("online", "tbptt", "bptt_aux", "bptt")}
ALL = {**FPTT, **BASELINES}
SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.1}  # Adam's first steps are the gradient's sign, which rounding turns


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("case", ALL)
def test_micro_batches_are_the_batch(case: str, micro: int, tmp_path: Path) -> None:
    optimizer = {} if case == "preconditioned" else SGD
    train(tiny(tmp_path / "whole", {**ALL[case], **optimizer}, batches=3))
    train(tiny(tmp_path / "micro", {**ALL[case], **optimizer, "train.micro_batch_size": micro}, batches=3))
    whole, parts = (content(checkpoints(tmp_path / name)[-1]) for name in ("whole", "micro"))
    for name in (name for name in whole if name.startswith(("model.", "optimizer."))):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5, msg=name)
    for one, other in zip(records(tmp_path / "whole", "train"), records(tmp_path / "micro", "train"), strict=True):
        assert one["window_losses"] == pytest.approx(other["window_losses"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("case", ALL)
def test_bfloat16_trains(case: str, tmp_path: Path) -> None:
    train(tiny(tmp_path / "wide", ALL[case], batches=3))
    train(tiny(tmp_path / "run", {**ALL[case], "train.precision": "bf16"}, batches=3))
    narrow, wide = records(tmp_path / "run", "train"), records(tmp_path / "wide", "train")
    assert all(math.isfinite(line["loss"]) for line in narrow)
    assert narrow != wide
    assert narrow[0]["loss"] == pytest.approx(wide[0]["loss"], rel=0.05)
    saved = content(checkpoints(tmp_path / "run")[-1])
    tensors = {k: v for k, v in saved.items() if k.startswith(("model.", "optimizer."))}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("case", ALL)
def test_updates_are_counted(case: str, tmp_path: Path) -> None:
    outcome = train(tiny(tmp_path / "run", {**ALL[case], "fptt.windows": 4}, batches=3))
    each = 4 if case in FPTT or case == "online" else 1
    assert outcome.updates == 3 * each
    assert result(tmp_path / "run")["updates"] == 3 * each
    assert [line["updates"] for line in records(tmp_path / "run", "train")] == [each, 2 * each, 3 * each]
    saved = content(checkpoints(tmp_path / "run")[-1])
    assert saved["optimizer.safetensors:readout.bias/step"] == 3 * each
