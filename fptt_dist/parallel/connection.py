"""How the processes of one job are connected, and how long each waits for the others."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from fptt_dist.config.errors import ConfigError
from fptt_dist.parallel.collectives import Communicator, GroupCommunicator
from fptt_dist.parallel.environment import LaunchEnvironment, set_variables
from fptt_dist.parallel.lost import LostWorkerError, dump_flight_recorder
from fptt_dist.parallel.store import STORE_FILE, address, on_one_node, open_store, socket_variables

START_SECONDS = 300.0  # to find each other, and until the first batch is trained
RECORDED = 2000  # collectives that the flight recorder remembers
_was_connected = False


def was_connected() -> bool:
    """Whether this process has connected itself to others, now or before."""
    return _was_connected


@contextmanager
def process_group(environment: LaunchEnvironment, device: torch.device, evidence: Path) -> Iterator[Communicator]:
    """The processes of one job, connected while the context lasts: NCCL on GPUs, gloo without.

    Nothing is connected for a single process; a group that is there already (Ray's) is used. Every wait ends with an
    error, after five minutes until `tighten` makes it less.

    Args:
        environment: this process's place.
        device: where it computes.
        evidence: the folder that receives the flight recorder's memory when a collective fails.

    Raises:
        ConfigError: the processes did not find each other, or are not as many as announced.
        LostWorkerError: a collective failed within the context.
    """
    if environment.world == 1:
        yield Communicator()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    found = dist.is_initialized()
    sockets = socket_variables() if on_one_node(environment) else {}
    with _recording(evidence), set_variables(sockets):
        if not found:
            global _was_connected
            _was_connected = True
            with _meeting(environment, backend):
                dist.init_process_group(
                    backend,
                    store=open_store(environment, START_SECONDS),
                    rank=environment.rank,
                    world_size=environment.world,
                    timeout=timedelta(seconds=START_SECONDS),
                )
        try:
            everyone = communicator(environment, device)
            with _meeting(environment, backend):
                counted = int(everyone.sum(torch.ones(1, device=device), name="first").item())
            if counted != environment.world:
                raise ConfigError(f"{environment}, but {counted} processes answered")
            yield everyone
        except LostWorkerError:
            dump_flight_recorder(evidence)
            raise
        finally:
            if not found:
                dist.destroy_process_group()


def communicator(environment: LaunchEnvironment, device: torch.device) -> Communicator:
    """All workers of the job, in the process group that is there; a worker alone where there is none."""
    if environment.world == 1:
        return Communicator()
    return GroupCommunicator(list(range(environment.world)), None, device)


def machines(environment: LaunchEnvironment, everyone: Communicator) -> tuple[Communicator, Communicator]:
    """The workers on this machine, and those with the same local rank on the machines; called by all together.

    Raises:
        ConfigError: the machines have not as many workers each.
    """
    places = everyone.gather([environment.node, environment.local_rank], name="machines")
    inside: dict[int, list[int]] = {}
    across: dict[int, list[int]] = {}
    for rank, (node, local_rank) in enumerate(places):
        inside.setdefault(node, []).append(rank)
        across.setdefault(local_rank, []).append(rank)
    sizes = {len(ranks) for ranks in inside.values()}
    if len(sizes) > 1:
        counts = ", ".join(f"{len(ranks)} on machine {node}" for node, ranks in sorted(inside.items()))
        raise ConfigError(
            f"parallel.strategy=hierarchical needs as many processes on each machine, there are {counts}: start "
            "equally many, or type parallel.strategy=consensus"
        )
    made = []
    for mine, groups in ((environment.node, inside), (environment.local_rank, across)):
        made.append(Communicator())
        for key, ranks in sorted(groups.items()):
            # Torch wants every worker to take part in making every group.
            group = dist.new_group(ranks) if len(ranks) > 1 else None
            if key == mine and isinstance(group, dist.ProcessGroup):
                made[-1] = GroupCommunicator(ranks, group, everyone.device)
    return made[0], made[1]


def beside(everyone: Communicator) -> Communicator:
    """The same workers in a process group of their own, over gloo, for a thread beside the one that trains; called by
    all together.
    """
    if everyone.world == 1:
        return Communicator()
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return GroupCommunicator(list(range(everyone.world)), group, torch.device("cpu"))


def tighten(communicators: list[Communicator], seconds: float) -> None:
    """From now on wait for the others no longer than `seconds`: the slow first batch is over on all workers."""
    for each in communicators:
        if isinstance(each, GroupCommunicator):
            # Before any worker waits less, all must have left what takes long.
            each.barrier(name="first batch done")
            limit_waits(each.group, seconds)


def limit_waits(group: dist.ProcessGroup | None, seconds: float) -> None:
    """Let no collective of the group (None: of the whole job's) wait longer than so many seconds."""
    _set_pg_timeout(timedelta(seconds=seconds), group or dist.group.WORLD)


@contextmanager
def _recording(evidence: Path) -> Iterator[None]:
    """Torch's flight recorder on, dumping into `evidence`; what the user set himself stays."""
    wanted = {
        "TORCH_FR_BUFFER_SIZE": str(RECORDED),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(evidence / "flight_recorder_nccl_rank"),
    }
    with set_variables(wanted):
        yield


@contextmanager
def _meeting(environment: LaunchEnvironment, backend: str) -> Iterator[None]:
    """Turn torch's errors into one message."""
    try:
        yield
    except (RuntimeError, ValueError, LostWorkerError) as error:
        raise ConfigError(
            f"{environment} could not meet the other processes within {START_SECONDS:.0f} s over {backend}"
            f"{_reachable(environment)}: {error}"
        ) from error


def _reachable(environment: LaunchEnvironment) -> str:
    """Whether the place where they meet answers, in words."""
    host, port = address(environment)
    if STORE_FILE in os.environ or not (host and port.isdecimal()):
        return ""
    if environment.rank == 0:
        return f"; they meet here, at {host}:{port}: if another program has that port, type another MASTER_PORT"
    try:
        socket.create_connection((host, int(port)), timeout=3.0).close()
    except OSError as error:
        return f"; {host}:{port}, where they meet, does not answer ({error})"
    return f"; {host}:{port}, where they meet, answers"
