"""Connection of the workers of one job, and the time that each waits for the others."""

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
from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator
from fptt_dist.parallel.comm.environment import LaunchEnvironment, set_variables
from fptt_dist.parallel.comm.errors import LostWorkerError, dump_flight_recorder
from fptt_dist.parallel.comm.store import STORE_FILE, address, on_one_node, open_store, socket_variables

START_SECONDS = 300.0  # to find each other, and until the first batch is trained
RECORDED = 2000  # collectives that the flight recorder remembers
_was_connected = False


def was_initialized() -> bool:
    """Return whether this process has initialized a process group, now or before."""
    return _was_connected


@contextmanager
def process_group(environment: LaunchEnvironment, device: torch.device, evidence: Path) -> Iterator[Communicator]:
    """Connect the workers of one job within the context: NCCL on GPUs, gloo without.

    A single worker connects to nothing; a process group that exists already (Ray's) is used. A wait for the others that
    takes longer than five minutes ends with an error; `set_pg_timeouts` lowers that limit.

    Args:
        environment: this worker's place in the job.
        device: where it computes.
        evidence: the folder that receives the flight recorder's records when a collective fails.

    Raises:
        ConfigError: the workers did not find each other, or their number is not the world size.
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
                counted = int(everyone.all_reduce(torch.ones(1, device=device), name="first").item())
            if counted != environment.world:
                raise ConfigError(f"{environment}, but {counted} workers answered")
            yield everyone
        except LostWorkerError:
            dump_flight_recorder(evidence)
            raise
        finally:
            if not found:
                dist.destroy_process_group()


def communicator(environment: LaunchEnvironment, device: torch.device) -> Communicator:
    """Return all workers of the job, in the existing process group; a single worker where there is none."""
    if environment.world == 1:
        return Communicator()
    return GroupCommunicator(list(range(environment.world)), None, device)


def node_groups(environment: LaunchEnvironment, everyone: Communicator) -> tuple[Communicator, Communicator]:
    """Return the workers on this node, and those with its local rank on all nodes; called by all workers together.

    Raises:
        ConfigError: the nodes do not have the same number of workers.
    """
    places = everyone.all_gather_object([environment.node, environment.local_rank], name="nodes")
    inside: dict[int, list[int]] = {}
    across: dict[int, list[int]] = {}
    for rank, (node, local_rank) in enumerate(places):
        inside.setdefault(node, []).append(rank)
        across.setdefault(local_rank, []).append(rank)
    sizes = {len(ranks) for ranks in inside.values()}
    if len(sizes) > 1:
        counts = ", ".join(f"{len(ranks)} on node {node}" for node, ranks in sorted(inside.items()))
        raise ConfigError(
            f"parallel.strategy=hierarchical needs the same number of workers on each node, but there are {counts}: "
            "start equally many, or type parallel.strategy=consensus"
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


def new_gloo_group(everyone: Communicator) -> Communicator:
    """Return the same workers in a gloo process group of their own, for a thread beside the one that trains; called by
    all workers together.
    """
    if everyone.world == 1:
        return Communicator()
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return GroupCommunicator(list(range(everyone.world)), group, torch.device("cpu"))


def set_pg_timeouts(communicators: list[Communicator], seconds: float) -> None:
    """Limit later waits for the others to `seconds`: the slow first batch is over on all workers."""
    for each in communicators:
        if isinstance(each, GroupCommunicator):
            # Before any worker waits less, all must have left what takes long.
            each.barrier(name="first batch done")
            limit_waits(each.group, seconds)


def limit_waits(group: dist.ProcessGroup | None, seconds: float) -> None:
    """Let no collective of the group (None for that of the whole job) wait longer than `seconds`."""
    _set_pg_timeout(timedelta(seconds=seconds), group or dist.group.WORLD)


@contextmanager
def _recording(evidence: Path) -> Iterator[None]:
    """Turn on torch's flight recorder, which dumps into `evidence`; variables that the user has set stay."""
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
            f"{environment} could not meet the other workers within {START_SECONDS:.0f} s over {backend}"
            f"{_reachable(environment)}: {error}"
        ) from error


def _reachable(environment: LaunchEnvironment) -> str:
    """Return, in words, whether the address where the workers meet answers."""
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
