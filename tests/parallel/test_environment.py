"""Which of how many processes this is, as the environment says, and that it is said before anything can hang."""

import io
import logging
import os
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment, resolve_environment
from fptt_dist.training import run
from tests.parallel.pool import Pool
from tests.parallel.runs import tiny

PLACE = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}


def test_without_variables_it_is_a_single_process() -> None:
    environment = resolve_environment({"PATH": "/bin", "MASTER_ADDR": "localhost", "SLURM_PROCID": "1"})
    assert environment == LaunchEnvironment(rank=0, world=1, local_rank=0, source="single process")


def test_torchrun() -> None:
    environment = resolve_environment(PLACE)
    assert (environment.rank, environment.world, environment.local_rank) == (3, 4, 1)
    assert str(environment) == "rank 3 of 4, local rank 1 (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"


def test_the_process_own_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    assert resolve_environment().rank == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["RANK"], "RANK set in the environment, but not LOCAL_RANK, WORLD_SIZE: start with torchrun, or unset"),
        (["WORLD_SIZE"], "WORLD_SIZE set in the environment, but not RANK, LOCAL_RANK: start with torchrun, or unset"),
        (
            ["WORLD_SIZE", "RANK"],
            "RANK, WORLD_SIZE set in the environment, but not LOCAL_RANK: start with torchrun, or unset",
        ),
    ],
)
def test_partly_set(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_environment({name: PLACE[name] for name in given})
    assert str(caught.value) == message


@pytest.mark.parametrize("value", ["", "two", "-1", "1.0", " 1"])
@pytest.mark.parametrize("name", list(PLACE))
def test_not_a_number(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_environment({**PLACE, name: value})
    assert str(caught.value) == f"{name}={value!r} in the environment is not a number"


@pytest.mark.parametrize(("rank", "world"), [(4, 4), (7, 4), (0, 0)])
def test_a_rank_that_is_not_in_the_world(rank: int, world: int) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_environment({**PLACE, "RANK": str(rank), "WORLD_SIZE": str(world)})
    assert str(caught.value) == f"RANK={rank} in the environment is not below WORLD_SIZE={world}"


def log_of_a_lonely_rank(environment: LaunchEnvironment, folder: Path) -> tuple[str, str]:
    """Start rank 0 of 2, whose rank 1 never comes; what was logged, and the message it ends with."""
    from datetime import timedelta

    from fptt_dist.parallel import collectives

    collectives.TIMEOUT = timedelta(seconds=1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    run.LOG.addHandler(handler)
    try:
        run.train(tiny(folder))
    except ConfigError as error:
        return stream.getvalue(), str(error)
    finally:
        run.LOG.removeHandler(handler)
        collectives.TIMEOUT = timedelta(seconds=300)
    raise AssertionError("one rank of two trained alone")


def test_the_place_is_said_before_the_first_collective(pool: Pool, tmp_path: Path) -> None:
    [(log, message)] = pool.run(log_of_a_lonely_rank, tmp_path / "run", world=1)
    place = "rank 0 of 2, local rank 0 (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"
    assert log == f"{place}, on cpu\n"
    assert message.startswith(f"{place} could not meet the other processes within 1 s over gloo: ")
