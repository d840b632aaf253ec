"""Every table and figure of the paper under the budget `smoke`, on the real data, as a user types it."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fptt_dist.cli import main
from fptt_dist.launchers.paper_rows import load_tables
from tests.training.helpers import isolated

SECONDS = 300.0  # for all of them together, on two slow cores
DRAWN = ("figure1", "figure2", "figure3", "alpha")
NUMBER = r"\d[\d.e+-]* \(1\)"


def reproduce(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, words = os.environ["FPTT_DATA"], ["--budget", "smoke", f"run.dir={folder}", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["fptt-dist", "reproduce", target, *words, f"data.root={data}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code


def check(target: str, table: Path, out: str) -> None:
    text = table.read_text()
    assert out.startswith(text)
    head, _, *lines = [
        line.strip("|").strip().split(" | ") for line in text.splitlines() if line.startswith("| ") and "**" not in line
    ]
    rows = load_tables().targets[target].rows
    for line, row in zip(lines, rows, strict=True):
        assert re.fullmatch(re.escape(row.label).replace(r"\{K\}", r"\d+"), line[0])
    for row, line in zip(rows, lines, strict=True):
        cell = dict(zip(head, line, strict=True))
        assert cell["paper"] == (row.paper or "–")
        for name in ("ours", "validation", *(["ours, dynamic evaluation"] if row.dynamic else [])):
            assert re.fullmatch(NUMBER, cell[name]), f"{row.name}, {name}: {cell[name]}"
        assert re.match(r"[\d,]+ / [\d,]+", cell["parameters, recurrent / all"])
        assert re.fullmatch(r"[1-9][\d,]*", cell["updates"])
        assert re.fullmatch(r"\d+\.\d s", cell["training time"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "FPTT_DATA" not in os.environ,
    reason="needs FPTT_DATA, the folder that holds mnist/, cifar-10-batches-bin/ and ptb/",
)
def test_all_rows_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: dict[str, float] = {}
    with isolated():
        for target in load_tables().targets:
            began = time.perf_counter()
            reproduce(target, tmp_path, monkeypatch)
            seconds[target] = time.perf_counter() - began
            check(target, tmp_path / "smoke" / f"{target}.md", capsys.readouterr().out)
    with capsys.disabled():
        print("\n" + ", ".join(f"{target} {value:.1f} s" for target, value in seconds.items()))
    assert sum(seconds.values()) < SECONDS
    pictures = sorted((tmp_path / "smoke" / "figures").iterdir())
    assert [picture.stem for picture in pictures] == sorted(DRAWN)
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
