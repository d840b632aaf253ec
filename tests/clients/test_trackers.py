"""Trackers, against what they write themselves: nothing leaves the machine."""

import json
import os
import re
import struct
import subprocess
import sys
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import CommError
from wandb.proto import wandb_internal_pb2

from fptt_dist import fit
from tests.program import ROOT
from tests.training.helpers import isolated, records, resumed, tiny, train_until

pytestmark = [pytest.mark.clients, pytest.mark.slow]
KEYS = {"logging.wandb": "long-sequences", "logging.every_batches": 2, "evaluate.every_batches": 3}
PROTOCOL: Any = wandb_internal_pb2  # its classes are made at run time
FIRST_BLOCK, BLOCK, HEADER = 7, 32768, 7  # bytes: of the file's own header, of a block, of a record's header


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with isolated():
        yield


def payloads(content: bytes) -> Iterator[bytes]:
    """The records of a file of wandb's, LevelDB's log format: fragments that cross no block."""
    position, whole = FIRST_BLOCK, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (1, 4):  # a full record, or the last fragment
            yield whole
            whole = b""


def written(run: Path) -> list[list[Any]]:
    """The protocol buffers of each start of a run, in order."""
    starts = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        parse = PROTOCOL.Record.FromString
        starts.append([parse(payload) for payload in payloads(file.read_bytes())])
    return starts


def items(entries: Any) -> dict[str, Any]:
    """Keys and values."""
    return {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in entries}


def history(start: list[Any]) -> dict[int, dict[str, Any]]:
    """The values at each step."""
    rows = [items(record.history.item) for record in start if record.HasField("history")]
    return {row["_step"]: {key: value for key, value in row.items() if not key.startswith("_")} for row in rows}


def test_wandb_has_config_metrics_and_result_and_continues_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(tiny(run, KEYS), 4)
    result = fit(resumed(tiny(run, KEYS)))
    first, second = written(run)
    for start in (first, second):
        [begun] = [record.run for record in start if record.HasField("run")][:1]
        assert (begun.project, begun.run_id, begun.display_name) == ("long-sequences", result.run_id, "run")
        config = items(begun.config.update)
        assert config["model"]["hidden"] == 4
        assert config["workers"] == 1
    assert [record.exit.exit_code for start in (first, second) for record in start if record.HasField("exit")] == [1, 0]
    rows = history(first) | history(second)
    assert sorted(rows) == [2, 3, 4, 6, 8, 9, 10]
    for line in records(run, "train"):
        row = rows[line["batch"]]
        assert row["train/loss"] == line["loss"]
        assert [row[f"train/window_losses/00{k}"] for k in (1, 2, 3)] == line["window_losses"]
    for line in records(run, "evaluation"):
        if line["split"] == "validation":
            assert rows[line["batch"]]["validation/mse"] == line["value"]
    updates = [items(record.summary.update) for record in second if record.HasField("summary")]
    assert dict(ChainMap(*updates))["result/value"] == result.value


def test_a_failure_of_wandb_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise CommError("no network")

    for name, owner in (("init", wandb), ("log", wandb.Run), ("finish", wandb.Run)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            assert fit(tiny(tmp_path / name, KEYS, batches=3)).batches == 3
        assert caplog.text.count("logging.wandb=long-sequences: CommError: no network: the run continues") == 1
        caplog.clear()


@pytest.mark.parametrize("example", ["mlflow_tracker.py", "trackio_tracker.py"])
def test_the_examples_resume_in_one_run(example: str, tmp_path: Path) -> None:
    stores = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, "--resume"],
        cwd=tmp_path,
        env={**os.environ, **stores, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    end = re.search(r"^4 losses in one run, the last one at batch 40, test error ([\d.]+)$", done.stdout, re.MULTILINE)
    assert end is not None, done.stdout
    result = json.loads((tmp_path / "runs" / example.partition("_")[0] / "result.json").read_text())
    assert float(end[1]) == pytest.approx(result["value"], abs=1e-4)
