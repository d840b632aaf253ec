"""Who may import whom: the floors are import-linter's (`make check`); what it cannot see is here."""

import ast
from pathlib import Path

from ruamel.yaml import YAML

from tests.imports import circles

ROOT = Path(__file__).parents[1]


def test_what_is_computed_knows_no_process() -> None:
    found = []
    for package in ("algorithm", "models", "tasks"):
        sources = list((ROOT / "fptt_dist" / package).rglob("*.py"))
        assert sources
        for source in sources:
            for node in ast.walk(ast.parse(source.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                found += [f"{source}: {name}" for name in names if name.startswith("torch.distributed")]
    assert found == []


def test_no_two_files_import_each_other() -> None:
    """`TYPE_CHECKING` included."""
    assert circles() == []


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    sections = ROOT / "fptt_dist" / "config" / "schema" / "cells"  # a layer's section has the layer's name
    for source in [path for folder in ("fptt_dist", "launchers") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and sections not in source.parents:
                places.setdefault(node.name, []).append(str(source.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_too_long() -> None:
    sources = [path for folder in ("fptt_dist", "launchers", "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = sorted(len(path.read_text().splitlines()) for path in sources)
    assert lengths[-1] <= 600
    assert lengths[len(lengths) // 2] <= 250


def test_ci_runs_every_folder_of_tests_once() -> None:
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yml").read_text())
    parts = [part["make"] for part in workflow["jobs"]["part"]["strategy"]["matrix"]["include"]]
    run = [path for part in parts if "TESTS=" in part for path in part.split('"')[1].split()]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")} - {"tests"}
    assert sorted(run) == sorted([*folders, "tests/test_*.py"])
