"""The benchmarks of speed, tiny, through their command lines; and that what they compare does the same."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import throughput
from benchmarks.naive import NaiveFPTT
from tests.training.helpers import isolated

TINY = throughput.Case(hidden=5, layers=1, length=12, batch=4, windows=(3, 12))
CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "folder" / "speed.json"
    words = ["--case", "small", "--windows", "2,7", "--repeats", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["throughput", *words])
    with isolated():
        throughput.main()
    out = capsys.readouterr().out
    lines = [line.split(" | ")[0].strip("| ") for line in out.splitlines() if line.startswith("|")]
    assert lines == ["method", "---|---|---|---|---", "bptt", *["tbptt_accumulated", "tbptt", "fptt", "naive"] * 2]
    written = json.loads(file.read_text())["small, cpu"]
    assert written["hidden"] == 64
    assert [(row["method"], row["windows"]) for row in written["rows"][:2]] == [("bptt", 1), ("tbptt_accumulated", 2)]
    for row in written["rows"]:
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0.0
        assert 0.0 < row["share"] < 1.0


@pytest.mark.parametrize("windows", [1, 3, 12])
def test_the_textbook_transcription_goes_where_fptt_goes(windows: int) -> None:
    """Else their times could not be compared."""
    batch = throughput.RandomPixels(TINY).train_batch(0, 0, TINY.batch, slice(0, TINY.batch))
    ours = throughput.loop(TINY, "fptt", windows, CPU)
    naive = NaiveFPTT(
        throughput.network(TINY, CPU),
        windows=windows,
        alpha=throughput.ALPHA,
        lr=throughput.RATE,
        max_norm=throughput.MAX_NORM,
    )
    before = [p.detach().clone() for p in naive.network.parameters()]
    for _ in range(3):
        ours.run(batch)
        naive.run(batch)
    _, centers, duals = ours.optimizer.slow_state()
    for i, (p, q) in enumerate(zip(ours.model.parameters(), naive.network.parameters(), strict=True)):
        assert (q - before[i]).abs().max() > 1e-3
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(centers[i], naive.centers[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(throughput.ALPHA * duals[i], naive.duals[i], rtol=1e-3, atol=1e-5)


def test_the_peer_is_measured_where_it_is_installed_and_else_told_how() -> None:
    rows = throughput.measure(TINY, TINY.windows, CPU, 1, fused=False)
    found = [row for row in rows if row.method == "spikingjelly"]
    text = throughput.table(TINY, rows, TINY.windows, absolute=True)
    if importlib.util.find_spec("spikingjelly") is None:
        assert not found
        assert f"`{throughput.INSTALL}`" in text
    else:
        assert [row.windows for row in found] == [12]
    assert {line.count("|") for line in text.splitlines()} == {7}
