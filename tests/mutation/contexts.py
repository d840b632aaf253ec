"""A pytest plugin for `coverage run`: which test executed which line, also in the processes that a test starts.

A process that a test starts reads the test's name from the environment as it starts (`context` in coverage's settings).
The pool's workers outlive a test, so each of their jobs brings its test's name along.
"""

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.parallel.pool import Pool

TEST, TIMES = "MUTATION_TEST", "MUTATION_TIMES"
_seconds: dict[str, float] = {}
_failed: set[str] = set()


class _Job:
    """A job of the pool that counts what it executes for the test that gave it."""

    def __init__(self, function: Callable[..., Any], test: str) -> None:
        self.function, self.test = function, test

    def __call__(self, *args: Any) -> Any:
        measured = coverage.Coverage.current()
        if measured is None:
            return self.function(*args)
        measured.switch_context(self.test)
        try:
            return self.function(*args)
        finally:
            measured.switch_context("")
            measured.save()  # a worker that is killed later writes nothing


def pytest_configure() -> None:
    run = Pool.run

    def counted(self: Pool, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        return run(self, _Job(function, os.environ.get(TEST, "")), *args, **options)

    Pool.run = counted


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    os.environ[TEST] = item.nodeid
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.switch_context(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    passed = {test: seconds for test, seconds in _seconds.items() if test not in _failed}
    Path(os.environ[TIMES]).write_text(json.dumps(passed, indent=0))
