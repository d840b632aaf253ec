"""Which of how many processes this is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fptt_dist.config.errors import ConfigError

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process's place in the job.

    Attributes:
        rank: from 0 to world - 1.
        world: number of processes.
        local_rank: this process's number on its machine.
        source: where that was read from.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    source: str = "single process"

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}, local rank {self.local_rank} (from {self.source})"


def resolve_environment(environ: Mapping[str, str] = os.environ) -> LaunchEnvironment:
    """Read the process's place from torchrun's variables; without them it is a single process.

    Raises:
        ConfigError: some of torchrun's variables are set and others are not, or one is not a number.
    """
    given = [name for name in TORCHRUN if name in environ]
    if not given:
        return LaunchEnvironment()
    if len(given) < len(TORCHRUN):
        missing = ", ".join(name for name in TORCHRUN if name not in environ)
        raise ConfigError(
            f"{', '.join(given)} set in the environment, but not {missing}: start with torchrun, or unset"
        )
    values = {}
    for name in TORCHRUN:
        if not environ[name].isdecimal():
            raise ConfigError(f"{name}={environ[name]!r} in the environment is not a number")
        values[name] = int(environ[name])
    rank, local_rank, world = (values[name] for name in TORCHRUN)
    if rank >= world:
        raise ConfigError(f"RANK={rank} in the environment is not below WORLD_SIZE={world}")
    return LaunchEnvironment(rank, world, local_rank, "torchrun's RANK, LOCAL_RANK and WORLD_SIZE")
