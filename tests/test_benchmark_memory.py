"""The memory benchmark: run tiny, for real, and what it reads off its points."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import _bytes, draw, fitting, line_of, longest, main, table, verdicts
from tests.training.helpers import isolated

MIB = 2**20


def points(method: str, rises: dict[int, float | None]) -> list[dict[str, Any]]:
    """Points of one repeat; None does not fit."""
    found = []
    for length, rise in rises.items():
        repeat = {"fits": rise is not None, "input": 32 * length, **({} if rise is None else {"rise": rise})}
        found.append({"method": method, "length": length, "repeats": [repeat]})
    return found


def test_a_line_through_points_that_lie_on_one() -> None:
    slope, start, off = line_of(points("bptt", {t: 1000.0 * t + 5000 for t in (10, 100, 1000)}))
    assert (slope, start) == (pytest.approx(1000), pytest.approx(5000))
    assert off < 1e-9
    assert longest(slope, start, 1_005_000) in (999, 1000)
    bent = points("bptt", {10: 10.0, 100: 100.0, 1000: 2000.0})
    assert line_of(bent)[2] > 0.1


def test_flat_means_within_five_percent() -> None:
    for last, word in ((10.4, ": flat: the largest is 4.0%"), (10.6, ": NOT flat: the largest")):
        found = points("fptt", {784: 10.0 * MIB, 65536: last * MIB})
        [said] = verdicts(found, 2**30, 2**31, 8)
        assert word in said
        # only the input's 32 bytes a step come on top of the largest
        assert f"T, at about {int((2**30 - last * MIB) / 32):,} in 1 GiB" in said


def test_what_does_not_fit_is_said_so_and_counts_for_nothing() -> None:
    found = points("bptt", {100: 1.0 * MIB, 200: 2.0 * MIB, 400: None})
    assert [point["length"] for point in fitting(found, "bptt")] == [100, 200]
    lines = table(found).splitlines()
    assert lines[-2].startswith("| 200 | 0.0 | 2.0 (2.0–2.0) | 2.00 |")
    assert lines[-1] == "| 400 | 0.0 | does not fit | |"


def test_sizes() -> None:
    assert [_bytes(text) for text in ("4GiB", "0.5GiB", "20MiB")] == [2**32, 2**29, 20 * MIB]
    for text in ("4", "GiB", "4GB", "-1GiB", "1.2.3GiB"):
        with pytest.raises(argparse.ArgumentTypeError, match="type such as 4GiB"):
            _bytes(text)


def test_the_picture(tmp_path: Path) -> None:
    found = points("bptt", {784: 1e7, 1568: 2e7, 3136: None}) + points("fptt", {784: 1e6, 1568: 1e6, 3136: 1e6})
    draw(found, 2**25, 8, 16, tmp_path / "deep" / "memory.png")
    assert (tmp_path / "deep" / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_tiny_and_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--lengths", "280", "560", "--batch", "16", "--hidden", "64", "--limit", "26MiB", "--repeats", "1"]
    file, picture = tmp_path / "memory.json", tmp_path / "memory.png"
    for name in ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.setenv(name, "")  # the command sets both
    monkeypatch.setattr(sys, "argv", ["memory", *keys, "--json", str(file), "--figure", str(picture)])
    with isolated():
        main()
    out = capsys.readouterr().out
    found = json.loads(file.read_text())
    by = {(point["method"], point["length"]): point["repeats"][0] for point in found["points"]}
    assert {key: each["input"] for key, each in by.items()} == {key: key[1] * 16 * 4 for key in by}
    assert not by["bptt", 560]["fits"], "560 steps of over 60 KiB"
    numbers = by["bptt", 280]["rise"] / (280 * 16 * 64 * 4)
    assert 12 < numbers < 20, "four gates, two of the cell, h and their like, a step and unit"
    assert all(by["fptt", length]["rise"] < by["bptt", 280]["rise"] / 3 for length in (280, 560))
    assert [by["fptt", length]["updates"] for length in (280, 560)] == [10, 20]
    assert "| 560 | 0.0 | does not fit | |" in out
    assert picture.stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["memory", "--show", "--json", str(file)])
    with isolated():
        main()
    assert capsys.readouterr().out == out
