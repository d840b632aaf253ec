"""The device that a worker computes on, and torch's settings for it."""

import os
from collections.abc import Mapping

import torch

from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel import LaunchEnvironment, device_index
from fptt_dist.parallel.comm.environment import FROM_SLURM


def build_device(config: Config, environment: LaunchEnvironment) -> torch.device:
    """Return the device on which this worker computes.

    Raises:
        ConfigError: device=cuda without a usable GPU, or more workers on the node than GPUs.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch finds no usable GPU: type device=cpu, or install a CUDA build of torch"
        )
    device = torch.device("cuda", device_index(environment, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def threads(environment: LaunchEnvironment, cores: int, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of threads that this worker may use: the node's cores, divided among the workers on it.

    Two workers that each use all cores wait for each other at every operation, and are ten times slower.

    Args:
        environment: this worker's place.
        cores: number of cores that this worker may run on.
        environ: the environment variables.

    Returns:
        At least 1; None where the user, or the launcher, has set the number.
    """
    if "OMP_NUM_THREADS" in environ or "MKL_NUM_THREADS" in environ:
        return None
    given = environ.get("SLURM_CPUS_PER_TASK", "")
    own = given.isdecimal() and int(given) > 0
    if own:
        cores = min(cores, int(given))
    shared = 1 if own and environment.source == FROM_SLURM else environment.local_world  # a SLURM task has its own
    return max(1, cores // shared)


def prepare_torch(device: torch.device, environment: LaunchEnvironment) -> None:
    """Set torch's number of threads, and how the processor treats denormal numbers."""
    allowed = threads(environment, len(os.sched_getaffinity(0)))
    if allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)  # never more: torch knows the real cores, and a program may want fewer
    if device.type == "cpu":
        # A long backward pass is full of denormal gradients, on which CPUs are several times slower.
        torch.set_flush_denormal(True)
