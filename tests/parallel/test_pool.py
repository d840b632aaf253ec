"""The tests' own tools: a job that goes wrong ends with a message, and spoils nothing for the next."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fptt_dist.parallel import LaunchEnvironment
from tests.parallel.pool import Pool, WorkerError

pytest_plugins = ["pytester"]


def who(environment: LaunchEnvironment) -> tuple[int, int, int, bool]:
    return environment.rank, environment.world, os.getpid(), dist.is_initialized()


def sum_unless_first(environment: LaunchEnvironment) -> None:
    """Rank 0 raises while the others wait for it."""
    if environment.rank == 0:
        raise ValueError("rank 0 has had enough")
    dist.all_reduce(torch.ones(1))


def sleep_if_last(environment: LaunchEnvironment) -> None:
    if environment.rank == environment.world - 1:
        time.sleep(600)


def die_if_last(environment: LaunchEnvironment) -> None:
    if environment.rank == environment.world - 1:
        os._exit(7)


def leave_a_variable(environment: LaunchEnvironment) -> None:
    os.environ["LEFT_BEHIND"] = "yes"


def read_variable(environment: LaunchEnvironment) -> str | None:
    return os.environ.get("LEFT_BEHIND")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_same_processes_serve_every_job(pool: Pool, world: int) -> None:
    first, second = pool.run(who, world=world), pool.run(who, world=world)
    assert first == second
    assert [answer[:2] for answer in first] == [(rank, world) for rank in range(world)]
    assert len({answer[2] for answer in first}) == world
    assert all(answer[3] == (world > 1) for answer in first)


def test_without_a_group(pool: Pool) -> None:
    assert [answer[3] for answer in pool.run(who, connected=False)] == [False, False]


def test_a_raising_rank_does_not_leave_the_others_waiting(pool: Pool) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"(?s)\Arank 0 of 4 raised:.*rank 0 has had enough"):
        pool.run(sum_unless_first, world=4)
    assert time.monotonic() - began < 10.0
    assert len(pool.run(who, world=4)) == 4


def test_variables_of_a_job_are_gone_in_the_next(pool: Pool) -> None:
    pool.run(leave_a_variable)
    assert pool.run(read_variable) == [None, None]


@pytest.mark.slow
def test_the_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    own = Pool(tmp_path, size=2)
    try:
        own.run(who)
        with pytest.raises(WorkerError, match=r"\Arank 1 of 2 did not answer within 1 s\Z"):
            own.run(sleep_if_last, timeout=1.0)
        with pytest.raises(WorkerError, match=r"rank 0 of 1 died with exit code 7"):
            own.run(die_if_last, world=1)
        assert own.run(who, world=1)[0][:2] == (0, 1)
    finally:
        own.close()


LEAKS = """
import os
import torch.distributed as dist

def test_first(): pass
def test_variable(): os.environ["LEFT_BEHIND"] = "yes"
def test_patched(monkeypatch): monkeypatch.setenv("LEFT_BEHIND", "yes")
def test_group(): dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
def test_last(): assert "LEFT_BEHIND" not in os.environ and not dist.is_initialized()
"""


def test_a_test_that_leaks_fails_and_the_next_one_does_not(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text())
    pytester.makepyfile(LEAKS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*the test changed environment variables and left them so: LEFT_BEHIND*",
            "*the test left a process group behind*",
        ]
    )
