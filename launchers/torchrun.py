"""Start the workers of one node, or this node's share of several nodes, with torchrun's agent."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from fptt_dist.config import Config, ConfigError
from fptt_dist.history import load_to_train
from fptt_dist.launchers import rendezvous
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.parallel.comm.environment import set_variables
from fptt_dist.training.process.orphan import STARTED_BY
from fptt_dist.training.process.resume_hint import RESUME, restart_hint, resuming
from fptt_dist.training.process.signals import hangup
from fptt_dist.training.run_dir import RunDirectory

LOG = logging.getLogger("fptt_dist")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2)
"""Signals that the agent passes on, besides SIGHUP. SLURM sends SIGUSR2 before a job's time is over."""
JOIN_SECONDS = 600  # that a node waits for the others
STOP_SECONDS = 300  # that the workers have to save after a signal
# Torch alone knows what its port answers, and its client may wait for ever for a program that answers something else.
PROBE = """
import sys, datetime, torch.distributed as dist
dist.TCPStore(sys.argv[1], int(sys.argv[2]), wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
"""
PROBE_SECONDS = 60.0


def launch(
    config: str,
    overrides: list[str],
    *,
    nproc: int,
    nnodes: int = 1,
    rdzv: str | None = None,
    max_restarts: int = 0,
    trust_code: bool = False,
) -> int:
    """Train on `nproc` workers of this node; with `nnodes` > 1 the same call is made on each node.

    Args:
        config: a YAML file, or the name of a packaged one.
        overrides: words like fptt.alpha=0.3.
        nproc: workers on this node.
        nnodes: number of nodes.
        rdzv: host:port where the nodes meet; the host is one of them. For several nodes, and only then.
        max_restarts: how often all workers are started again when one of them failed.
        trust_code: see `load_to_train`.

    Returns:
        The exit code: 0, that of the worker that failed first, or 128 + the number of the signal that ended it.

    Raises:
        ConfigError: a mistake, found before any worker was started.
        ConnectionError: the nodes did not meet.
    """
    settings = load_to_train(config, overrides, trust_code=trust_code)
    _refuse_too_many(settings, nproc)
    if nnodes > 1 and rdzv is None:
        raise ConfigError(
            f"--nnodes {nnodes} needs --rdzv HOST:PORT, the same on all nodes: one of them, and a port free on it"
        )
    if nnodes == 1 and rdzv is not None:
        raise ConfigError(f"--rdzv {rdzv} is for several nodes: type --nnodes 2 or more, or leave it out")
    if rdzv is not None:
        _check_meeting_place(rdzv)
    if max_restarts and not any(word.startswith("resume=") for word in overrides):
        LOG.warning("resume=auto: a restart resumes from the newest checkpoint")
        overrides = [*overrides, "resume=auto"]
    run = RunDirectory(settings).path
    options = ["--nproc", str(nproc), *(["--nnodes", str(nnodes), "--rdzv", rdzv] if rdzv is not None else [])]
    options += ["--max-restarts", str(max_restarts)] if max_restarts else []
    trust = ["--trust-code"] if trust_code else []
    again = resuming(["fptt-dist", "launch", str(run / "config.yaml"), *options, *trust])
    _prepare(nproc, max_restarts)
    os.environ.pop(STARTED_BY, None)  # of another agent it would end the workers
    told = {RESUME: again, STARTED_BY: str(os.getpid())}
    with set_variables(told), tempfile.TemporaryDirectory(prefix="fptt-dist-") as reports:
        meeting = rendezvous.on_one_node(reports) if rdzv is None else rendezvous.between_nodes(rdzv)
        meeting["rdzv_configs"] |= {"join_timeout": JOIN_SECONDS}
        agent = LaunchConfig(
            min_nodes=nnodes,
            max_nodes=nnodes,
            nproc_per_node=nproc,
            run_id="fptt-dist",
            **meeting,
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=reports),
            **_passed_on(),
        )
        # -P: a Python module that lies in this folder, which may be anybody's, is not imported in the place of another.
        return _run(agent, ["-P", "-u", "-m", "fptt_dist", "train", config, *overrides, *trust], run)


def _run(agent: LaunchConfig, command: list[str], run: Path) -> int:
    """Return the exit code of this node's workers, which train in the folder `run`."""
    place = f"--rdzv {agent.rdzv_endpoint}"
    try:
        launch_agent(agent, sys.executable, command)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode  # the worker said why
        hint = restart_hint(run, LaunchEnvironment(nodes=agent.max_nodes))
        LOG.warning("rank %d was killed by %s: %s", rank, failure.signal_name(), hint)
        return 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except KeyboardInterrupt:  # before there were any workers
        return 128 + signal.SIGINT
    except RendezvousTimeoutError as error:
        raise ConnectionError(
            f"{place}: not all of the {agent.max_nodes} nodes came within {JOIN_SECONDS} s: type the same command, "
            f"with --nnodes {agent.max_nodes}, on each"
        ) from error
    except RendezvousConnectionError as error:
        raise ConnectionError(
            f"{place} does not answer: look whether the command runs on that host too, and whether it still runs"
        ) from error
    return 0


def _passed_on() -> dict[str, Any]:
    """Return an argument of torch's `LaunchConfig`; torch < 2.9 has none, and handles SIGHUP but not SIGUSR2."""
    if not hasattr(LaunchConfig, "signals_to_handle"):
        return {}
    # The agent would also handle, and end by, a SIGHUP that nohup has switched off.
    return {"signals_to_handle": ",".join(each.name for each in (*SIGNALS, *hangup()))}


def _prepare(nproc: int, max_restarts: int) -> None:
    """Set in the environment what torchrun's agent and the workers read there; what the user has set stays."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // nproc))
        LOG.warning("OMP_NUM_THREADS=%s: %d workers on %d cores", os.environ["OMP_NUM_THREADS"], nproc, cores)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_SECONDS))
    # The agent's own store would be open on all addresses, and keep for a restart the addresses of those before it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said by the workers, and here


def _refuse_too_many(config: Config, nproc: int) -> None:
    if config.device == "cpu" or not torch.cuda.is_available():
        return
    count = torch.cuda.device_count()
    if nproc > count:
        raise ConfigError(
            f"--nproc {nproc} is more than this node's GPUs, {count}: type --nproc {count}, or device=cpu"
        )


def _check_meeting_place(rdzv: str) -> None:
    """Refuse a place that is no place, and a port that another program has."""
    try:
        host, port = rendezvous.split(rdzv)
    except ValueError as error:
        raise ConfigError(f"--rdzv {rdzv} is not of the form HOST:PORT, such as --rdzv node0:29500") from error
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except socket.gaierror as error:
        raise ConfigError(f"--rdzv {rdzv}: {host} is no host that this node knows ({error.strerror})") from error
    except OSError:
        return  # nothing is there yet
    try:
        subprocess.run(
            [sys.executable, "-c", PROBE, host, str(port)], capture_output=True, check=True, timeout=PROBE_SECONDS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"--rdzv {rdzv}: another program has that port: type another one, the same on all nodes"
        ) from error
