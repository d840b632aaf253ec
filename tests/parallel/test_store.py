"""The store through which workers meet: who can reach it, and what is said where that is more than need be."""

import logging
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.parallel.comm import errors, store
from fptt_dist.parallel.comm.environment import FROM_SLURM, FROM_TORCHRUN
from tests.program import WARM
from tests.ray_sweeps.processes import listening

LOOPBACK_NAME = "127.1"  # 127.0.0.1 to whoever looks it up, as Debian's own name of a node is, and no plain address
NOT_HERE = "198.51.100.7"  # of a network for examples
SECONDS = 20.0
ANYWHERE = {"00000000", "0" * 32}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_opened", {})
    for name in (store.STORE_FILE, "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def both_open(environment: LaunchEnvironment) -> tuple[list[dist.Store | None], set[str]]:
    """Open the store as rank 0 and rank 1 of two; the stores, and the addresses at which this process listens then."""
    opened: list[dist.Store | None] = [None, None]

    def rank(number: int) -> None:
        opened[number] = store.open_store(replace(environment, rank=number, local_rank=number), SECONDS)

    before = sorted(listening({os.getpid()}))
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = sorted(listening({os.getpid()}))
    for address in before:
        after.remove(address)
    return opened, set(after)


def assert_shared(opened: list[dist.Store | None]) -> None:
    first, second = opened
    assert first is not None
    assert second is not None
    first.set("from 0", "a")
    second.set("from 1", "b")
    assert (first.get("from 1"), second.get("from 0")) == (b"b", b"a")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "nodes", "bound"),
    [
        ("localhost", 1, "0100007F"),
        ("127.0.0.1", 2, "0100007F"),
        ("127.0.0.2", 2, "0200007F"),  # one of several addresses of this node
        (LOOPBACK_NAME, 1, "0100007F"),
    ],
)
def test_rank_0_listens_at_the_address_alone(
    host: str, nodes: int, bound: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = LaunchEnvironment(0, 2, 0, FROM_SLURM, nodes=nodes, master=f"{host}:{free_port()}")
    opened, sockets = both_open(place)
    assert sockets == {bound}
    assert_shared(opened)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["file", "port"])
def test_workers_that_meet_again_find_nothing_of_the_time_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "file":
        monkeypatch.setenv(store.STORE_FILE, str(tmp_path / "store"))
    place = LaunchEnvironment(0, 2, 0, FROM_TORCHRUN, master=f"127.0.0.1:{free_port()}")
    first, _ = both_open(place)
    again, sockets = both_open(place)
    assert sockets == set()
    assert_shared(first)
    assert again[0] is not None
    assert not again[0].check(["from 0"])
    assert_shared(again)


@pytest.mark.parametrize("host", [LOOPBACK_NAME, NOT_HERE])
def test_a_host_that_names_no_interface(
    host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the port is open everywhere, as it always was, and that is said."""
    port = free_port()
    place = LaunchEnvironment(0, 1, 0, FROM_SLURM, nodes=2, master=f"{host}:{port}")
    if host == NOT_HERE:
        # Only the server is wanted: torch's own client would look for it where nobody is.
        monkeypatch.setattr(dist, "TCPStore", lambda *args, **kwargs: (args, kwargs))
        monkeypatch.setattr(dist, "PrefixStore", lambda prefix, store: store)
        assert store.open_store(place, 1.0) == (
            (host, port, 1),
            {"is_master": True, "timeout": timedelta(seconds=1)},
        )
        reason = f"{host} is no address of this node"
    else:
        before = sorted(listening({os.getpid()}))
        opened = store.open_store(place, 1.0)
        after = sorted(listening({os.getpid()}))
        for address in before:
            after.remove(address)
        assert opened is not None
        assert set(after) <= ANYWHERE
        assert after
        reason = "on this node it is 127.0.0.1, which no other node reaches"
    assert caplog.record_tuples == [
        (
            "fptt_dist",
            logging.WARNING,
            f"port {port} is open on all addresses of this node, not only on that of {host}: {reason}; as MASTER_ADDR "
            "or --rdzv give a numeric address that only the nodes of this job reach",
        )
    ]


def test_a_file_instead_of_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.STORE_FILE, str(tmp_path / "workers"))
    place = LaunchEnvironment(0, 2, 0, FROM_TORCHRUN, restarts=3)
    opened, sockets = both_open(place)
    assert sockets == set()
    assert_shared(opened)
    assert [path.name for path in tmp_path.iterdir()] == ["workers.3"], "a restart must not find the old addresses"


def test_the_file_is_for_the_workers_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.STORE_FILE, str(tmp_path / "workers"))
    opened, _ = both_open(LaunchEnvironment(0, 2, 0, FROM_SLURM, master=f"localhost:{free_port()}"))
    assert_shared(opened)
    assert not list(tmp_path.iterdir())


def test_what_torch_finds_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    place = LaunchEnvironment(0, 2, 0, FROM_TORCHRUN)
    assert store.open_store(place, 1.0) is None, "nobody has said where"
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert store.open_store(place, 1.0) is None, "the agent serves it"


def test_mistakes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            store.open_store(LaunchEnvironment(0, 2, 0, FROM_SLURM, master=f"127.0.0.1:{port}"), 1.0)
    assert str(caught.value) == (
        f"127.0.0.1:{port}, where the workers meet: Address already in use: type another MASTER_PORT"
    )
    with pytest.raises(ConfigError) as caught:
        store.open_store(LaunchEnvironment(0, 2, 0, FROM_SLURM, master="no.such.host.invalid:1"), 1.0)
    assert str(caught.value).startswith(
        "no.such.host.invalid, where the workers meet, is no host that this node knows ("
    )
    assert str(caught.value).endswith("): set MASTER_ADDR to an address of rank 0's node")


@pytest.mark.parametrize(
    ("environment", "variables", "together"),
    [
        (LaunchEnvironment(0, 2, 0, FROM_TORCHRUN), {"GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "node0"}, True),
        (LaunchEnvironment(0, 2, 0, FROM_TORCHRUN, nodes=2), {"GROUP_WORLD_SIZE": "2"}, False),
        (LaunchEnvironment(0, 2, 0, FROM_TORCHRUN), {"MASTER_ADDR": "localhost"}, True),
        (LaunchEnvironment(0, 2, 0, FROM_TORCHRUN), {"MASTER_ADDR": "::1"}, True),
        (LaunchEnvironment(0, 2, 0, FROM_TORCHRUN), {"MASTER_ADDR": "node0"}, False),  # set by hand, of how many nodes?
        (LaunchEnvironment(0, 2, 0, FROM_SLURM, nodes=1), {}, True),
        (LaunchEnvironment(0, 2, 0, FROM_SLURM, nodes=2), {}, False),
    ],
)
def test_on_one_node(
    environment: LaunchEnvironment, variables: dict[str, str], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store.on_one_node(environment) is together


def stand_still(port: int) -> None:
    """Serve a store until there is a key in it."""
    served = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    served.wait(["here"])
    os.kill(os.getpid(), signal.SIGSTOP)


def test_who_serves_the_store_and_stands_still_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would wait for it as long as it stands still."""
    port = free_port()
    server = WARM.Process(target=stand_still, args=(port,), daemon=True)
    server.start()
    try:
        opened = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=SECONDS))
        opened.set("here", "")
        while Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        monkeypatch.setattr(errors, "GRACE", 0.2)
        monkeypatch.setattr(errors, "_get_default_store", lambda: opened)
        assert errors.silent_ranks([0, 1, 2], own=1) == [0]
    finally:
        server.kill()
        server.join()
