"""What these tests share: sweeps of tiny runs, and what is left of them.

Sweeps are programs here, as a user has them: Ray reads its environment once in a process, when it is imported.
"""

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fptt_dist.config.schema.section import explicit
from fptt_dist.reporting import SweepResults, read_sweep
from tests.program import ROOT, Program
from tests.ray_sweeps.processes import MARK, end, gone
from tests.training.helpers import assert_same_run, tiny

BATCHES = 27  # the rungs of asha: 3, 9, 27


class Ray:
    """A Ray that is there, and how to reach it.

    Args:
        variables: that lead there; {} where each program starts its own.
    """

    def __init__(self, variables: Mapping[str, str], mark: str = "") -> None:
        self.variables = dict(variables)
        self.mark = mark

    def sweep(
        self, file: Path, folder: Path, *words: str, code: int = 0, typed_in: Path = ROOT, **more: str
    ) -> tuple[SweepResults, str]:
        """The sweep by `fptt-dist sweep`, which ends with this exit code, and what it printed."""
        log, words = folder.with_suffix(".log"), ("sweep", str(file), f"run.dir={folder}", *words)
        with self.program(log, *words, typed_in=typed_in, **more) as (program, _):
            assert program.end() == code, program.text()
        return read_sweep(folder), program.text()

    @contextmanager
    def program(self, log: Path, *words: str, typed_in: Path = ROOT, **more: str) -> Iterator[tuple[Program, str]]:
        """`fptt-dist …` as a program that ends with the context, and the mark of all its processes."""
        mark = uuid.uuid4().hex
        variables = {**os.environ, **self.variables, **more, MARK: mark}
        program = Program(log, ["-m", "fptt_dist", *words], variables, folder=typed_in)
        try:
            yield program, mark
        finally:
            program.kill()
            if not gone(mark, 15.0):
                end(mark)


def sweep_file(
    folder: Path,
    space: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
    batches: int = BATCHES,
    **asked: Any,
) -> Path:
    """The file of a sweep of tiny runs, beside their configuration; `base`: what that sets besides."""
    folder.mkdir(parents=True, exist_ok=True)
    common = explicit(tiny(folder, {"evaluate.every_batches": 3, **(base or {})}, batches=batches))
    del common["run"]
    (folder / "base.yaml").write_text(_yaml(common))
    file = folder / "sweep.yaml"
    file.write_text(_yaml({"config": "base.yaml", "space": dict(space), **asked}))
    return file


def _yaml(values: Any) -> str:
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, text)
    return text.getvalue()


def states(results: SweepResults) -> list[str]:
    """Of the runs, by their numbers."""
    return [trial.state for trial in results.trials]


def overrides(results: SweepResults) -> list[dict[str, Any]]:
    """Of the runs, by their numbers."""
    return [trial.overrides for trial in results.trials]


def note(run: Path) -> dict[str, Any]:
    """trial.json."""
    return json.loads((run / "trial.json").read_text())


def trained(run: Path, batch: int) -> Callable[[], bool]:
    """Whether the run has been validated after so many batches."""

    def there() -> bool:
        file = run / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return any(record["kind"] == "evaluation" and record["batch"] >= batch for record in records)

    return there


def assert_same_sweep(one: Path, other: Path) -> None:
    """All runs of two sweeps are finished and equal bit for bit, their points included."""
    left, right = read_sweep(one), read_sweep(other)
    assert states(left) == states(right) == ["finished"] * len(left.trials)
    assert overrides(left) == overrides(right)
    for trial in left.trials:
        assert_same_run(trial.path, other / trial.name)
