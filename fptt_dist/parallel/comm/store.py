"""The store through which the workers of a job find each other, and who else can reach it.

    all on one node, started by `launch`     a file that only this user can open; no port
    all on one node, started otherwise       a port on the loopback address
    several nodes                            a port on the address that the workers are given, on rank 0's node
    torchrun's agent shares its own store    that one: its port is torchrun's business

The store has no authentication: whoever can reach it can disturb the run. Nothing that is read from it is unpickled.
"""

import errno
import ipaddress
import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from fptt_dist.config.errors import ConfigError
from fptt_dist.parallel.comm.environment import FROM_TORCHRUN, LaunchEnvironment

LOG = logging.getLogger("fptt_dist")

STORE_FILE = "FPTT_DIST_STORE"
"""The variable with the path of the file store, set by `launch` for the workers of one node."""
PREFIX = "default_pg"
"""Torch's own, so that a worker that lets torch open the store meets the others too."""
LOOPBACK = "lo"
"""The loopback interface, by the name that Linux gives it."""
BACKLOG = 2048


@dataclass
class _Opened:
    """A store that this process has opened, which stays open: the others may still need rank 0's.

    Attributes:
        store: None where torch finds it by itself.
        times: number of times that the workers have met there.
    """

    store: dist.Store | None
    times: int = 0


_opened: dict[tuple[int, LaunchEnvironment, str | None, tuple[str, str]], _Opened] = {}
"""By process (a forked one has its parent's entries too), worker, and place."""


def open_store(environment: LaunchEnvironment, seconds: float) -> dist.Store | None:
    """Return this worker's store, under the prefix that torch gives the one that it opens itself.

    Where one program trains several times its workers meet at the same store again, each time under another prefix:
    the addresses of the time before are still there.

    Args:
        environment: this worker's place.
        seconds: that each of the store's operations waits.

    Returns:
        None where torch is to find the store by itself, from the variables that torchrun's agent has set.

    Raises:
        ConfigError: another program has the port, or the host is unknown.
        RuntimeError: the others did not come in time, or rank 0 does not answer.
    """
    key = os.getpid(), environment, os.environ.get(STORE_FILE), address(environment)
    if key not in _opened:
        _opened[key] = _Opened(_open(environment, timedelta(seconds=seconds)))
    here = _opened[key]
    here.times += 1
    if here.times == 1:
        return None if here.store is None else dist.PrefixStore(PREFIX, here.store)
    store = here.store or _found_by_torch(environment, timedelta(seconds=seconds))
    return dist.PrefixStore(f"{PREFIX}/{here.times}", store)


def _found_by_torch(environment: LaunchEnvironment, timeout: timedelta) -> dist.Store:
    found: tuple[dist.Store, int, int] = next(
        iter(dist.rendezvous("env://", environment.rank, environment.world, timeout=timeout))
    )
    return found[0]


def _open(environment: LaunchEnvironment, timeout: timedelta) -> dist.Store | None:
    """Open the store; None where torch is to find it."""
    file = os.environ.get(STORE_FILE)
    if file is not None and environment.source == FROM_TORCHRUN:
        # A restart gets a file of its own: the addresses of the workers before it are still in the old one.
        store = dist.FileStore(f"{file}.{environment.restarts}", environment.world)
        store.set_timeout(timeout)
        return store
    host, port = address(environment)
    agents = environment.master is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if agents or not port.isdecimal():
        return None
    if environment.rank > 0:
        return dist.TCPStore(host, int(port), environment.world, timeout=timeout)
    return _serve(environment, host, int(port), timeout)


def _serve(environment: LaunchEnvironment, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """Open rank 0's store at a port."""
    found = numeric_address(host)
    if names_no_interface(host, found) and not on_one_node(environment):
        warn_of_open_port(host, port, f"on this node it is {found}, which no other node reaches")
    else:
        try:
            return served(listening_socket(found, port), environment.world, timeout)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"{host}:{port}, where the workers meet: {error.strerror}: type another MASTER_PORT"
                ) from error
        warn_of_open_port(host, port, f"{found} is no address of this node")
    return dist.TCPStore(host, port, environment.world, is_master=True, timeout=timeout)


def address(environment: LaunchEnvironment) -> tuple[str, str]:
    """Return host and port where the workers meet; empty where nobody has said so."""
    host, _, port = (environment.master or "").rpartition(":")
    return (host, port) if host else (os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", ""))


def on_one_node(environment: LaunchEnvironment) -> bool:
    """Return whether all workers are known to be on this node."""
    if environment.source == FROM_TORCHRUN and "GROUP_WORLD_SIZE" not in os.environ:
        # The variables were set by hand, and say nothing of nodes.
        return is_loopback(address(environment)[0])
    return environment.nodes == 1


def socket_variables() -> dict[str, str]:
    """Return the variables that keep gloo's and NCCL's own sockets on the loopback interface, where there is one."""
    if LOOPBACK not in (name for _, name in socket.if_nameindex()):
        return {}
    return {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}


def names_no_interface(host: str, found: str) -> bool:
    """Return whether `host`, whose address here is `found`, is a name that only looks as if others could use it.

    Debian gives a node's own name the loopback address 127.0.1.1 on that node.
    """
    return is_loopback(found) and not is_loopback(host)


def listening_socket(found: str, port: int) -> socket.socket:
    """Listen at one numeric address of this node.

    Args:
        found: from `numeric_address`.
        port: 0 for any.

    Raises:
        OSError: EADDRNOTAVAIL: it is no address of this node; EADDRINUSE: another program has the port; others.
    """
    listening = socket.socket(family(found))
    try:
        # The connections of a run that has just ended may not be forgotten yet.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((found, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def served(listening: socket.socket, world: int | None, timeout: timedelta) -> dist.TCPStore:
    """Serve a store at a listening socket, which belongs to the store from now on.

    Args:
        listening: from `listening_socket`.
        world: workers to wait for; None: any number, without waiting.
        timeout: of each operation.
    """
    own, port = listening.getsockname()[:2]
    return dist.TCPStore(
        own, port, world, True, timeout, wait_for_workers=world is not None, master_listen_fd=listening.detach()
    )


def numeric_address(host: str) -> str:
    """Return the first address that `host` stands for on this node.

    Raises:
        ConfigError: it stands for none.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise ConfigError(
            f"{host}, where the workers meet, is no host that this node knows ({error.strerror}): set MASTER_ADDR to "
            "an address of rank 0's node"
        ) from error


def warn_of_open_port(host: str, port: int | str, reason: str) -> None:
    """Say that a port is open on all addresses of this node, and what to do about it."""
    LOG.warning(
        "port %s is open on all addresses of this node, not only on that of %s: %s; as MASTER_ADDR or --rdzv give a "
        "numeric address that only the nodes of this job reach",
        port,
        host,
        reason,
    )


def family(found: str) -> socket.AddressFamily:
    """Return the family of a numeric address."""
    return socket.AF_INET6 if ":" in found else socket.AF_INET


def is_loopback(host: str) -> bool:
    """Return whether `host` is "localhost" or an address of the loopback network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
