"""Build the engine of a run from its configuration."""

import logging
from pathlib import Path

from fptt_dist import config as settings
from fptt_dist.algorithm import SCHEMES, ConsensusTerm
from fptt_dist.algorithm.diagnostics import mean_squared_scale
from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel import (
    AveragedDual,
    Communicator,
    Consensus,
    DdpReplicated,
    DeepspeedZero,
    Engine,
    FullyShard,
    GradientSync,
    GroupCommunicator,
    LaunchEnvironment,
    LocalDual,
    NodesCommunicator,
    NoSync,
    Replicated,
    node_groups,
)
from fptt_dist.tasks import Task, rank_slice

LOG = logging.getLogger("fptt_dist")


def build_engine(config: Config, environment: LaunchEnvironment, everyone: Communicator) -> Engine:
    """Return the engine of `config.parallel` for this worker; called by all workers together.

    Raises:
        ConfigError: parallel.strategy=single with several workers, or a batch that cannot be divided among them.
    """
    world = everyone.world
    check_world(config, world)
    match config.parallel:
        case settings.SingleProcess():
            return _alone(everyone)
        case settings.AutoParallel():
            if world == 1:
                return _alone(everyone)
            return _consensus(config, settings.ConsensusParallel(), environment, everyone)
        case settings.DataParallel() as gradient:
            weight = batch_shares(config, everyone.world)[everyone.rank]
            if gradient.reduce == "ddp" and isinstance(everyone, GroupCommunicator):
                return Engine(everyone, DdpReplicated(everyone, weight, gradient.comm_hook), NoSync())
            return Engine(everyone, Replicated(), GradientSync(everyone, weight))
        case settings.ConsensusParallel() as consensus:
            return _consensus(config, consensus, environment, everyone)
        case settings.FsdpParallel() | settings.DeepspeedParallel() as sharded:
            _check_offload(sharded.offload, everyone)
            if world > 1:
                return _sharded(config, sharded, everyone)
            LOG.warning(
                "with one worker parallel.strategy=%s is the same as parallel.strategy=single", sharded.strategy
            )
            return _alone(everyone)


def _alone(everyone: Communicator) -> Engine:
    """Return the engine of a single worker."""
    return Engine(everyone, Replicated(), NoSync())


def updates_of(config: Config) -> int:
    """Number of parameter updates per batch."""
    return config.windows_run if SCHEMES[config.algorithm].update_each_window else 1


def set_partition(task: Task, config: Config, rank: int, world: int) -> None:
    """Give this worker its examples, as `data.partition` says.

    Raises:
        ConfigError: the task has too few of them.
    """
    try:
        task.set_partition(config.data.partition, rank, world)
    except ValueError as error:
        raise ConfigError(f"data.partition={config.data.partition}: {error}: type data.partition=shuffled") from error


def _consensus(
    config: Config, parallel: settings.ConsensusParallel, environment: LaunchEnvironment, everyone: Communicator
) -> Engine:
    """Return the engine for `consensus`, and for `hierarchical`, where a node is one replica."""
    every = parallel.sync_every or updates_of(config)
    weights = batch_shares(config, everyone.world)
    own = weights[everyone.rank]
    placement, intra_node = Replicated(), None
    between, replica_weight = everyone, own
    if isinstance(parallel, settings.HierarchicalParallel):
        node, across = node_groups(environment, everyone)
        ranks = node.ranks if isinstance(node, GroupCommunicator) else [everyone.rank]
        replica_weight = sum(weights[rank] for rank in ranks)
        between = NodesCommunicator(node, across)
        if node.world > 1 and parallel.intra_node == "fsdp":
            assert node.rank == environment.local_rank
            between = across  # each worker synchronizes its shard with those of the same local rank
            placement = FullyShard(node, own / replica_weight, bf16=config.train.precision == "bf16")
        elif node.world > 1:
            intra_node = GradientSync(node, own / replica_weight)
    if parallel.dual == "local":
        if config.data.partition == "shuffled" and everyone.rank == 0:
            LOG.warning(
                "parallel.dual=local is meant for data.partition=fixed: a shuffled partition is a new one every epoch"
            )
        rule = LocalDual(
            parallel.dual_update,
            parallel.dual_step_size,
            make_term=ConsensusTerm,
            mean_squared_scale=mean_squared_scale,
        )
    else:
        rule = AveragedDual(
            parallel.weight_sync,
            slow=SCHEMES[config.algorithm].has_regularizer,
            each_window=every == 1,
            compressed=parallel.sync_dtype == "bf16",
        )
    sync = Consensus(
        between,
        replica_weight,
        rule,
        sync_every=every,
        intra_node=intra_node,
        warmup=GradientSync(everyone, own) if parallel.warmup_updates else None,
        compressed=parallel.sync_dtype == "bf16",
        sync_delay=parallel.sync_delay,
        warmup_updates=parallel.warmup_updates,
        control_interval=parallel.control_interval,
    )
    return Engine(everyone, placement, sync)


def _sharded(
    config: Config, parallel: settings.FsdpParallel | settings.DeepspeedParallel, everyone: Communicator
) -> Engine:
    weight = batch_shares(config, everyone.world)[everyone.rank]
    bf16 = config.train.precision == "bf16"
    if isinstance(parallel, settings.FsdpParallel):
        return Engine(everyone, FullyShard(everyone, weight, bf16=bf16, offload=parallel.offload), NoSync())
    part = rank_slice(config.train.batch_size, everyone.rank, everyone.world)
    placement = DeepspeedZero(
        everyone,
        weight,
        stage=parallel.zero_stage,
        sequences=config.train.micro_batch_size or part.stop - part.start,
        bf16=bf16,
        offload=parallel.offload,
        given=None if parallel.deepspeed_config is None else Path(parallel.deepspeed_config),
    )
    return Engine(everyone, placement, NoSync())


def _check_offload(offload: bool, everyone: Communicator) -> None:
    """Refuse parallel.offload where the workers compute on CPUs: there is nothing to move."""
    if offload and everyone.device.type == "cpu":
        raise ConfigError(
            "parallel.offload=true moves the shards from GPU memory to host memory, and device=cpu computes there: "
            "type parallel.offload=false"
        )


def batch_shares(config: Config, world: int) -> list[float]:
    """Return each worker's share of the batch, in (0, 1]; they sum to 1."""
    size = config.train.batch_size
    parts = [rank_slice(size, rank, world) for rank in range(world)]
    return [(part.stop - part.start) / size for part in parts]


def check_world(config: Config, world: int) -> None:
    """Refuse what cannot be trained by `world` workers.

    Raises:
        ConfigError: parallel.strategy=single with several, a batch that cannot be divided among them, or an average of
            weights that differ between the workers.
    """
    averages = isinstance(config.optimizer, settings.NtAsgd)
    if world > 1 and averages and not isinstance(config.parallel, settings.DataParallel):
        raise ConfigError(
            f"optimizer.name=nt_asgd averages weights that are equal on all {world} workers: type "
            f"parallel.strategy=data_parallel, not {config.parallel.strategy}, or another optimizer"
        )
    if world > 1 and isinstance(config.parallel, settings.SingleProcess):
        raise ConfigError(
            f"parallel.strategy=single, but {world} workers were started: type parallel.strategy=consensus or "
            "parallel.strategy=data_parallel"
        )
    size, micro, shards = config.train.batch_size, config.train.micro_batch_size, config.data.partition
    whole = f"type train.batch_size={-(-size // world) * world}"
    if size < world:
        raise ConfigError(
            f"train.batch_size={size} is the global batch, fewer sequences than the {world} workers: {whole}"
        )
    if size % world and shards != "shuffled":
        raise ConfigError(
            f"data.partition={shards} needs equal shares, and train.batch_size={size} is not a multiple of the {world} "
            f"workers: {whole}, or data.partition=shuffled"
        )
    if micro is not None and (size % world or (size // world) % micro):
        raise ConfigError(
            f"train.micro_batch_size={micro} does not divide each worker's share of the batch, "
            f"{size} / {world} = {size / world:g} sequences: type train.micro_batch_size=null, or a divisor"
        )
    ddp = isinstance(config.parallel, settings.DataParallel) and config.parallel.reduce == "ddp"
    if ddp and world > 1 and micro is not None and micro < size // world:
        raise ConfigError(
            f"train.micro_batch_size={micro} does not go with parallel.reduce=ddp, which would send every micro-batch: "
            "type parallel.reduce=flat, or train.micro_batch_size=null"
        )
    task = config.task
    estimate = task.target_estimate if isinstance(task, (settings.ArraysTask, settings.PixelsTask)) else ""
    if estimate == "example" and world > 1 and shards == "shuffled":
        raise ConfigError(
            "task.target_estimate=example remembers each worker's own examples, and data.partition=shuffled "
            f"gives the {world} workers other ones every epoch: type data.partition=fixed, or "
            "task.target_estimate=class_mean, or start one worker"
        )
