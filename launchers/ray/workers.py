"""The workers of Ray Train, told where to meet, and left to connect themselves.

Ray's own backend for torch opens the store of the process group on all addresses of rank 0's node. `train` opens it on
that node's address in Ray's cluster alone, which is the loopback address where Ray is this node's own.
"""

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.train.torch
from ray.train.backend import Backend, BackendConfig

from fptt_dist.parallel.comm.store import family

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup


@dataclass
class MeetingPlace(ray.train.torch.TorchConfig):
    """Ray's configuration of torch, without a process group of Ray's."""

    @property
    def backend_cls(self) -> Any:
        """See `Backend`."""
        return _Backend


class _Backend(Backend):
    """Ray keeps one of these in a process."""

    # A worker sees the GPUs of all workers on its node, and takes the one of its local rank.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: "BaseWorkerGroup", backend_config: BackendConfig) -> None:
        """Tell all workers an address and a port of rank 0's node."""
        host, port = worker_group.execute_single(0, _reserve_port)
        worker_group.execute(_set_address, host, port)


_reserved: list[socket.socket] = []


def _reserve_port() -> tuple[str, int]:
    """Find a free port on this node's address in Ray's cluster, and keep others from it until this process ends."""
    host = ray.util.get_node_ip_address()
    held = socket.socket(family(host))
    # The store may bind the same port beside this socket, because both allow it and this one does not listen.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    _reserved.append(held)
    return host, held.getsockname()[1]


def _set_address(host: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
