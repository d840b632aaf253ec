"""From a configuration to who holds what."""

import logging
from pathlib import Path

from fptt_dist import config as settings
from fptt_dist.algorithm import PROCEDURES, Anchor
from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel import (
    Communicator,
    Consensus,
    DdpAveraging,
    DeepspeedZero,
    FullyShard,
    GradientAveraging,
    GroupCommunicator,
    LaunchEnvironment,
    MachinesCommunicator,
    SharedDual,
    Single,
    Strategy,
    WorkerDual,
    machines,
)
from fptt_dist.tasks import Task, share

LOG = logging.getLogger("fptt_dist")


def build_strategy(config: Config, environment: LaunchEnvironment, everyone: Communicator) -> Strategy:
    """The strategy of `config.parallel` for this worker; called by all workers together.

    Raises:
        ConfigError: parallel.strategy=single with several processes, or a batch that cannot be shared out.
    """
    world = everyone.world
    check_world(config, world)
    match config.parallel:
        case settings.SingleProcess():
            return Single()
        case settings.AutoParallel():
            if world == 1:
                return Single()
            return _consensus(config, settings.ConsensusParallel(), environment, everyone)
        case settings.GradientParallel() as gradient:
            weight = shares(config, everyone.world)[everyone.rank]
            if gradient.reduce == "ddp" and isinstance(everyone, GroupCommunicator):
                return DdpAveraging(everyone, weight, gradient.hook)
            return GradientAveraging(everyone, weight)
        case settings.ConsensusParallel() as consensus:
            return _consensus(config, consensus, environment, everyone)
        case settings.FsdpParallel() | settings.DeepspeedParallel() as sharded:
            _check_offload(sharded.offload, everyone)
            if world > 1:
                return _sharded(config, sharded, everyone)
            LOG.warning(
                "one process holds everything: parallel.strategy=%s is parallel.strategy=single", sharded.strategy
            )
            return Single()


def updates_of(config: Config) -> int:
    """Parameter updates a batch."""
    return config.windows_run if PROCEDURES[config.algorithm].update_each_window else 1


def deal(task: Task, config: Config, rank: int, world: int) -> None:
    """Give this worker its examples, as `data.shards` says.

    Raises:
        ConfigError: the task has too few of them.
    """
    try:
        task.deal(config.data.shards, rank, world)
    except ValueError as error:
        raise ConfigError(f"data.shards={config.data.shards}: {error}: type data.shards=shuffled") from error


def _consensus(
    config: Config, parallel: settings.ConsensusParallel, environment: LaunchEnvironment, everyone: Communicator
) -> Consensus:
    """The same for `hierarchical`, where a machine is one voice."""
    every = parallel.every or updates_of(config)
    weights = shares(config, everyone.world)
    own = weights[everyone.rank]
    inside: Strategy = Single()
    between, voice = everyone, own
    if isinstance(parallel, settings.HierarchicalParallel):
        machine, across = machines(environment, everyone)
        ranks = machine.ranks if isinstance(machine, GroupCommunicator) else [everyone.rank]
        voice = sum(weights[rank] for rank in ranks)
        between = MachinesCommunicator(machine, across)
        if machine.world > 1 and parallel.inside == "fsdp":
            assert machine.rank == environment.local_rank
            between = across  # each worker agrees on its part with its like
            inside = FullyShard(machine, own / voice, bf16=config.train.precision == "bf16")
        elif machine.world > 1:
            inside = GradientAveraging(machine, own / voice)
    if parallel.dual == "worker":
        if config.data.shards == "shuffled" and everyone.rank == 0:
            LOG.warning("parallel.dual=worker is meant for data.shards=fixed: shuffled shards are new ones every epoch")
        agreement = WorkerDual(
            parallel.order, parallel.damping, by_tensor=parallel.scale == "tensor", make_anchor=Anchor
        )
    else:
        agreement = SharedDual(
            parallel.weights,
            slow=PROCEDURES[config.algorithm].has_force,
            each_window=every == 1,
            compressed=parallel.payload == "bf16",
        )
    return Consensus(
        everyone,
        between,
        voice,
        inside,
        GradientAveraging(everyone, own) if parallel.start_after else None,
        agreement,
        every=every,
        compressed=parallel.payload == "bf16",
        delay=parallel.delay,
        start_after=parallel.start_after,
        stop_every=parallel.stop_every,
    )


def _sharded(
    config: Config, parallel: settings.FsdpParallel | settings.DeepspeedParallel, everyone: Communicator
) -> Strategy:
    weight = shares(config, everyone.world)[everyone.rank]
    bf16 = config.train.precision == "bf16"
    if isinstance(parallel, settings.FsdpParallel):
        return FullyShard(everyone, weight, bf16=bf16, offload=parallel.offload)
    part = share(config.train.batch_size, everyone.rank, everyone.world)
    return DeepspeedZero(
        everyone,
        weight,
        stage=parallel.stage,
        sequences=config.train.micro_batch_size or part.stop - part.start,
        bf16=bf16,
        offload=parallel.offload,
        given=None if parallel.settings is None else Path(parallel.settings),
    )


def _check_offload(offload: bool, everyone: Communicator) -> None:
    """Where the processes compute on CPUs, nothing is to be moved."""
    if offload and everyone.device.type == "cpu":
        raise ConfigError(
            "parallel.offload=true moves the parts from a GPU's memory to the host's, and device=cpu computes there: "
            "type parallel.offload=false"
        )


def shares(config: Config, world: int) -> list[float]:
    """Each worker's share of the batch, in (0, 1]; they sum to 1."""
    size = config.train.batch_size
    parts = [share(size, rank, world) for rank in range(world)]
    return [(part.stop - part.start) / size for part in parts]


def check_world(config: Config, world: int) -> None:
    """Refuse what cannot be trained by so many processes.

    Raises:
        ConfigError: parallel.strategy=single with several, a batch that cannot be shared out, or an average of weights
            that the workers do not hold alike.
    """
    averages = isinstance(config.optimizer, settings.NtAsgd)
    if world > 1 and averages and not isinstance(config.parallel, settings.GradientParallel):
        raise ConfigError(
            f"optimizer.name=nt_asgd averages weights that all {world} processes hold alike: type "
            f"parallel.strategy=gradient, not {config.parallel.strategy}, or another optimizer"
        )
    if world > 1 and isinstance(config.parallel, settings.SingleProcess):
        raise ConfigError(
            f"parallel.strategy=single, but {world} processes were started: type parallel.strategy=consensus or "
            "parallel.strategy=gradient"
        )
    size, micro, shards = config.train.batch_size, config.train.micro_batch_size, config.data.shards
    whole = f"type train.batch_size={-(-size // world) * world}"
    if size < world:
        raise ConfigError(
            f"train.batch_size={size} is the global batch, fewer sequences than the {world} processes: {whole}"
        )
    if size % world and shards != "shuffled":
        raise ConfigError(
            f"data.shards={shards} needs equal shares, and train.batch_size={size} is not a multiple of the {world} "
            f"processes: {whole}, or data.shards=shuffled"
        )
    if micro is not None and (size % world or (size // world) % micro):
        raise ConfigError(
            f"train.micro_batch_size={micro} does not divide each process's share of the batch, "
            f"{size} / {world} = {size / world:g} sequences: type train.micro_batch_size=null, or a divisor"
        )
    ddp = isinstance(config.parallel, settings.GradientParallel) and config.parallel.reduce == "ddp"
    if ddp and world > 1 and micro is not None and micro < size // world:
        raise ConfigError(
            f"train.micro_batch_size={micro} does not go with parallel.reduce=ddp, which would send every micro-batch: "
            "type parallel.reduce=flat, or train.micro_batch_size=null"
        )
    estimate = isinstance(config.task, settings.PixelsTask) and config.task.estimate == "example"
    if estimate and world > 1 and shards == "shuffled":
        raise ConfigError(
            f"task.estimate=example remembers each worker's own examples, and {world} processes are dealt other ones "
            "every epoch: type data.shards=fixed, or task.estimate=class_mean, or start one process"
        )
