"""The benchmark of the update, small, through its command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import update
from tests.training.helpers import isolated

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_compiled_update_runs() -> None:
    with isolated():
        compiled = update.Update("sgd", "67K", clip=False, fused=True, device=CPU)
        assert compiled.optimizer.fused_update is not None
        assert compiled.optimizer.fused_update.problem is None
        assert update.seconds(compiled.run, CPU) > 0


def test_it_prints_a_row_a_point_and_writes_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Plain(update.Update):  # compiles nothing
        def __init__(self, base: str, size: str, *, fused: bool, **more: Any) -> None:
            asked.append(fused)
            super().__init__(base, size, fused=False, **more)

    path = tmp_path / "update.json"
    words = ["--sizes", "67K", "--bases", "adam", "sgd", "--repeats", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["update", *words])
    monkeypatch.setattr(update, "Update", Plain)
    with isolated():
        update.main()
    assert asked == [False, True] * 3
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["adam, clip", "adam, no clip", "sgd, clip"]
    assert header.count("|") == rows[0].count("|")
    found = json.loads(path.read_text())["rows"]
    assert [row["bytes"] for row in found] == [60, 44, 44]
    assert all(len(times) == 2 and min(times) > 0 for row in found for times in row["seconds"].values())
    assert {row["parameters"] for row in found} == {68362}
