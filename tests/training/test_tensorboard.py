"""TensorBoard's own reader finds the scalars and the hyper-parameters."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fptt_dist import train
from tests.training.helpers import records, resumed, tiny, train_until

BOARD = {"telemetry.tensorboard": True, "evaluate.every": 2}


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(run)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_scalars_are_the_records(run: Path) -> None:
    found = scalars(run)
    lines = records(run, "train")
    tags = {
        "Loss/train": "loss",
        "Loss/gradient_norm": "gradient_norm",
        "FPTT/force_over_gradient": "force_ratio",
        "FPTT/center_distance": "center_distance",
        "FPTT/dual_norm": "dual_norm",
        "FPTT/alpha": "alpha",
        "FPTT/lr": "lr",
        "Speed/sequences_per_second": "sequences_per_second",
        "Speed/memory_bytes": "memory_bytes",
    }
    for tag, field in tags.items():
        assert [step for step, _ in found[tag]] == [line["batch"] for line in lines], tag
        assert [value for _, value in found[tag]] == pytest.approx([line[field] for line in lines], rel=1e-6), tag
    for k in range(3):
        values = [value for _, value in found[f"Windows/loss_{k + 1:03d}"]]
        assert values == pytest.approx([line["window_losses"][k] for line in lines], rel=1e-6)
    for split in ("validation", "test"):
        evaluations = [line for line in records(run, "evaluation") if line["split"] == split]
        steps, values = zip(*found[f"Loss/{split}_mse"], strict=True)
        assert list(steps) == [line["batch"] for line in evaluations]
        assert list(values) == pytest.approx([line["value"] for line in evaluations], rel=1e-6)


def test_scalars(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", BOARD, batches=6))
    assert_scalars_are_the_records(tmp_path / "run")


def test_hyper_parameters(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    outcome = train(tiny(tmp_path / "run", BOARD, batches=4))
    plugin = read(tmp_path / "run").SummaryMetadata("_hparams_/session_start_info").plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)  # type: ignore[attr-defined]
    values = data.session_start_info.hparams
    assert values["optimizer.lr"].number_value == 0.01
    assert values["algorithm"].string_value == "fptt"
    assert values["fptt.windows"].number_value == 3
    assert values["telemetry.tensorboard"].number_value == 1
    assert values["train.epochs"].string_value == "None"
    assert scalars(tmp_path / "run")["hparam/mse"][0][1] == pytest.approx(outcome.value, rel=1e-6)


def test_a_resumed_run_shows_each_batch_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    parts = tiny(run, {**BOARD, "checkpoint.every": 2}, batches=6)
    train_until(parts, 5)
    # A kill after batch 5: the run goes on from batch 4.
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    train(resumed(parts))
    assert_scalars_are_the_records(run)


def test_none_when_not_asked_for(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=1))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["batches"] == 1
