"""Every table and figure of the paper under the budget `smoke`, on the real data, as a user types it."""

import gzip
import os
import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fptt_dist.cli import main
from fptt_dist.launchers.paper.rows import load_tables
from tests.training.helpers import isolated

DRAWN = ("figure1", "figure2", "figure3", "alpha", "cells")
NUMBER = r"\d[\d.e+-]* \(1\)"


# Of the grid one layer with every algorithm on every task; each layer trains in tests/training/test_cells.py.
ONLY = {"cells": ("-lstm-",)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The real data, with the images that every row reads anew decompressed."""
    root, folder = Path(os.environ["FPTT_DATA"]).resolve(), tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    for file in (root / "mnist").iterdir():
        unpacked = file.suffix == ".gz"
        content = gzip.decompress(file.read_bytes()) if unpacked else file.read_bytes()
        (folder / "mnist" / (file.stem if unpacked else file.name)).write_bytes(content)
    for name in ("cifar-10-batches-bin", "ptb"):
        (folder / name).symlink_to(root / name)
    return folder


def reproduce(target: str, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    words = ["--budget", "smoke", *more, f"run.dir={folder}", "device=cpu", f"data.root={data}"]
    monkeypatch.setattr(sys, "argv", ["fptt-dist", "reproduce", target, *words])
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


def check_grid(target: str, table: Path, out: str) -> None:
    text = table.read_text()
    assert out.startswith(text)
    names = [row.name for row in load_tables().targets[target].rows]
    rows, found = {name for name in names if any(part in name for part in ONLY[target])}, set()
    assert len(rows) == 15
    configs = iter(["cells_smnist", "cells_pmnist", "cells_adding200", "cells_adding500", "cells_adding1000"])
    config, columns = "", []
    for line in text.splitlines():
        label, *cells = line.strip("|").strip().split(" | ")
        if label == "cell":
            columns = cells
        elif line.startswith("| **"):
            config = next(configs)
        elif columns and line.startswith("| ") and not line.startswith("| ---"):
            figures = dict(zip(columns[1:-1], cells[1:-1], strict=True))
            found |= {f"{config}-{label}-{name}" for name, value in figures.items() if re.match(NUMBER, value)}
    assert found == rows


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "FPTT_DATA" not in os.environ,
    reason="needs FPTT_DATA, the folder that holds mnist/, cifar-10-batches-bin/ and ptb/",
)
def test_all_rows_of_the_paper(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: dict[str, float] = {}
    with isolated():
        for target in load_tables().targets:
            began = time.perf_counter()
            for only in ONLY.get(target, ("",)):
                capsys.readouterr()
                reproduce(target, tmp_path, data, monkeypatch, *(["--only", only] if only else []))
            seconds[target] = time.perf_counter() - began
            checked = check_grid if load_tables().targets[target].is_grid else check
            checked(target, tmp_path / "smoke" / f"{target}.md", capsys.readouterr().out)
    with capsys.disabled():
        print("\n" + ", ".join(f"{target} {value:.1f} s" for target, value in seconds.items()))
    pictures = sorted((tmp_path / "smoke" / "figures").iterdir())
    assert [picture.stem for picture in pictures] == sorted(DRAWN)
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
