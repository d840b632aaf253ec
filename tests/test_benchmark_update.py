"""The benchmark of the update, small, through its command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_it_prints_a_row_a_point_and_writes_the_times(tmp_path: Path) -> None:
    path = tmp_path / "update.json"
    command = [sys.executable, "-m", "benchmarks.update", "--sizes", "67K", "--bases", "adam", "sgd", "--repeats", "2"]
    done = subprocess.run([*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    header, _, *rows = done.stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["adam, clip", "adam, no clip", "sgd, clip"]
    assert header.count("|") == rows[0].count("|")
    found = json.loads(path.read_text())["rows"]
    assert [row["bytes"] for row in found] == [60, 44, 44]
    assert all(len(times) == 2 and min(times) > 0 for row in found for times in row["seconds"].values())
    assert {row["parameters"] for row in found} == {68362}
