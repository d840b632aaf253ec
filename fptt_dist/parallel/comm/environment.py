"""This worker's rank, node and world size, read once from the launcher that started it."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

from fptt_dist.config.errors import ConfigError

Launcher = Literal["auto", "torchrun", "ray", "slurm", "single"]

ALONE = "single process"
FROM_TORCHRUN = "torchrun's RANK, LOCAL_RANK and WORLD_SIZE"
FROM_SLURM = "SLURM's step variables"
FROM_RAY = "Ray Train's context"

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
STEP = "SLURM_STEP_ID"
# The step's own: those of the job (SLURM_NTASKS, SLURM_NODELIST) say something else in a shell, or in a smaller step.
TASK, LOCAL_TASK, NODE = "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"
TASKS, NODES = "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"
LAYOUT, HOSTS = "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"
AUTO = ", or type parallel.launcher=auto"
PORTS = range(20000, 60001)


@dataclass(frozen=True)
class LaunchEnvironment:
    """This worker's place in the job.

    Attributes:
        rank: from 0 to world - 1.
        world: number of workers.
        local_rank: this worker's number on its node.
        source: where that was read from.
        local_world: number of workers on this node.
        node: this node's number.
        nodes: number of nodes.
        restarts: number of times that its launcher started it again.
        master: host:port where the workers meet; None where torch knows it from the environment (torchrun's) or the
            workers are connected already (Ray's).
        requeues: number of times that SLURM started the job again, whatever launcher runs in it.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    source: str = ALONE
    local_world: int = 1
    node: int = 0
    nodes: int = 1
    restarts: int = 0
    master: str | None = None
    requeues: int = 0

    def __str__(self) -> str:
        if self.world == 1:
            return ALONE if self.source == ALONE else f"{ALONE} (from {self.source})"
        node = f" of {self.local_world} on node {self.node} of {self.nodes}" if self.nodes > 1 else ""
        meeting = f", meeting at {self.master}" if self.master else ""
        again = f", restart {self.restarts}" if self.restarts else ""
        place = f"rank {self.rank} of {self.world}, local rank {self.local_rank}{node}{meeting}{again}"
        return f"{place} (from {self.source})"


def resolve_environment(launcher: Launcher = "auto", environ: Mapping[str, str] = os.environ) -> LaunchEnvironment:
    """Return this worker's place in the job.

    Args:
        launcher: what started it, as parallel.launcher; "auto" looks for a Ray Train worker, then torchrun's variables,
            then a SLURM step's, and is a single process otherwise.
        environ: the environment variables.

    Raises:
        ConfigError: a variable is missing or makes no sense, or SLURM's tasks are not as many as was asked for.
    """
    return replace(_place(launcher, environ), requeues=_number("SLURM_RESTART_COUNT", environ, 0))


def _place(launcher: Launcher, environ: Mapping[str, str]) -> LaunchEnvironment:
    match launcher:
        case "single":
            return LaunchEnvironment()
        case "torchrun":
            problem = "parallel.launcher=torchrun, but the environment has no"
            _require(TORCHRUN, environ, problem, f"start with torchrun{AUTO}")
            return _torchrun(environ)
        case "ray":
            return _ray_worker()
        case "slurm":
            _require((STEP,), environ, "parallel.launcher=slurm, but the environment has no", f"start with srun{AUTO}")
            return _slurm(environ)
        case "auto":
            # Ray's workers come first: Ray sets torchrun's variables in them too, and they inherit SLURM's.
            found = _ray(sys.modules["ray.train"]) if "ray.train" in sys.modules else None
            if found is None and any(name in environ for name in TORCHRUN):
                found = _torchrun(environ)
            # A job's batch script, or its shell, has the job's variables: only a step was started by srun.
            if found is None and STEP in environ:
                found = _slurm(environ)
            return found or LaunchEnvironment()


def device_index(environment: LaunchEnvironment, count: int) -> int:
    """Return which of its `count` visible GPUs this worker uses.

    Raises:
        ConfigError: there are more workers on this node than this one sees GPUs.
    """
    workers = max(environment.local_world, environment.local_rank + 1)
    if count >= workers:
        return environment.local_rank
    slurm = environment.source == FROM_SLURM
    if slurm and count == 1:
        return 0  # SLURM bound one GPU to each task: each sees its own alone
    raise ConfigError(
        f"{environment}: {workers} workers on this node, but {count} visible GPU{'' if count == 1 else 's'}: "
        f"start {count} on each node, or type device=cpu{', or srun --gpu-bind=none' if slurm else ''}"
    )


@contextmanager
def set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context, except those that the user has set."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _torchrun(environ: Mapping[str, str]) -> LaunchEnvironment:
    given = ", ".join(name for name in TORCHRUN if name in environ)
    _require(TORCHRUN, environ, f"{given} set in the environment, but not", "start with torchrun, or unset")
    rank, local_rank, world = (_number(name, environ) for name in TORCHRUN)
    local_world = _number("LOCAL_WORLD_SIZE", environ, world)
    if rank >= world:
        raise ConfigError(f"RANK={rank} in the environment is not below WORLD_SIZE={world}: start with torchrun")
    if local_rank >= local_world:
        raise ConfigError(
            f"LOCAL_RANK={local_rank} in the environment is not below LOCAL_WORLD_SIZE={local_world}: start with "
            "torchrun"
        )
    return LaunchEnvironment(
        rank,
        world,
        local_rank,
        FROM_TORCHRUN,
        local_world,
        node=_number("GROUP_RANK", environ, 0),
        nodes=_number("GROUP_WORLD_SIZE", environ, 1),
        restarts=_number("TORCHELASTIC_RESTART_COUNT", environ, 0),
    )


def _ray_worker() -> LaunchEnvironment:
    try:
        import ray.train  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("parallel.launcher=ray needs Ray: pip install 'ray[train]'") from error
    found = _ray(ray.train)
    if found is None or found.source != FROM_RAY:
        raise ConfigError(
            "parallel.launcher=ray, but this process is no Ray Train worker: train within the function that a "
            f"TorchTrainer calls{AUTO}"
        )
    return found


def _ray(train: ModuleType) -> LaunchEnvironment | None:
    """Return the place that Ray gave this process; None where Ray was only imported."""
    try:
        context = train.get_context()
    except DeprecationWarning:  # how Ray says that this is a trial of Tune's, one process of Ray's own
        return LaunchEnvironment(source="Ray Tune's trial")
    except RuntimeError:  # how it says that this is none of its processes
        return None
    world, local_world = context.get_world_size(), context.get_local_world_size()
    return LaunchEnvironment(
        context.get_world_rank(),
        world,
        context.get_local_rank(),
        FROM_RAY,
        local_world,
        node=context.get_node_rank(),
        nodes=max(-(-world // local_world), context.get_node_rank() + 1),  # Ray does not tell
    )


def _slurm(environ: Mapping[str, str]) -> LaunchEnvironment:
    needed = (TASK, LOCAL_TASK, NODE, TASKS, NODES, LAYOUT, HOSTS)
    remedy = "start with srun, or type parallel.launcher=single"
    _require(needed, environ, f"{STEP} set in the environment, but not", remedy)
    rank, local_rank, node, world, nodes = (_number(name, environ) for name in (TASK, LOCAL_TASK, NODE, TASKS, NODES))
    if world == 1 and "SLURM_PTY_PORT" in environ:
        return LaunchEnvironment()  # a person's shell: what the job has is not what is asked for here
    _refuse_uneven(world, nodes, environ)
    restarts = _number("SLURM_RESTART_COUNT", environ, 0)
    return LaunchEnvironment(
        rank,
        world,
        local_rank,
        FROM_SLURM,
        local_world=world // nodes,
        node=node,
        nodes=nodes,
        restarts=restarts,
        master=_master(restarts, environ) if world > 1 else None,
    )


def _refuse_uneven(world: int, nodes: int, environ: Mapping[str, str]) -> None:
    """Refuse a step whose tasks are not nodes × tasks per node: it would train on fewer GPUs than were asked for."""
    asked = environ.get("SLURM_NTASKS_PER_NODE")
    if asked is not None:
        per_node = _number("SLURM_NTASKS_PER_NODE", environ)
        if nodes * per_node != world:
            raise ConfigError(
                f"{TASKS}={world} is not {NODES}={nodes} × SLURM_NTASKS_PER_NODE={per_node}: give sbatch or srun "
                f"--ntasks={nodes * per_node}, or another --ntasks-per-node, or type parallel.launcher=single"
            )
    elif environ[LAYOUT] not in (f"{world // nodes}(x{nodes})", f"{world}"):
        raise ConfigError(
            f"{LAYOUT}={environ[LAYOUT]} is not as many tasks on each of {NODES}={nodes}: give srun "
            f"--ntasks-per-node={-(-world // nodes)} --ntasks={-(-world // nodes) * nodes}"
        )


def _master(restarts: int, environ: Mapping[str, str]) -> str:
    """Return where the step's tasks meet: on its first node, at a port of this start's own."""
    name = f"{environ.get('SLURM_JOB_ID')}.{environ[STEP]}.{restarts}"
    port = PORTS[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(PORTS)]
    # Tasks of one node meet where no other node can come.
    alone = _number(NODES, environ) == 1
    host = environ.get("MASTER_ADDR") or ("127.0.0.1" if alone else _first_host(environ[HOSTS]))
    return f"{host}:{_number('MASTER_PORT', environ, port)}"


def _first_host(hosts: str) -> str:
    if not re.search(r"[\[,]", hosts):
        return hosts
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        problem = error.strerror if isinstance(error, OSError) else error.stderr.strip().rpartition("\n")[2]
        raise ConfigError(
            f"{HOSTS}={hosts}: scontrol does not tell its first node ({problem}): type export MASTER_ADDR=… before "
            "srun, with that node's name"
        ) from error
    return listed.stdout.split()[0]


def _require(names: Sequence[str], environ: Mapping[str, str], problem: str, remedy: str) -> None:
    missing = ", ".join(name for name in names if name not in environ)
    if missing:
        raise ConfigError(f"{problem} {missing}: {remedy}")


def _number(name: str, environ: Mapping[str, str], default: int | None = None) -> int:
    """Return the number in a variable, or `default` where it is not set."""
    if default is not None and name not in environ:
        return default
    if not environ[name].isdecimal():
        raise ConfigError(f"{name}={environ[name]!r} in the environment is not a number: unset {name}")
    return int(environ[name])
