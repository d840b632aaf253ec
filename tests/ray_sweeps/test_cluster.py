"""Ray itself: how many runs fit, one that is not there, one of our own that nobody else may enter, and none at all."""

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.config import ConfigError
from fptt_dist.launchers.ray.cluster import Need, _processes, connected
from tests.program import Program
from tests.ray_sweeps.helpers import Ray, sweep_file
from tests.ray_sweeps.processes import LOOPBACK, environment, listening, marked, words
from tests.training.helpers import TINY

TENTHS = st.integers(1, 40)


@given(
    cpus=TENTHS,
    gpus=st.one_of(st.just(0), st.integers(1, 10), st.sampled_from([10, 20, 30])),
    machine=st.tuples(st.integers(0, 12), st.integers(0, 6)),
)
def test_as_many_processes_as_can_be_packed(cpus: int, gpus: int, machine: tuple[int, int]) -> None:
    """Counted one by one, in tenths of a CPU or GPU; a fraction of a GPU is of one GPU."""
    free_cpus, free = machine[0] * 10, [10] * machine[1]
    packed = 0
    while True:
        taken = [place for place, left in enumerate(free) if left >= min(gpus, 10)][: max(1, gpus // 10)]
        if free_cpus < cpus or (gpus and len(taken) < max(1, gpus // 10)):
            break
        packed += 1
        free_cpus -= cpus
        for place in taken if gpus else []:
            free[place] -= min(gpus, 10)
    assert _processes(Need(1, cpus / 10, gpus / 10), float(machine[0]), float(machine[1])) == packed


ROOM = """
from fptt_dist.config import ConfigError
from fptt_dist.launchers.ray.cluster import Need, connected, room
with connected():
    for need in [Need(1, 1, 0), Need(1, 0.5, 0), Need(2, 1, 0), Need(2, 0.1, 0), Need(3, 1, 0), Need(1, 1, 1)]:
        try:
            print("room for", room(need))
        except ConfigError as error:
            print(error)
"""


def test_room(shared: Ray, tmp_path: Path) -> None:
    program = Program(tmp_path / "log", ["-c", ROOM], {**os.environ, **shared.variables})
    assert program.end() == 0, program.text()
    lines = program.text().splitlines()
    assert lines[:4] == ["room for 2", "room for 4", "room for 1", "room for 10"]
    assert [line.partition(": ")[0] for line in lines[4:]] == [
        "a run takes 3 workers of 1 CPU, and Ray's nodes have 2 CPU and 0 GPU",
        "a run takes 1 worker of 1 CPU and 1 GPU, and Ray's nodes have 2 CPU and 0 GPU",
    ]


def test_a_run_that_does_not_fit(shared: Ray, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"optimizer.lr": {"grid": [0.01, 0.02]}})
    command = ["sweep", str(file), f"run.dir={tmp_path / 'out'}", "sweep.cpus=3"]
    with shared.program(tmp_path / "log", *command) as (program, _):
        assert program.end() == 2
    assert program.text().endswith(
        "fptt-dist: a run takes 1 worker of 3 CPU, and Ray's nodes have 2 CPU and 0 GPU: there is room for 0 of "
        "its workers: type sweep.workers=…, sweep.cpus=… or sweep.gpus=… for less, or give Ray more\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address} does not answer") as refused, connected():
        pass
    assert "start Ray there, or unset it" in str(refused.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["auto", "localhost", "ray://head:10001", "head:", ":6379", "head:port", ""])
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="is not of the form HOST:PORT"), connected():
        pass


def test_its_own_ray_is_nobody_elses(shared: Ray) -> None:
    """The shared one is one of our own: see the keeper."""
    processes = marked(shared.mark)
    named = {Path(words(process)[0]).name for process in processes}
    assert {"gcs_server", "raylet"} <= named
    dashboard = {process for process in processes if any("dashboard.py" in word for word in words(process))}
    assert not list(listening(dashboard))
    sockets = list(listening(processes))
    assert len(sockets) >= 4
    assert set(sockets) <= LOOPBACK
    token = Path(shared.variables["RAY_AUTH_TOKEN_PATH"])
    assert token.parent.stat().st_mode & 0o077 == 0
    secret = token.read_text()
    assert len(secret) >= 64
    for process in processes:
        assert secret not in " ".join(words(process))
        assert secret not in environment(process).values()
    of_ray = [process for process in processes if Path(words(process)[0]).name in ("gcs_server", "raylet")]
    for process in of_ray:
        assert environment(process)["RAY_USAGE_STATS_ENABLED"] == "0"
        assert environment(process)["RAY_AUTH_MODE"] == "token"


def test_nobody_enters_without_the_token(shared: Ray, tmp_path: Path) -> None:
    """Not without one, and not with a wrong one."""
    inside = {**os.environ, **shared.variables, "HOME": str(tmp_path)}
    del inside["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"], inside["RAY_AUTH_TOKEN_PATH"]
    (tmp_path / "token").write_text("0" * 64)
    wrong = {**inside, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    del inside["RAY_AUTH_MODE"]
    file = sweep_file(tmp_path, {"optimizer.lr": {"grid": [0.01, 0.02]}})
    command = ["-m", "fptt_dist", "sweep", str(file), f"run.dir={tmp_path / 'out'}"]
    programs = [Program(tmp_path / f"log{i}", command, variables) for i, variables in enumerate((inside, wrong))]
    try:
        for program in programs:
            assert program.end() == 2
            said = program.text().splitlines()[-1]
            assert said.startswith(
                f"fptt-dist: RAY_ADDRESS={shared.variables['RAY_ADDRESS']} does not let this program in: set "
            )
    finally:
        for program in programs:
            program.kill()
    assert not (tmp_path / "out").exists()


TWICE = """
from fptt_dist.launchers.ray.cluster import connected
for _ in range(2):
    with connected():
        import ray
        print("CPU", ray.cluster_resources()["CPU"])
"""


def test_one_after_the_other(own: Ray, tmp_path: Path) -> None:
    """A process may start its own Ray more than once."""
    program = Program(tmp_path / "log", ["-c", TWICE], {**os.environ, **own.variables})
    assert program.end() == 0, program.text()
    assert program.text().count("CPU") == 2


def test_what_is_not_installed(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"optimizer.lr": {"choice": [0.01, 0.02]}}, search={"name": "random", "trials": 2})
    words = ["sweep", str(file), f"run.dir={tmp_path / 'out'}"]
    cases = [("optuna", [*words, "sweep.search.name=optuna"]), ("ray", words)]
    code = f"""
import sys
from fptt_dist.cli import main
for module, words in {cases!r}:
    sys.modules[module] = None
    sys.argv = ["fptt-dist", *words]
    try:
        main()
    except SystemExit as left:
        assert left.code == 2, words
"""
    program = Program(tmp_path / "log", ["-c", code], os.environ)
    assert program.end() == 0, program.text()
    assert [line for line in program.text().splitlines() if line.startswith("fptt-dist: ")] == [
        "fptt-dist: search.name=optuna needs Optuna: pip install -e '.[ray]'",
        "fptt-dist: sweep needs Ray Tune: pip install -e '.[ray]'",
    ]
    assert not (tmp_path / "out").exists()


def test_other_commands_do_without(tmp_path: Path) -> None:
    """Neither Ray nor Optuna is looked for."""
    tiny = [f"{key}={str(value).lower()}" for key, value in TINY.items()]
    commands = [
        ["train", "add_task", *tiny, "train.max_batches=2", "train.max_epochs=null", f"run.dir={tmp_path / 'run'}"],
        ["report", str(tmp_path / "run")],
        ["config", "keys"],
        ["evaluate", str(tmp_path / "run")],
    ]
    code = f"""
import sys
from fptt_dist.cli import main
for words in {commands!r}:
    sys.argv = ["fptt-dist", *words]
    try:
        main()
    except SystemExit as left:
        assert left.code in (0, None), words
found = [name for name in ("ray", "optuna") if name in sys.modules]
print("found", found)
"""
    program = Program(tmp_path / "log", ["-c", code], os.environ)
    assert program.end() == 0, program.text()
    assert program.text().splitlines()[-1] == "found []"
