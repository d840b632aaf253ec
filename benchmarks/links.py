"""Network namespaces joined by a bridge, each behind a link of a given rate: real bandwidth limits on one node.

    worker 0 ── veth, tc tbf ─┐
    worker 1 ── veth, tc tbf ─┼─ bridge, in a namespace of its own
    worker 2 ── veth, tc tbf ─┘

Both ends of each link are shaped, so that a worker sends and receives at the rate. The node's own network is not
touched. Needs root, `ip` and `tc`.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
INTERFACE = "fptt0"
QUEUE = 16_000_000  # bytes that wait for their turn: nothing is dropped


@dataclass(frozen=True)
class Place:
    """The network of one worker.

    Attributes:
        namespace: its network namespace; None: the node's own network, the loopback interface.
        interface: that gloo uses.
        master: host:port where the workers meet.
    """

    namespace: str | None
    interface: str
    master: str

    def enter(self) -> None:
        """Move the calling thread, and those it starts later, there."""
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface
        if self.namespace is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
        with Path(f"/run/netns/{self.namespace}").open() as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {self.namespace}")


def loopback(world: int, port: int) -> list[Place]:
    """Return places for `world` workers in the node's own network."""
    return [Place(None, "lo", f"127.0.0.1:{port}")] * world


def burst(rate: int) -> int:
    """Return the bytes of a burst: a quarter of a millisecond's, at least two packets; small buffers are slowed too."""
    return max(3_100, rate * 125 // 4)


@contextmanager
def links(world: int, rate: int) -> Iterator[list[Place]]:
    """Yield places for `world` workers in network namespaces, each behind a link of `rate` Mbit/s, and remove them.

    Raises:
        SystemExit: not root, or no `ip` and `tc`.
    """
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        lack = f"there is no {' and no '.join(missing)}" if missing else "this is not root"
        raise SystemExit(f"links of {rate} Mbit/s are made of network namespaces with ip and tc, as root: {lack}")
    hub = f"fptt-{os.getpid()}"
    names = [f"{hub}-{rank}" for rank in range(world)]
    try:
        for name in (hub, *names):
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link set lo up")
        _run(f"ip -n {hub} link add bridge type bridge")
        _run(f"ip -n {hub} link set bridge up")
        for rank, name in enumerate(names):
            _run(f"ip -n {hub} link add port{rank} type veth peer name {INTERFACE} netns {name}")
            _run(f"ip -n {hub} link set port{rank} master bridge up")
            _run(f"ip -n {name} addr add 10.77.0.{rank + 1}/24 dev {INTERFACE}")
            _run(f"ip -n {name} link set {INTERFACE} up")
            for where, device in ((hub, f"port{rank}"), (name, INTERFACE)):
                shape = f"tbf rate {rate}mbit burst {burst(rate)} limit {QUEUE}"
                _run(f"tc -n {where} qdisc add dev {device} root {shape}")
        yield [Place(name, INTERFACE, "10.77.0.1:29577") for name in names]
    finally:
        for name in (*names, hub):  # their links go with them
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.strip()}")
