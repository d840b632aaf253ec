"""Which of how many processes this is, as the environment says, and that it is said before anything can hang."""

import io
import logging
import os
import shutil
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment, resolve_environment
from fptt_dist.parallel.comm.environment import ALONE, FROM_SLURM, FROM_TORCHRUN, PORTS, Launcher, device_index
from fptt_dist.training import run
from tests.parallel.pool import Pool
from tests.parallel.runs import tiny

PLACE = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}

# What torch 2.13's torchrun set for the last of 2 × 2 processes, and SLURM 22.05 in the shell or the task named.
TORCHRUN = {
    **PLACE,
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "45367",
    "ROLE_NAME": "default",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "4",
    "TORCHELASTIC_MAX_RESTARTS": "2",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}
SALLOC = {  # --nodes=2 --ntasks-per-node=2, whose shell runs on the machine of salloc itself
    "SLURM_JOB_ID": "5",
    "SLURM_JOB_NODELIST": "n[0-1]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "n[0-1]",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
BATCH = {**SALLOC, "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "b.sh"}
STEP = {  # the last task of srun in either
    **BATCH,
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[0-1]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
ONE_TASK = {
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NODELIST": "n0",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
# salloc with LaunchParameters=use_interactive_step: a step whose SLURM_NTASKS and SLURM_NNODES are the job's.
INTERACTIVE = {**STEP, **ONE_TASK, "SLURM_STEP_ID": "4294967290", "SLURM_PTY_PORT": "36307"}
PTY_BASH = {
    **{name: value for name, value in STEP.items() if name != "SLURM_NTASKS_PER_NODE"},
    **ONE_TASK,
    "SLURM_NTASKS": "1",
    "SLURM_NNODES": "1",
    "SLURM_TASKS_PER_NODE": "1",
    "SLURM_PTY_PORT": "36341",
}
ONE_NODE = {**STEP, "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "n0", "SLURM_STEP_NUM_NODES": "1"} | {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}


def message_of(environ: dict[str, str], launcher: Launcher = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_environment(launcher, environ)
    return str(caught.value)


def test_a_single_process() -> None:
    nothing = {"PATH": "/bin", "MASTER_ADDR": "localhost", "SLURM_PROCID": "1"}
    for environ in (nothing, SALLOC, BATCH, INTERACTIVE, PTY_BASH):
        environment = resolve_environment("auto", environ)
        assert environment == LaunchEnvironment(rank=0, world=1, local_rank=0, source=ALONE), environ
        assert str(environment) == "single process", environ


def test_torchrun() -> None:
    environment = resolve_environment("auto", TORCHRUN)
    assert environment == LaunchEnvironment(3, 4, 1, FROM_TORCHRUN, local_world=2, node=1, nodes=2, restarts=1)
    assert environment == resolve_environment("torchrun", TORCHRUN)
    assert str(environment) == (
        "rank 3 of 4, local rank 1 of 2 on node 1 of 2, restart 1 (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"
    )


def test_by_hand_on_one_machine() -> None:
    environment = resolve_environment("auto", PLACE)
    assert environment == LaunchEnvironment(3, 4, 1, FROM_TORCHRUN, local_world=4)
    assert str(environment) == "rank 3 of 4, local rank 1 (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"


def test_torchrun_of_one() -> None:
    alone = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment = resolve_environment("auto", alone)
    assert (environment.world, environment.local_world) == (1, 1)
    assert str(environment) == "single process (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"


def test_a_slurm_step() -> None:
    environment = resolve_environment("auto", {**STEP, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert environment == LaunchEnvironment(
        3, 4, 1, FROM_SLURM, local_world=2, node=1, nodes=2, restarts=0, master="head:1234"
    )
    assert str(environment) == (
        "rank 3 of 4, local rank 1 of 2 on node 1 of 2, meeting at head:1234 (from SLURM's step variables)"
    )


def test_a_slurm_step_on_one_machine() -> None:
    environment = resolve_environment("slurm", {**ONE_NODE, "MASTER_PORT": "1234"})
    assert (environment.rank, environment.world, environment.local_world, environment.nodes) == (1, 2, 2, 1)
    assert str(environment) == "rank 1 of 2, local rank 1, meeting at 127.0.0.1:1234 (from SLURM's step variables)"
    named = resolve_environment("slurm", {**ONE_NODE, "MASTER_ADDR": "n0", "MASTER_PORT": "1234"})
    assert named.master == "n0:1234"


def test_a_step_of_one_task() -> None:
    environment = resolve_environment("auto", {**STEP, **ONE_TASK, "SLURM_NTASKS_PER_NODE": "1"})
    assert environment == LaunchEnvironment(source=FROM_SLURM)
    assert str(environment) == "single process (from SLURM's step variables)"


def test_the_port_is_of_the_start() -> None:
    def port(**other: str) -> int:
        host, _, text = (resolve_environment("auto", {**ONE_NODE, **other}).master or "").rpartition(":")
        assert host == "127.0.0.1"
        return int(text)

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="0") == port(SLURM_RESTART_COUNT="0")
    starts = [{"SLURM_JOB_ID": str(job)} for job in range(20)]
    starts += [{"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "2"}]
    ports = {port(**start) for start in starts}
    assert len(ports) == len(starts)
    assert ports <= set(PORTS)
    assert resolve_environment("auto", {**ONE_NODE, "SLURM_RESTART_COUNT": "2"}).restarts == 2


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="SLURM is not installed")
def test_the_first_host_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    for hosts, first in {"n[08-10],a7": "n08", "a7,n[0-1]": "a7", "a-1,a-2": "a-1"}.items():
        environment = resolve_environment("auto", {**STEP, "SLURM_STEP_NODELIST": hosts})
        assert (environment.master or "").rpartition(":")[0] == first
    (tmp_path / "slurm.conf").write_text("nonsense\n")
    message = message_of(STEP)
    assert message.startswith("SLURM_STEP_NODELIST=n[0-1]: scontrol does not tell its first node (scontrol: ")
    assert "\n" not in message


def test_no_scontrol(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert message_of(STEP) == (
        "SLURM_STEP_NODELIST=n[0-1]: scontrol does not tell its first node (No such file or directory): type "
        "export MASTER_ADDR=… before srun, with that node's name"
    )
    assert (resolve_environment("auto", {**STEP, "MASTER_ADDR": "n0"}).master or "").startswith("n0:")


# --ntasks=2 --ntasks-per-node=4 and srun -N2 -n4 where 3 fit on the first node, as SLURM started them
TOO_FEW = {**ONE_NODE, "SLURM_NTASKS_PER_NODE": "4"}
UNEVEN = {name: value for name, value in STEP.items() if name != "SLURM_NTASKS_PER_NODE"} | {
    "SLURM_STEP_TASKS_PER_NODE": "3,1"
}


def test_fewer_tasks_than_asked_for() -> None:
    assert message_of(TOO_FEW) == (
        "SLURM_STEP_NUM_TASKS=2 is not SLURM_STEP_NUM_NODES=1 × SLURM_NTASKS_PER_NODE=4: give sbatch or srun "
        "--ntasks=4, or another --ntasks-per-node, or type parallel.launcher=single"
    )


def test_not_as_many_tasks_on_each_machine() -> None:
    message = (
        "SLURM_STEP_TASKS_PER_NODE=3,1 is not as many tasks on each of SLURM_STEP_NUM_NODES=2: give srun "
        "--ntasks-per-node=2 --ntasks=4"
    )
    assert message_of(UNEVEN) == message
    assert message_of({**UNEVEN, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}) == message
    three = {**UNEVEN, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    assert message_of(three).endswith("--ntasks-per-node=2 --ntasks=4")


def test_torchrun_within_a_slurm_step() -> None:
    environment = resolve_environment("auto", {**STEP, **TORCHRUN})
    assert environment.source == FROM_TORCHRUN
    assert resolve_environment("slurm", {**TORCHRUN, **STEP, "MASTER_ADDR": "n0"}).source == FROM_SLURM


def test_a_single_process_by_request() -> None:
    assert resolve_environment("single", {**TORCHRUN, **STEP}) == LaunchEnvironment()
    assert resolve_environment("single", {"WORLD_SIZE": "4"}) == LaunchEnvironment()


def test_a_launcher_that_did_not_start_it() -> None:
    rows: list[tuple[Launcher, dict[str, str], str]] = [
        (
            "torchrun",
            {"RANK": "0"},
            "parallel.launcher=torchrun, but the environment has no LOCAL_RANK, WORLD_SIZE: start with torchrun, or "
            "type parallel.launcher=auto",
        ),
        (
            "slurm",
            BATCH,
            "parallel.launcher=slurm, but the environment has no SLURM_STEP_ID: start with srun, or type "
            "parallel.launcher=auto",
        ),
        (
            "auto",
            {"SLURM_STEP_ID": "0", **ONE_TASK, "SLURM_PROCID": "x"},
            "SLURM_PROCID='x' in the environment is not a number: unset SLURM_PROCID",
        ),
        (
            "auto",
            {name: value for name, value in STEP.items() if name != "SLURM_LOCALID"},
            "SLURM_STEP_ID set in the environment, but not SLURM_LOCALID: start with srun, or type "
            "parallel.launcher=single",
        ),
    ]
    assert [message_of(environ, launcher) for launcher, environ, _ in rows] == [message for _, _, message in rows]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert message_of({}, "ray") == "parallel.launcher=ray needs Ray: pip install 'ray[train]'"


def test_the_process_own_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    assert resolve_environment().rank == 3


def test_what_is_set_wrongly() -> None:
    """Partly, not to a number, or to a rank that is not in the world."""
    start = "start with torchrun, or unset"
    rows = [
        ({"RANK": "3"}, f"RANK set in the environment, but not LOCAL_RANK, WORLD_SIZE: {start}"),
        ({"WORLD_SIZE": "4"}, f"WORLD_SIZE set in the environment, but not RANK, LOCAL_RANK: {start}"),
        ({"WORLD_SIZE": "4", "RANK": "3"}, f"RANK, WORLD_SIZE set in the environment, but not LOCAL_RANK: {start}"),
    ]
    for name in (*PLACE, "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        for value in ("", "two", "-1", "1.0", " 1"):
            message = f"{name}={value!r} in the environment is not a number: unset {name}"
            rows.append(({**TORCHRUN, name: value}, message))
    for rank, world in ((4, 4), (7, 4), (0, 0)):
        message = f"RANK={rank} in the environment is not below WORLD_SIZE={world}: start with torchrun"
        rows.append(({**PLACE, "RANK": str(rank), "WORLD_SIZE": str(world)}, message))
    assert [message_of(environ) for environ, _ in rows] == [message for _, message in rows]


def test_a_local_rank_that_is_not_on_the_machine() -> None:
    message = message_of({**TORCHRUN, "LOCAL_RANK": "2"})
    assert message == "LOCAL_RANK=2 in the environment is not below LOCAL_WORLD_SIZE=2: start with torchrun"


def test_each_process_has_its_gpu() -> None:
    torchrun = resolve_environment("auto", TORCHRUN)
    assert [device_index(torchrun, count) for count in (2, 4, 8)] == [1, 1, 1]
    assert device_index(LaunchEnvironment(), 1) == 0
    slurm = resolve_environment("auto", {**STEP, "MASTER_ADDR": "n0", "MASTER_PORT": "1"})
    assert [device_index(slurm, count) for count in (1, 2, 8)] == [0, 1, 1]


def test_more_processes_than_gpus() -> None:
    with pytest.raises(ConfigError) as caught:
        device_index(resolve_environment("auto", TORCHRUN), 1)
    assert str(caught.value).endswith(
        "WORLD_SIZE): 2 workers on this node, but 1 visible GPU: start 1 on each node, or type device=cpu"
    )
    slurm = {**ONE_NODE, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NTASKS_PER_NODE": "4"}
    with pytest.raises(ConfigError) as caught:
        device_index(resolve_environment("auto", slurm), 3)
    assert str(caught.value).endswith(
        "4 workers on this node, but 3 visible GPUs: start 3 on each node, or type device=cpu, or srun --gpu-bind=none"
    )
    with pytest.raises(ConfigError, match="3 workers on this node, but 2 visible GPUs"):
        device_index(LaunchEnvironment(2, 3, 2, "a test"), 2)


def log_of_a_lonely_rank(environment: LaunchEnvironment, folder: Path) -> tuple[str, str]:
    """Start rank 0 of 2, whose rank 1 never comes; what was logged, and the message it ends with."""
    from fptt_dist.parallel.comm import process_group

    usual, process_group.START_SECONDS = process_group.START_SECONDS, 1.0
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
        process_group.START_SECONDS = usual
    raise AssertionError("one rank of two trained alone")


def test_the_place_is_said_before_the_first_collective(pool: Pool, tmp_path: Path) -> None:
    [(log, message)] = pool.run(log_of_a_lonely_rank, tmp_path / "run", world=1)
    place = "rank 0 of 2, local rank 0 (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)"
    assert log == f"{place}, on cpu\n"
    assert message.startswith(f"{place} could not meet the other workers within 1 s over gloo")


def test_how_often_slurm_started_the_job_again() -> None:
    meeting = {**STEP, "MASTER_ADDR": "n0"}
    starts: list[tuple[Launcher, dict[str, str], int]] = [
        *[("auto", {}, 0), ("auto", TORCHRUN, 1), ("auto", meeting, 2), ("auto", BATCH, 0)],
        *[("torchrun", TORCHRUN, 1), ("slurm", meeting, 2), ("single", STEP, 0)],
    ]
    for launcher, environ, restarts in starts:
        assert resolve_environment(launcher, environ).requeues == 0
        again = resolve_environment(launcher, {**environ, "SLURM_RESTART_COUNT": "2"})
        assert (again.requeues, again.restarts) == (2, restarts), (launcher, environ)
        message = "SLURM_RESTART_COUNT='often' in the environment is not a number: unset SLURM_RESTART_COUNT"
        assert message_of({**environ, "SLURM_RESTART_COUNT": "often"}, launcher) == message
