"""The scaling benchmark: run tiny, for real, and what it makes of its timings."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import DDP, ONE, SCALINGS, Size, main, merged, table
from tests.training.helpers import isolated

SIZE = Size(length=784, windows=28, hidden=128, batch=100, workers=2, batches=1)


def row(scaling: str, name: str, seconds: float, blocked: float = 0.0) -> dict[str, Any]:
    sequences = 200 if scaling == "weak" else 100
    return {
        "scaling": scaling,
        "name": name,
        "sequences": sequences,
        "updates": 28,
        "seconds": seconds,
        "blocked": blocked,
    }


def test_a_batch_takes_as_long_as_its_slowest_worker() -> None:
    ranks = [[row("", ONE, 1.0), row("weak", "gradient", 2.0, 0.3)], [row("weak", "gradient", 3.0, 0.1)]]
    one, both = merged(ranks)
    assert one == ranks[0][0]
    assert both == {**ranks[0][1], "seconds": 3.0, "blocked": pytest.approx(0.2)}


def test_ratios_are_taken_within_a_round() -> None:
    # In the second round the machine is half as fast: the ratios are the same.
    names = list(SIZE.rows())
    rounds = [
        [row("", ONE, speed), *(row(s, n, 1.25 * speed, 0.25 * speed) for s in SCALINGS for n in names)]
        for speed in (1.0, 2.0)
    ]
    lines = table(rounds, SIZE).splitlines()
    assert len(lines) == 2 + 2 * len(names)
    assert "| weak | gradient | 200 | 28 | 1.60 (1.60–1.60) | 80% | 20.0 % (20.0–20.0) |" in lines
    assert "| strong | gradient | 100 | 28 | 0.80 (0.80–0.80) | 40% | 20.0 % (20.0–20.0) |" in lines


@pytest.mark.slow
def test_tiny_and_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--length", "28", "--windows", "4", "--hidden", "8", "--batch", "8", "--rounds", "2", "--batches", "1"]
    file = tmp_path / "scaling.json"
    monkeypatch.setattr(sys, "argv", ["scaling", *keys, "--json", str(file)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as it sets itself
    with isolated():
        main()
    out = capsys.readouterr().out
    rounds = json.loads(file.read_text())["rounds"]
    assert len(rounds) == 2
    for one, *rows in rounds:
        assert (one["name"], one["sequences"]) == (ONE, 8)
        assert {each["sequences"] for each in rows if each["scaling"] == "weak"} == {16}
        assert {each["sequences"] for each in rows if each["scaling"] == "strong"} == {8}
        assert {each["updates"] for each in (one, *rows)} == {4}
        assert all((each["blocked"] > 0) == (each["name"] in SENT) for each in (one, *rows))
    assert out.count("| weak |") == out.count("| strong |") == 5


SENT = {
    "gradient",
    "consensus, sync_every=4 (once per batch)",
    "consensus, sync_every=1",
    DDP,  # its flags: torch does not tell of its gradients
}
