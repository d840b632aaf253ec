"""Tables and pictures from the folders of runs."""

import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from fptt_dist.config import ConfigError
from fptt_dist.history import readable_runs
from fptt_dist.reporting import History, read_runs, results_table
from fptt_dist.training.run import train
from tests.training.helpers import records, result, tiny, train_until


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs and an interrupted one."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(folder / "first", {"evaluate.every_batches": 2}, batches=6))
    train(tiny(folder / "second", {"evaluate.every_batches": 2, "algorithm": "bptt"}, batches=6))
    train_until(tiny(folder / "third", {"evaluate.every_batches": 2}, batches=6), 3)
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
        assert row[3:7] == [f"{found['value']:.5g}", f"{found['validation']:.5g}", "24", str(found["updates"])]
    assert rows[2] == [str(runs[2]), "fptt", "", "", "not finished, batch 3", "", "", "", ""]


def test_large_numbers_are_grouped(runs: list[Path]) -> None:
    (history,) = read_runs(runs[:1])
    assert history.result is not None
    larger = {**history.result, "sequences": 1234567, "updates": 7654321}
    row = printed([History(history.path, history.config, [], [], larger)])[0]
    assert row[5:7] == ["1,234,567", "7,654,321"]


def folder_with(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


CONFIG = "algorithm: fptt\ntask:\n  name: adding\n"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    no_configuration, unreadable = "config.yaml is no configuration of a run", "cannot be read as a run's folder"
    rows = [
        ({}, "is not a run's folder, it has no config.yaml: type the folder of one run"),
        ({"config_yaml": "a: 1\n"}, no_configuration),
        ({"config_yaml": "- 1\n"}, unreadable),
        ({"config_yaml": "algorithm: x\ntask: 3\n"}, no_configuration),
        ({"config_yaml": ""}, no_configuration),
        ({"config_yaml": "a: {\n"}, unreadable),
    ]
    for number, (files, message) in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ConfigError) as caught:
            read_runs([folder_with(folder, **files)])
        assert message in str(caught.value), files


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b'{"value": 1', b"[1]", b"{}", b'{"value": "x", "validation": 1}'])
def test_damaged_files_count_as_missing(damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"kind": "train", "batch": 1}\n'
    lines = [good, "[1]\n", '{"batch": 1}\n', '{"kind": []}\n', '{"kind": "evaluation", "batch": 1}\n', good]
    folder = folder_with(tmp_path, config_yaml=CONFIG, metrics_jsonl="".join(lines), versions_json="[1]")
    (folder / "result.json").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        (history,) = readable_runs([folder])
    assert (history.result, len(history.training)) == (None, 2)
    assert f"{folder / 'result.json'} " in caplog.text


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
