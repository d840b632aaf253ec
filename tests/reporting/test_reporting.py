"""Tables and pictures from the folders of runs."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fptt_dist import train
from fptt_dist.config import ConfigError
from fptt_dist.reporting import History, draw_convergence, read_runs, results_table
from tests.training.helpers import records, result, tiny, train_until


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs and an interrupted one."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(folder / "first", {"evaluate.every": 2}, batches=6))
    train(tiny(folder / "second", {"evaluate.every": 2, "algorithm": "bptt"}, batches=6))
    train_until(tiny(folder / "third", {"evaluate.every": 2}, batches=6), 3)
    return [folder / name for name in ("first", "second", "third")]


def printed(histories: list[History]) -> list[list[str]]:
    console = Console(width=400, file=None, record=True, quiet=False)
    with console.capture() as capture:
        console.print(results_table(histories))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]


def test_a_run_is_read_back(runs: list[Path]) -> None:
    first, _, third = read_runs(runs)
    assert first.path == runs[0]
    assert first.config["algorithm"] == "fptt"
    assert first.training == records(runs[0], "train")
    assert first.evaluations == records(runs[0], "evaluation")
    assert first.result == result(runs[0])
    assert third.result is None
    assert [history.label for history in read_runs(runs)] == ["fptt (first)", "bptt (second)", "fptt (third)"]


def test_the_table(runs: list[Path]) -> None:
    rows = printed(read_runs(runs))
    for row, run in zip(rows[:2], runs, strict=False):
        found = result(run)
        assert row[:3] == [str(run), found["algorithm"], "mse"]
        assert row[3:7] == [f"{found['value']:.5f}", f"{found['validation']:.5f}", "24", str(found["updates"])]
    assert rows[2] == [str(runs[2]), "fptt", "", "", "not finished, batch 3", "", "", "", ""]


def test_large_numbers_are_grouped(runs: list[Path]) -> None:
    (history,) = read_runs(runs[:1])
    assert history.result is not None
    larger = {**history.result, "sequences": 1234567, "updates": 7654321}
    row = printed([History(history.path, history.config, [], [], larger)])[0]
    assert row[5:7] == ["1,234,567", "7,654,321"]


def test_the_picture(runs: list[Path], tmp_path: Path) -> None:
    histories = read_runs(runs)
    path = draw_convergence(histories, tmp_path / "deep" / "picture.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1600, 1000)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # a line each
        assert (pixels == colour).all(-1).sum() > 100
    assert not (pixels == (0xCC, 0x79, 0xA7)).all(-1).any()  # and no fourth


def test_a_picture_without_any_validation(runs: list[Path], tmp_path: Path) -> None:
    (history,) = read_runs(runs[:1])
    bare = History(history.path, history.config, [], [], None)
    with Image.open(draw_convergence([bare], tmp_path / "picture.png")) as image:
        assert image.size == (1600, 1000)


def test_more_runs_than_colours(runs: list[Path], tmp_path: Path) -> None:
    (history,) = read_runs(runs[:1])
    with Image.open(draw_convergence([history] * 30, tmp_path / "picture.png")) as image:
        assert image.size == (1600, 1000)


def folder_with(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


CONFIG = "algorithm: fptt\ntask:\n  name: adding\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not a run's folder: it has no config.yaml"),
        ({"config_yaml": "a: 1\n"}, "config.yaml is no configuration of a run"),
        ({"config_yaml": "- 1\n"}, "config.yaml is no configuration of a run"),
        ({"config_yaml": "algorithm: x\ntask: 3\n"}, "config.yaml is no configuration of a run"),
        ({"config_yaml": ""}, "config.yaml is no configuration of a run"),
        ({"config_yaml": "a: {\n"}, "cannot be read as a run's folder"),
        ({"config_yaml": CONFIG, "metrics_jsonl": "nonsense\n"}, "cannot be read as a run's folder"),
        ({"config_yaml": CONFIG, "metrics_jsonl": '{"batch": 1}\n'}, "cannot be read as a run's folder"),
        ({"config_yaml": CONFIG, "result_json": "{"}, "cannot be read as a run's folder"),
    ],
)
def test_what_is_no_run_is_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_runs([folder_with(tmp_path, **files)])


def test_a_running_run_may_be_in_the_middle_of_a_line(tmp_path: Path) -> None:
    line = json.dumps({"kind": "train", "batch": 1})
    folder = folder_with(tmp_path, config_yaml=CONFIG, metrics_jsonl=f'{line}\n{{"kind": "tra')
    (history,) = read_runs([folder])
    assert history.training == [{"kind": "train", "batch": 1}]
    assert printed([history])[0][4] == "not finished, batch 1"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (history,) = read_runs([folder_with(tmp_path, config_yaml=CONFIG)])
    assert (history.training, history.evaluations, history.result) == ([], [], None)
    assert printed([history])[0][4] == "not finished, batch 0"
