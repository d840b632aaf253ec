"""Imports between the package's files: who leads to whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources() -> list[Path]:
    """The package's files, each once."""
    return sorted(path for folder in ("fptt_dist", "launchers") for path in (ROOT / folder).glob("**/*.py"))


def circles() -> list[set[str]]:
    """Find the sets of files that import each other, `TYPE_CHECKING` included, imports within functions left out."""
    edges: dict[str, set[str]] = {}
    modules = {_module(path) for path in sources()}
    for path in sources():
        wanted = edges.setdefault(_module(path), set())
        for node in _outside_functions(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inner & modules or {node.module} & modules) - {_module(path)}
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names} & modules - {_module(path)}
    reached = {module: _reached(edges, module) for module in edges}
    circle_of = {one: {one, *(other for other in reached[one] if one in reached[other])} for one in edges}
    return [circle for one, circle in sorted(circle_of.items()) if len(circle) > 1 and one == min(circle)]


def _module(path: Path) -> str:
    inside = path.relative_to(ROOT).with_suffix("")
    parts = inside.parts if inside.parts[0] == "fptt_dist" else ("fptt_dist", *inside.parts)
    return ".".join(part for part in parts if part != "__init__")


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _outside_functions(child)


def _reached(edges: dict[str, set[str]], start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        new = edges.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen
