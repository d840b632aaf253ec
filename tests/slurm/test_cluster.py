"""The SLURM that the other tests of this folder use: that it is one, what its nodes see, and that nothing is left."""

import ipaddress
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.slurm.cluster import CONTROLLER, MUNGE, Cluster

ROOT = Path(__file__).parents[2]
LISTENS = "0A"
# A child that its job cannot reach by its process group, and that no polite signal ends.
STUBBORN = "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done' &\n"


def script(tmp_path: Path, text: str) -> str:
    """The name of a batch script."""
    path = tmp_path / "job.sh"
    path.write_text(f"#!/bin/sh\n{text}")
    return str(path)


def wait_until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(cluster: Cluster) -> set[int]:
    """The processes of all machines."""
    return {pid for name in (MUNGE, CONTROLLER, *cluster.names) for pid in cluster.processes(name)}


def runs(cluster: Cluster, name: str, ending: str) -> bool:
    """Whether a process with a command line that ends so is on a node."""
    return any(line.endswith(ending) for line in cluster.processes(name).values())


def alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def addresses(pids: Iterable[int]) -> set[str]:
    """Where processes accept connections."""
    sockets = {os.readlink(file) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir()}
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in sockets:
                digits = bytes.fromhex(fields[1].partition(":")[0])  # in words of four bytes, the last byte first
                words = [digits[start : start + 4][::-1] for start in range(0, len(digits), 4)]
                found.add(str(ipaddress.ip_address(b"".join(words))))
    return found


def test_the_nodes_come_and_go_and_nothing_is_left(tmp_path: Path, installed: None) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder), 4)
        begin = time.monotonic()
        cluster.start()
        assert time.monotonic() - begin < 15
        names = [f"node{index}" for index in range(4)]
        printed = cluster.command("srun", "--nodes=4", "--label", "hostname").splitlines()
        assert sorted(printed) == [f"{index}: {name}" for index, name in enumerate(names)]
        cluster.submit("--output=/dev/null", script(tmp_path, STUBBORN + "exit 0\n"))
        cluster.submit("--wrap=sleep 100", "--output=/dev/null", "--nodes=4")
        wait_until(lambda: runs(cluster, "node0", "sleep 1000") and runs(cluster, "node0", "sleep 100"))
        pids = processes(cluster)
        assert len(pids) > 10
        begin = time.monotonic()
        cluster.stop()
        assert time.monotonic() - begin < 5
        assert alive(pids) == []
    assert not Path(folder).exists()


def test_the_names_of_the_nodes(cluster: Cluster) -> None:
    code = "import socket; print(socket.gethostname(), socket.getfqdn(), socket.gethostbyname('node0'))"
    printed = cluster.command("srun", "--nodes=2", "--label", sys.executable, "-c", code).splitlines()
    assert sorted(printed) == ["0: node0 node0 127.0.0.1", "1: node1 node1 127.0.0.1"]


def test_all_is_on_loopback(cluster: Cluster, tmp_path: Path) -> None:
    cluster.submit("--nodes=2", "--output=/dev/null", script(tmp_path, "srun sleep 100\n"))
    wait_until(lambda: all(runs(cluster, name, "/sleep 100") for name in cluster.names))
    assert runs(cluster, "node0", "srun sleep 100")
    assert addresses(processes(cluster)) == {"127.0.0.1"}


def test_a_job_of_an_outer_slurm_does_not_show(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1000")
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    job = cluster.submit("--wrap=true", "--output=/dev/null")
    cluster.wait_for(job, {"COMPLETED"}, 20)
    assert cluster.command("squeue", "--states=all", f"--jobs={job}", "-ho", "%P").strip() == "main"


def test_an_array(cluster: Cluster) -> None:
    job = cluster.submit("--wrap=exit $SLURM_ARRAY_TASK_ID", "--array=0-1", "--output=/dev/null")
    cluster.wait_for(job, {"COMPLETED", "FAILED"}, 20)
    assert cluster.states(job) == {"COMPLETED", "FAILED"}
    assert (cluster.state(f"{job}_0"), cluster.state(f"{job}_1")) == ("COMPLETED", "FAILED")


def test_a_message_tells_what_was_waited_for(cluster: Cluster) -> None:
    job = cluster.submit("--wrap=sleep 100", "--output=/dev/null")
    with pytest.raises(pytest.fail.Exception) as caught:
        cluster.wait_for(job, {"COMPLETED"}, 0.5)
    message = str(caught.value)
    assert f"waited 0.5 s for job {job} to be {{'COMPLETED'}}, in vain" in message
    assert f"JobId={job} JobName=wrap" in message
    assert "controller:\n" in message
    assert "slurmd version" in message or "launch" in message


ABANDONED = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
from tests.slurm.test_cluster import processes
cluster = Cluster(Path(sys.argv[1]), 1)
cluster.start()
print(*processes(cluster), flush=True)
time.sleep(100)
"""


def test_nothing_is_left_of_killed_tests(tmp_path: Path, installed: None) -> None:
    words = [sys.executable, "-c", ABANDONED, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        pids = [int(word) for word in tests.stdout.readline().split()]
        running = alive(pids)
        tests.send_signal(signal.SIGKILL)
    assert len(pids) > 6
    assert running == pids
    wait_until(lambda: alive(pids) == [])


def test_ports_that_another_program_has(new_cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    """First the controller's, then the node's."""
    drawn: list[list[int]] = []
    sample = random.sample

    def unlucky(ports: range, count: int) -> list[int]:
        found = sample(ports, count)
        if len(drawn) < count:
            found[len(drawn)] = taken
        drawn.append(found)
        return found

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        monkeypatch.setattr(random, "sample", unlucky)
        cluster = new_cluster(1)
    assert len(drawn) == 3
    assert cluster.node_state("node0") == "idle"
