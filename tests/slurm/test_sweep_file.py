"""slurm/sweep.sbatch on a real SLURM of two nodes: Ray starts on both, is used, is interrupted, and is gone."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ray_sweeps.processes import LOOPBACK
from tests.slurm.cluster import Cluster
from tests.slurm.helpers import ROOT, Job, sbatch, small, variables

SWEEP = str(ROOT / "slurm" / "sweep.sbatch")
STEP = ["SLURM_STEP_ID", "SLURM_PROCID"]  # what would make a worker of Ray a task of SLURM

# Says what it sees, asks each node for its host name, and then ends, or stays, and fails when it is started again.
DRIVER = f"""
import json, os, pathlib, socket, sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def host():
    return [socket.gethostname(), *sorted(os.environ.keys() & set({STEP}))]

nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])

sys.path.insert(0, {str(ROOT)!r})
from tests.ray_sweeps.processes import listening, words
of_ray = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())]
of_ray = {{process for process in of_ray if "ray" in " ".join(words(process))}}
lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
seen = {{
    "hosts": sorted(ray.get([host.options(scheduling_strategy=node).remote() for node in nodes])),
    "here": socket.gethostname(),
    "cpus": ray.cluster_resources()["CPU"],
    "address": os.environ["RAY_ADDRESS"],
    "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
    "others may": token.parent.stat().st_mode & 0o077,
    "listening": sorted(set(listening(of_ray))),
    "shown": sum(token.read_bytes().strip() in line for line in lines),
}}
print("seen", json.dumps(seen), flush=True)
if sys.argv[1] == "stay":
    if seen["restarts"] != "0":
        sys.exit(3)
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        print("saved", flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> str:
    file = tmp_path / "driver.py"
    file.write_text(DRIVER)
    return str(file)


@pytest.fixture
def left(cluster: Cluster) -> Callable[[], list[str]]:
    """What stays of Ray that was not there before the test: processes on the nodes, folders."""

    def found() -> set[str]:
        lines = (line for name in cluster.names for line in cluster.processes(name).values())
        return {line for line in lines if "ray" in line} | {str(path) for path in Path("/tmp").glob("ray.*")}

    def new() -> list[str]:
        deadline = time.monotonic() + 20  # they end by themselves once their parent is gone
        while found() - before and time.monotonic() < deadline:
            time.sleep(0.1)
        return sorted(found() - before)

    before = found()
    return new


def seen(job: Job) -> list[dict[str, Any]]:
    """What the driver saw, at each of its starts."""
    return [json.loads(line.removeprefix("seen ")) for line in job.text().splitlines() if line.startswith("seen ")]


def submit(cluster: Cluster, folder: Path, *words: str, **more: str) -> Job:
    return sbatch(cluster, folder / "log", f"--chdir={folder}", *words, **more)


def test_on_one_node_nothing_listens_beyond_it(
    tmp_path: Path, cluster: Cluster, driver: str, left: Callable[[], list[str]]
) -> None:
    job = submit(cluster, tmp_path, "--nodes=1", SWEEP, sys.executable, driver, "end")
    job.end()
    assert left() == []
    (first,) = seen(job)
    assert first["address"].startswith("127.0.0.1:")
    assert first["listening"]
    assert set(first["listening"]) <= LOOPBACK


def test_interrupted_started_again_and_failed(
    tmp_path: Path, cluster: Cluster, driver: str, left: Callable[[], list[str]]
) -> None:
    job = submit(cluster, tmp_path, "--nodes=2", SWEEP, sys.executable, driver, "stay")
    job.until(lambda: len(seen(job)) == 1, "the driver")
    cluster.command("scancel", "--signal=USR2", "--batch", job.number)
    job.reach("PENDING")
    assert "saved" in job.text()
    job.start_now()
    job.end(state="FAILED", codes=("3:0",))
    assert left() == []
    first, second = seen(job)
    assert (first["restarts"], second["restarts"]) == ("0", "1")
    for each in (first, second):
        assert each["hosts"] == [["node0"], ["node1"]]
        assert each["here"] == "node0"
        assert each["cpus"] == 4  # two of each node, as the job has: not what the machine has
        assert each["others may"] == each["shown"] == 0
    assert first["address"] != second["address"]


def test_a_sweep_goes_on_when_its_job_does(tmp_path: Path, cluster: Cluster, left: Callable[[], list[str]]) -> None:
    config = small(tmp_path / "base", {"train.max_batches": 300, "evaluate.every_batches": 50})
    (tmp_path / "sweep.yaml").write_text(f"config: {config}\nspace: {{fptt.alpha: {{grid: [0, 0.2, 0.4, 0.6]}}}}\n")
    words = [f"{Path(sys.executable).parent}/fptt-dist", "sweep", "sweep.yaml", "run.dir=sweep"]
    job = submit(cluster, tmp_path, "--nodes=2", SWEEP, *words)
    job.until(lambda: len(list(tmp_path.glob("sweep/*/result.json"))) > 0, "a run")
    cluster.command("scancel", "--signal=USR2", "--batch", job.number)
    job.reach("PENDING")
    assert "stopped by a signal after" in job.text()
    size = "--nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --partition=main --time=04:00:00"
    again = f"sbatch {size} --chdir={tmp_path} slurm/sweep.sbatch {shlex.join(words)} --resume"
    assert f"\nresume with: {again}\n" in job.text()
    job.start_now()
    job.end()
    assert left() == []
    assert "5 runs of 1 worker of 1 CPU: 4 at once\n" in job.text()  # two CPUs on each of two nodes
    assert "--resume: SLURM started this job again\n" in job.text()
    results = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["finished"] * 5


def test_a_node_that_does_not_come(
    tmp_path: Path, cluster: Cluster, driver: str, left: Callable[[], list[str]]
) -> None:
    beside = Path(sys.executable).parent
    for name, text in {
        "ray": f"[ $(hostname) = node0 ] || {{ echo no memory; exit 1; }}\nexec {beside}/ray",
        "python3": f"exec {sys.executable}",
    }.items():
        (tmp_path / name).write_text(f'#!/bin/sh\n{text} "$@"\n')
        (tmp_path / name).chmod(0o755)
    job = submit(cluster, tmp_path, "--nodes=2", SWEEP, f"{tmp_path}/python3", driver, "end", SWEEP_WAIT="6")
    job.end(state="FAILED", codes=("1:0",))
    assert left() == []
    log = f"slurm-{job.number}-ray-node1.log"
    assert f"fptt-dist: not in Ray within 6 s: node1; see {log}\n" in job.text()
    assert "no memory" in (tmp_path / log).read_text()
    assert seen(job) == []


def test_mistakes(tmp_path: Path, cluster: Cluster) -> None:
    jobs = {}
    for name, words, message in (
        ("nothing", [], "no COMMAND: type sbatch"),
        ("nowhere", ["no-such-command"], "no-such-command was not found"),
        ("no Ray", ["echo"], "Ray was not found: pip install 'ray[tune]'"),
    ):
        (tmp_path / name).mkdir()
        jobs[message] = submit(cluster, tmp_path / name, SWEEP, *words, PATH="/usr/bin:/bin")
    for message, job in jobs.items():
        job.end(state="FAILED", codes=("2:0",))
        assert job.text().startswith(f"fptt-dist: {message}")
        assert job.text().count("\n") == 1


def test_outside_slurm(cluster: Cluster) -> None:
    done = subprocess.run(["bash", SWEEP, "true"], env=variables(cluster), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert (
        done.stderr == "fptt-dist: this is a job for SLURM: type sbatch [OPTIONS] slurm/sweep.sbatch COMMAND [WORDS…]\n"
    )
