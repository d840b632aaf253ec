"""How many threads a process takes where nobody has said it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.parallel.comm.environment import FROM_SLURM, FROM_TORCHRUN
from fptt_dist.training.setup.device import threads

ROOT = Path(__file__).parents[2]


def workers(local_world: int, source: str = FROM_TORCHRUN) -> LaunchEnvironment:
    return LaunchEnvironment(0, 2 * local_world, 0, source, local_world, nodes=2)


def test_cores_are_shared_out(subtests: pytest.Subtests) -> None:
    for environment, cores, variables, expected in (
        (LaunchEnvironment(), 1, {}, 1),
        (LaunchEnvironment(), 16, {}, 16),
        (workers(1), 16, {}, 16),  # one on each of two machines
        (workers(2), 2, {}, 1),
        (workers(2), 16, {}, 8),
        (workers(3), 16, {}, 5),
        (workers(4), 2, {}, 1),
        (workers(2), 16, {"OMP_NUM_THREADS": "3"}, None),
        (workers(2), 16, {"MKL_NUM_THREADS": "3"}, None),
        (LaunchEnvironment(), 16, {"OMP_NUM_THREADS": "1"}, None),
        # SLURM's task has its cores for itself, whether it is bound to them or not
        (workers(2, FROM_SLURM), 4, {"SLURM_CPUS_PER_TASK": "4"}, 4),
        (workers(2, FROM_SLURM), 16, {"SLURM_CPUS_PER_TASK": "4"}, 4),
        (workers(2, FROM_SLURM), 2, {"SLURM_CPUS_PER_TASK": "4"}, 2),
        (workers(2, FROM_SLURM), 16, {}, 8),
        # torchrun's processes share those of the task that torchrun runs in
        (workers(4), 64, {"SLURM_CPUS_PER_TASK": "16"}, 4),
        (workers(4), 8, {"SLURM_CPUS_PER_TASK": "16"}, 2),
        (LaunchEnvironment(), 64, {"SLURM_CPUS_PER_TASK": "16"}, 16),
        (workers(2), 16, {"SLURM_CPUS_PER_TASK": "many"}, 8),
    ):
        with subtests.test(environment=environment, cores=cores, variables=variables):
            assert threads(environment, cores, variables) == expected


SCRIPT = """
import json, os, sys, torch
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training import run

def found(before):
    torch.set_num_threads(before)
    for local_world in (1, 2, 2, 10**6):
        with run._connected(LaunchEnvironment(local_world=local_world), torch.device("cpu"), None):
            yield torch.get_num_threads()

cores = int(sys.argv[1])
shared = [list(found(2 * cores)), list(found(1))]
os.environ["OMP_NUM_THREADS"] = "6"
print(json.dumps([*shared, list(found(2 * cores))]))
"""


@pytest.mark.slow
def test_a_process_takes_its_share_and_never_more_than_it_had() -> None:
    known = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "SLURM_CPUS_PER_TASK")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", SCRIPT, str(cores)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    half = max(1, cores // 2)
    assert json.loads(done.stdout) == [[cores, half, half, 1], [1] * 4, [2 * cores] * 4]
