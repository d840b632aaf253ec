"""Who may import whom: the floors are import-linter's (`make check`); what it cannot see is here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["algorithm", "models", "tasks"])
def test_what_is_computed_knows_no_process(package: str) -> None:
    sources = list((ROOT / "fptt_dist" / package).rglob("*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.startswith("torch.distributed")], source


def test_no_file_is_too_long() -> None:
    sources = [path for folder in ("fptt_dist", "launchers", "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = sorted(len(path.read_text().splitlines()) for path in sources)
    assert lengths[-1] <= 600
    assert lengths[len(lengths) // 2] <= 250
