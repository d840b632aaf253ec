"""The benchmark of cells, run tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fptt_dist.models.recurrent import LAYERS


@pytest.mark.slow
def test_the_command_prints_and_writes_every_cell(tmp_path: Path) -> None:
    # Windows of fewer than 8 steps: nothing is compiled.
    words = ["--shapes", "2x3x4,1x2x3", "--repeats", "3", "--json", str(tmp_path / "a" / "cells.json")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.cells", *words],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "a" / "cells.json").read_text())
    whole = {"lstm", "gru", "rnn", "rlstm", "mingru", "minlstm", "lru", "trellis"}  # run a window at once
    names = [name for cell in LAYERS for name in ([cell] if cell in whole else [cell, f"{cell}, compiled"])]
    names.append("lif, snntorch")
    assert [(row["steps"], row["batch"], row["hidden"], row["cell"]) for row in found["rows"]] == [
        (*shape, name) for shape in ((2, 3, 4), (1, 2, 3)) for name in names
    ]
    for row in found["rows"]:
        assert len(row["seconds"]) == 3
        assert 0 < min(row["seconds"]) < 1
        assert row["disagreement"] == (0 if "compiled" in row["cell"] else None)
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("| 2 ×", "| 1 ×")) for line in lines) == 2 * len(names)
    ratios = [line.split("|")[4].strip() for line in lines if "| lstm |" in line]
    assert ratios == ["1.00", "1.00"]
    assert "torch " in lines[-1]
