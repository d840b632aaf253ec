"""The campaign's cases are drawn from the seed alone, are run once, and a handful of them pass."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import damage
from tests.campaign.__main__ import line, plan, run, summary
from tests.campaign.case import Case
from tests.campaign.runs import straight
from tests.program import ROOT

CORE = (
    *("kill all of single 1", "damage a checkpoint of single 1", "damage checkpoints/best 1", "damage config.yaml 1"),
    *("disk full 1", "a signal 1", "configuration: NUL 1", "configuration: deep 1", "configuration: fifo"),
)
DRAW = """
import json
from tests.campaign.__main__ import plan
print(json.dumps([str(case) for group in plan(3).values() for case in group]))
"""


def cases(seed: int) -> list[Case]:
    return [case for group in plan(seed).values() for case in group]


def test_the_seed_alone_decides() -> None:
    first = cases(3)
    random.seed(1)
    assert cases(3) == first
    assert [case.name for case in cases(4)] == [case.name for case in first]
    assert sum(other != case for other, case in zip(cases(4), first, strict=True)) > len(first) / 2
    assert len({case.name for case in first}) == len(first) > 100


@pytest.mark.slow
def test_another_process_draws_the_same() -> None:
    command = [sys.executable, "-c", DRAW]
    variables = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True, timeout=100)
    assert json.loads(done.stdout) == [str(case) for case in cases(3)]


def passing(values: dict[str, Any], place: Path, folder: Path) -> str:
    with (folder / "ran").open("a") as file:
        file.write("x")
    return "a note"


def failing(values: dict[str, Any], place: Path, folder: Path) -> str:
    (place / "evidence").write_text("")
    raise AssertionError("why\nand more")


def test_a_case_runs_once_and_one_that_failed_leaves_its_folder(tmp_path: Path) -> None:
    two = [Case("one of them", {"x": 0.25, "none": None}, passing), Case("the/other", {"y": 1}, failing)]
    run(two, tmp_path)
    results = run(two, tmp_path)
    assert [results[case.name]["passed"] for case in two] == [True, False]
    assert (tmp_path / "ran").read_text() == "x"
    assert line(two[0], {**results["one of them"], "seconds": 1.0}) == "PASS    1.0 s  one of them: x=0.25 (a note)"
    assert line(two[1], {**results["the/other"], "seconds": 1.0}) == "FAIL    1.0 s  the/other: y=1 (why)"
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["the-other"]
    assert {path.name for path in (tmp_path / "cases/the-other").iterdir()} == {"evidence", "why.txt"}
    assert summary({"a": two[:1], "b": two[1:]}, results).splitlines()[-1].split()[:4] == ["all", "2", "1", "1"]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"case": "cut')
    assert run(two, tmp_path).keys() == {case.name for case in two}


@pytest.mark.slow
def test_a_handful_of_cases(tmp_path: Path) -> None:
    chosen = {case.name: case for case in cases(0)}
    results = run([chosen[name] for name in CORE], tmp_path)
    assert [result for result in results.values() if not result["passed"]] == []
    newest = max((straight(tmp_path, "single") / "checkpoints").glob("step-*"))
    files = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
    assert files == {*damage.NEWEST["single"], "manifest.json"}
