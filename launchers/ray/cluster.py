"""Connection to Ray, an existing cluster or one of this node's own, and its room for runs."""

import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fptt_dist.config import ConfigError
from fptt_dist.parallel.comm.environment import set_variables
from fptt_dist.training.process.signals import hangup_blocked

MISSING = "sweep needs Ray Tune: pip install -e '.[ray]'"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run has its own records
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant where the command was typed
}
# Ray gives a node that cannot be part of a cluster, such as a Mac, the loopback address alone; it calls this so.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
OBJECTS = 100 * 2**20  # bytes: only results and configurations go through Ray
REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Need:
    """Resources of one run: so many workers, each with CPUs and GPUs (or a fraction of one)."""

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker{'s' if self.workers > 1 else ''} of {self.cpus:g} CPU{gpus}"


@contextmanager
def connected() -> Iterator[None]:
    """Ray within the context: the cluster that RAY_ADDRESS names, or one on this node that ends with the context.

    Its own one asks for a token that nobody else can read, listens on the loopback address alone, has no dashboard and
    sends no usage statistics.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    # A short name, for Ray's sockets; only this user may enter.
    with tempfile.TemporaryDirectory(prefix="ray.", dir="/tmp", ignore_cleanup_errors=True) as private:
        own = {}
        if address == "local":
            token = Path(private) / "token"
            token.write_text(_secret())
            own = {**LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        else:
            _reach(address)
            own = LOOPBACK if address.startswith("127.") else {}
        with set_variables({**QUIET, **own}):
            try:
                import ray
                import ray.tune
                from ray.exceptions import RayError
            except ImportError as error:
                raise ConfigError(MISSING) from error
            if ray.is_initialized():
                yield
                return
            here: dict[str, Any] = {}
            if address == "local":
                here = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": OBJECTS}
                here |= {"include_dashboard": False, "_temp_dir": f"{private}/ray"}
            try:
                with hangup_blocked():  # to save a sweep whose terminal is gone, Ray must live
                    ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **here)
            except (ConnectionError, RayError) as error:
                if address == "local":
                    raise
                raise ConfigError(
                    f"RAY_ADDRESS={address} does not let this program in: set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as "
                    f"they were when it was started ({str(error).strip().splitlines()[0]})"
                ) from error
            try:
                yield
            finally:
                ray.shutdown()


@cache
def _secret() -> str:
    """One for all that this process starts: Ray reads it once in a process."""
    return secrets.token_hex()


def room(need: Need) -> int:
    """Return the number of runs that fit into the connected cluster at once, their workers packed or spread.

    Raises:
        ConfigError: none does.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(_processes(need, each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in nodes)
    if workers >= need.workers:
        return workers // need.workers
    there = ", ".join(f"{each.get('CPU', 0):g} CPU and {each.get('GPU', 0):g} GPU" for each in nodes)
    raise ConfigError(
        f"a run takes {need}, and Ray's nodes have {there}: there is room for {workers} of its workers: type "
        "sweep.workers=…, sweep.cpus=… or sweep.gpus=… for less, or give Ray more"
    )


def gpus() -> float:
    """Return the number of GPUs of the connected cluster."""
    import ray

    return ray.cluster_resources().get("GPU", 0.0)


def _processes(need: Need, cpus: float, gpus: float) -> int:
    """Return the number of a run's workers that fit into one node; a fraction of a GPU does not span two GPUs."""
    fit = int(cpus / need.cpus + 1e-9)
    if need.gpus:
        each = int(gpus) * int(1 / need.gpus + 1e-9) if need.gpus < 1 else int(gpus // need.gpus)
        fit = min(fit, each)
    return fit


def _reach(address: str) -> None:
    """Ray itself would wait a quarter of an hour for a cluster that is gone."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[^/:]+:\d+", address):
        raise ConfigError(
            f"RAY_ADDRESS={address} is not of the form HOST:PORT: set it so, or unset it for a Ray of its own"
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address} does not answer ({error}): start Ray there, or unset it for a Ray of its own"
        ) from error
