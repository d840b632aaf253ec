"""Print how far one must read to follow an operation, and how large the rooms are: python -m tests.structure

Of an operation: the files and functions of the package that it enters, and how often a call crosses from one file into
another.
"""

import ast
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fptt_dist.algorithm import FPTT
from fptt_dist.config import load
from fptt_dist.parallel import Engine
from fptt_dist.parallel.sync.periodic import Consensus
from fptt_dist.training.trainer import Trainer
from tests.imports import circles, sources
from tests.parallel.replicas import together
from tests.parallel.toys import Quadratic, Run, consensus
from tests.training.helpers import isolated, tiny, trainer_for

ROOT = Path(__file__).parents[1]
PACKAGE = str(ROOT / "fptt_dist") + "/"
QUESTION = ("What", "Whether", "Which", "How")
INLINE = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")  # no functions to look up


class Followed:
    """The package's functions that an operation enters."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.crossings = 0

    def __str__(self) -> str:
        files = {file for file, _ in self.functions}
        return f"{len(files):4} files {len(self.functions):4} functions {self.crossings:5} calls into another file"

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Be told by `sys.setprofile` of a call."""
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not frame.f_code.co_name.endswith(INLINE):
            self.functions.add((file, f"{frame.f_code.co_qualname}:{frame.f_code.co_firstlineno}"))
            caller = frame.f_back
            while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
                caller = caller.f_back
            self.crossings += caller is not None and caller.f_code.co_filename != file

    def follow(self, action: Callable[[], Any]) -> Any:
        """Return what a function returns, and note what it enters."""
        sys.setprofile(self.note)
        try:
            return action()
        finally:
            sys.setprofile(None)


@contextmanager
def followed(owner: type, name: str) -> Iterator[Followed]:
    """Follow each call of a method within the context; the last one counts."""
    path, real = Followed(), getattr(owner, name)

    def method(*args: Any, **more: Any) -> Any:
        path.functions.clear()
        path.crossings = 0
        return path.follow(lambda: real(*args, **more))

    setattr(owner, name, method)
    try:
        yield path
    finally:
        setattr(owner, name, real)


def following(action: Callable[[], Any]) -> Followed:
    """Follow what a function does."""
    path = Followed()
    path.follow(action)
    return path


def operations() -> dict[str, Followed]:
    """Do each operation once, and follow it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, isolated():
        run = Path(folder) / "run"
        settings = {"logging.every_batches": 100, "checkpoint.every_batches": 100}
        trainer = trainer_for(tiny(run, settings, batches=4))
        for _ in range(2):  # the first batch makes state
            found["a plain batch (K = 3)"] = following(lambda: trainer._train_batch(None))  # pyright: ignore[reportArgumentType]
        with followed(Consensus, "after_update") as path:
            together(1, lambda worker: Run(consensus(worker, every=1), Quadratic(), 0, lr=0.1).advance(2))
            found["a sync (H = 1)"] = path
        with followed(Trainer, "save") as path:
            trainer.save()
            found["a save"] = path
        with followed(Trainer, "restore") as path:
            trainer_for(tiny(run, {**settings, "resume": "auto"}, batches=4))
            found["a resume"] = path
        file = Path(folder) / "run.yaml"
        file.write_text("extends: add_task\nseed: 1\n")
        found["loading a configuration"] = following(lambda: load(file, {"fptt.alpha": 0.1}))
    return found


def docstrings(tree: ast.Module) -> list[str]:
    """List what a file's modules, classes and functions say of themselves."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return list(filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))))


def public(kind: type) -> list[str]:
    """List the public methods and properties that a class defines itself."""
    return [name for name in vars(kind) if not name.startswith("_")]


def main() -> None:
    """Print the table."""
    for name, path in operations().items():
        print(f"{name:<26}{path}")
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    lengths = sorted(len(path.read_text().splitlines()) for path in trees)
    print(f"public methods: FPTT {len(public(FPTT))}, Engine {len(public(Engine))}")
    print(f"import circles by file: {[sorted(circle) for circle in circles()]}")
    folders = {path.parent for path in trees}
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder in sorted(folders)
        if (count := sum(path.parent == folder for path in trees)) > 12
    }
    print(f"folders of more than 12 files: {crowded}")
    print(f"lines of a file: median {statistics.median(lengths)}, largest {lengths[-1]}")
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    longest = max(functions, key=lambda node: (node.end_lineno or 0) - node.lineno)
    longest_lines = (longest.end_lineno or 0) - longest.lineno + 1
    print(f"lines of a function, its docstring included: largest {longest_lines} ({longest.name})")
    said = [text for tree in trees.values() for text in docstrings(tree)]
    asked = [text for text in said if re.match(rf"({'|'.join(QUESTION)})\b", text)]
    print(f"docstrings: {len(said)}, of which begin with {'/'.join(QUESTION)}: {len(asked)}")


if __name__ == "__main__":
    main()
