"""The benchmark of cells, run tiny."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cells
from fptt_dist.models.recurrent import LAYERS
from tests.training.helpers import isolated


@pytest.mark.slow
def test_the_command_prints_and_writes_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Windows of fewer than 8 steps: nothing is compiled.
    words = ["--shapes", "2x3x4,1x2x3", "--repeats", "3", "--json", str(tmp_path / "a" / "cells.json")]
    monkeypatch.setattr(sys, "argv", ["cells", *words])
    with isolated():
        cells.main()
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads((tmp_path / "a" / "cells.json").read_text())
    whole = [name for name, kind in LAYERS.items() if not getattr(kind, "stepped", False)]  # run a window at once
    names = [name for cell in LAYERS for name in ([cell] if cell in whole else [cell, f"{cell}, compiled"])]
    names.append("lif, snntorch")
    assert [(row["steps"], row["batch"], row["hidden"], row["layer"]) for row in found["rows"]] == [
        (*shape, name) for shape in ((2, 3, 4), (1, 2, 3)) for name in names
    ]
    for row in found["rows"]:
        assert len(row["seconds"]) == 3
        assert 0 < min(row["seconds"]) < 1
        assert row["difference"] == (0 if "compiled" in row["layer"] else None)
    lines = out.splitlines()
    assert sum(line.startswith(("| 2 ×", "| 1 ×")) for line in lines) == 2 * len(names)
    ratios = [line.split("|")[4].strip() for line in lines if "| lstm |" in line]
    assert ratios == ["1.00", "1.00"]
    assert "torch " in lines[-1]
