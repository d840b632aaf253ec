"""Runs with train.compile_update=true: the same to rounding, resumed bit for bit, and what cannot be compiled."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.training.run import train
from tests.training.helpers import assert_same_run, resumed, tiny, train_until, trainer_for

COMPILED = {"train.compile_update": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"algorithm": "tbptt", "optimizer.name": "sgd"},
        {"fptt.metric": "preconditioned", "fptt.clip_scope": "gradient", "optimizer.name": "adamw"},
        {"fptt.reset_weights": True, "fptt.reset_dual": True, "fptt.schedule.name": "linear"},
    ],
    ids=str,
)
def test_a_compiled_run_is_the_plain_one_and_resumes_exactly(keys: dict[str, Any], tmp_path: Path) -> None:
    """In the middle of an epoch; the first update after it is compiled, as it was in the run that went straight on."""
    straight = train(tiny(tmp_path / "straight", {**COMPILED, **keys}))
    parts = tiny(tmp_path / "parts", {**COMPILED, **keys})
    train_until(parts, 4)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    plain = train(tiny(tmp_path / "plain", keys))
    assert straight.value == pytest.approx(plain.value, rel=1e-4)


def test_what_cannot_be_compiled_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"optimizer.name": "rmsprop", **COMPILED}
    trainer = trainer_for(tiny(tmp_path, keys))
    assert trainer.optimizer.fused_update is None
    assert (
        "train.compile_update=true leaves the update as it is: SGD, Adam and AdamW can be fused, not RMSprop"
        in caplog.text
    )
