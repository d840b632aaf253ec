"""The stores through which torchrun's agents, and then their workers, find each other.

On one node they are files that only the user may open. The agents of several nodes meet at a port, on one address
instead of on all. Torch's agents unpickle what they find in their store, and it has no authentication: whoever reaches
that port can run code as the user, so the network between the nodes must be closed to others. See SECURITY.md.
"""

import errno
import os
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from fptt_dist.parallel.comm.store import (
    STORE_FILE,
    family,
    listening_socket,
    names_no_interface,
    numeric_address,
    served,
    warn_of_open_port,
)

BACKEND = "fptt-dist"
"""The name by which torch's agent finds this rendezvous."""
KEEP_ALIVE_SECONDS = 600
READ_TIMEOUT = timedelta(seconds=60)


def on_one_node(private: str) -> dict[str, Any]:
    """Return the arguments of torch's `LaunchConfig` for an agent without others, and tell its workers their file.

    Args:
        private: a new folder that only this user may enter, kept while the agent runs.
    """
    os.environ[STORE_FILE] = os.path.join(private, "workers")
    return {
        "rdzv_backend": "c10d",
        "rdzv_endpoint": os.path.join(private, "agent"),
        # The file grows by each sign of life, which on one node nobody waits for.
        "rdzv_configs": {"store_type": "file", "keep_alive_interval": KEEP_ALIVE_SECONDS},
        "local_addr": "localhost",
    }


def between_nodes(place: str) -> dict[str, Any]:
    """Return the arguments of torch's `LaunchConfig` for one of several agents that meet at HOST:PORT."""
    os.environ.pop(STORE_FILE, None)
    rendezvous_handler_registry.register(BACKEND, _handler)
    return {
        "rdzv_backend": BACKEND,
        "rdzv_endpoint": place,
        "rdzv_configs": {},
        "local_addr": _own_address(place),
    }


def split(place: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 address may stand in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(place)
    return host, int(port)


def _own_address(place: str) -> str | None:
    """Return the address from which this node reaches HOST:PORT; None where other nodes could not reach it there."""
    host, port = split(place)
    found = numeric_address(host)
    with socket.socket(family(found), socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect((found, port))
        except OSError:
            return None
        own = str(probe.getsockname()[0])
    return None if names_no_interface(host, own) else own


class _Backend(C10dRendezvousBackend):
    @property
    def name(self) -> str:
        """Return the name that torch compares with the one asked for."""
        return BACKEND


def _handler(parameters: RendezvousParameters) -> RendezvousHandler:
    host, port = split(parameters.endpoint)
    try:
        store = _store(host, port)
    except (RuntimeError, ValueError) as error:
        raise RendezvousConnectionError(str(error)) from error
    return create_handler(store, _Backend(store, parameters.run_id), parameters)


def _store(host: str, port: int) -> dist.TCPStore:
    """Serve the store where `host` is this node, else connect to it."""
    found = numeric_address(host)
    try:
        if names_no_interface(host, found):
            store = dist.TCPStore(host, port, is_master=True, timeout=READ_TIMEOUT, wait_for_workers=False)
            warn_of_open_port(host, port, f"on this node it is {found}, which no other node reaches")
            return store
        return served(listening_socket(found, port), None, READ_TIMEOUT)
    except dist.DistNetworkError:
        pass  # the port is taken: another agent of this node serves the store
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            raise ValueError(f"{host}:{port}: {error.strerror}") from error
    return dist.TCPStore(host, port, timeout=READ_TIMEOUT, wait_for_workers=False)
