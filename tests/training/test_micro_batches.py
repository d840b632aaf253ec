"""Micro-batches are the whole batch up to rounding; bfloat16 trains; updates are counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.training.run import train
from tests.training.helpers import checkpoints, content, records, result, tiny

FPTT: dict[str, dict[str, Any]] = {
    "gradient": {},
    "proximal": {"fptt.update_rule": "proximal"},
    "second_gradient": {"fptt.update_rule": "second_gradient"},
    "preconditioned": {"fptt.metric": "preconditioned"},
}
BASELINES: dict[str, dict[str, Any]] = {
    name: {"algorithm": name} for name in ("tbptt", "tbptt_accumulated", "bptt_aux", "bptt")
}
ALL = {**FPTT, **BASELINES}
SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.1}  # Adam's first steps are the gradient's sign, which rounding turns


def test_micro_batches_are_the_batch_and_its_updates(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for number, (case, keys) in enumerate(ALL.items()):
        with subtests.test(case=case):
            one, other = tmp_path / case / "whole", tmp_path / case / "micro"
            overrides = keys if case == "preconditioned" else {**keys, **SGD}
            train(tiny(one, overrides, batches=3))
            outcome = train(tiny(other, {**overrides, "train.micro_batch_size": 1 + number % 2}, batches=3))
            whole, parts = (content(checkpoints(run)[-1]) for run in (one, other))
            for name in (name for name in whole if name.startswith(("model.", "optimizer."))):
                torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5, msg=name)
            lines = records(other, "train")
            for left, right in zip(records(one, "train"), lines, strict=True):
                assert left["window_losses"] == pytest.approx(right["window_losses"], rel=1e-5)
                assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)
            each = 3 if case in FPTT or case == "tbptt" else 1
            assert outcome.updates == result(other)["updates"] == 3 * each
            assert [line["updates"] for line in lines] == [each, 2 * each, 3 * each]


@pytest.mark.parametrize("case", ["gradient", "second_gradient", "preconditioned", "bptt"])
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
