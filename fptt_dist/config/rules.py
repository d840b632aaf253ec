"""The configuration of a run: every section, and the rules that tie keys of several sections together."""

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from fptt_dist.config.schema.models import AwdLSTM, WholeNetwork
from fptt_dist.config.schema.parallel import ConsensusParallel, DataParallel, DeepspeedParallel, HierarchicalParallel
from fptt_dist.config.schema.root import Sections
from fptt_dist.config.schema.section import Conflict, refuse
from fptt_dist.config.schema.tasks import ArraysTask, GivenTask, LanguageTask, PixelsTask, Task, UserTask


class Config(Sections):
    """Everything that decides a run."""

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        """Refuse values that are allowed one by one but not together."""
        refuse([*_train(self), *_windows(self), *_task(self), *_parallel(self), *_fptt(self)])
        return self


def _train(config: Sections) -> Iterator[Conflict]:
    """The run ends, micro-batches fill a batch, and a graph has an update that can be captured."""
    train = config.train
    if train.max_batches is None and train.max_epochs is None:
        text = (
            "train.max_batches=null and train.max_epochs=null leave the run without an end: "
            "type one of them, such as train.max_epochs=10 or train.max_batches=1000"
        )
        yield Conflict(text, ("train.max_batches", "train.max_epochs"))
    size, micro = train.batch_size, train.micro_batch_size
    if micro is not None and size % micro:
        below = next(divisor for divisor in range(min(micro, size), 0, -1) if size % divisor == 0)
        text = (
            f"train.micro_batch_size={micro} does not divide train.batch_size={size}: "
            f"type a divisor such as train.micro_batch_size={below}, or train.micro_batch_size=null"
        )
        yield Conflict(text, ("train.micro_batch_size", "train.batch_size"))
    # A graph holds the learning rate it was captured with, unless the update is compiled for one that changes.
    if train.cuda_graph and not train.compile_update:
        text = (
            "train.cuda_graph=true needs the compiled update: type train.compile_update=true, or train.cuda_graph=false"
        )
        yield Conflict(text, ("train.cuda_graph", "train.compile_update"))


def _windows(config: Sections) -> Iterator[Conflict]:
    """A window has at least one step, and every sequence of a batch as many windows."""
    fptt, length = config.fptt, config.task.sequence_length
    if fptt.windows is not None and fptt.window_length is not None:
        text = (
            f"fptt.windows={fptt.windows} and fptt.window_length={fptt.window_length} are both set: "
            "type fptt.windows=null, or fptt.window_length=null"
        )
        yield Conflict(text, ("fptt.windows", "fptt.window_length"))
    for key, value in (("fptt.windows", fptt.windows), ("fptt.window_length", fptt.window_length)):
        if config.algorithm != "bptt" and value is not None and value > length:
            text = (
                f"{key}={value} is more than the steps of a sequence, {config.task.length_text}: "
                f"type {key}={length} or less, or {key}=null for round(sqrt(length)) windows"
            )
            yield Conflict(text, (key, "task.length", "task.pixels_per_step", "task.delay", "task.symbols"))
    if isinstance(config.task, LanguageTask) and config.task.length_std > 0 and fptt.window_remainder == "append":
        text = (
            "fptt.window_remainder=append would give sequences of different lengths different numbers of windows: "
            "type fptt.window_remainder=balanced, or task.length_std=0"
        )
        yield Conflict(text, ("fptt.window_remainder", "task.length_std"))


def _task(config: Sections) -> Iterator[Conflict]:
    """Some models and partitions need a text, or labels, and some do not go with a text."""
    if isinstance(config.task, UserTask | GivenTask):
        return  # the class says what it has: its checks are at the run's start
    task, model, partition = config.task.name, config.model, config.data.partition
    kind = f" with task.target={config.task.target}" if isinstance(config.task, ArraysTask) else ""
    if partition == "by_label" and not _has_labels(config.task):
        text = (
            f"data.partition=by_label needs a task with one label per sequence, task.name={task}{kind} has none: "
            "type data.partition=shuffled (or fixed), or task.name=pixels"
        )
        yield Conflict(text, ("data.partition", "task.name", "task.target"))
    if isinstance(config.task, ArraysTask) and config.task.bucketing and partition != "shuffled":
        text = (
            f"data.partition={partition} does not go with task.bucketing=true, which chooses the sequences of a batch: "
            "type task.bucketing=false, or data.partition=shuffled"
        )
        yield Conflict(text, ("data.partition", "task.bucketing"))
    if partition == "fixed" and task == "language":
        text = (
            "data.partition=fixed does not go with task.name=language, whose streams have their places in the batch: "
            "type data.partition=shuffled"
        )
        yield Conflict(text, ("data.partition", "task.name"))
    if task != "language":
        if isinstance(model, AwdLSTM):
            text = (
                f"model.layer=awd_lstm is a language model, and task.name={task} is no text: "
                "type task.name=language, or model.layer=lstm"
            )
            yield Conflict(text, ("model.layer", "task.name"))
        elif not isinstance(model, WholeNetwork) and model.embedding is not None:
            text = (
                f"model.embedding={model.embedding} is for words or characters, and task.name={task} is no "
                "text: type model.embedding=null, or task.name=language"
            )
            yield Conflict(text, ("model.embedding", "task.name"))


def _has_labels(task: Task) -> bool:
    """Return whether each sequence of a task has one label."""
    return isinstance(task, PixelsTask) or (isinstance(task, ArraysTask) and task.target == "class")


def _fptt(config: Sections) -> Iterator[Conflict]:
    """The preconditioned regularizer has a preconditioner and the explicit update; Algorithm 2 divides by alpha."""
    fptt, optimizer = config.fptt, config.optimizer.name
    if config.algorithm != "fptt":
        return
    if fptt.metric == "preconditioned":
        if optimizer in ("sgd", "nt_asgd"):
            text = (
                "fptt.metric=preconditioned needs an optimizer with a preconditioner, "
                f"optimizer.name={optimizer} has none: "
                "type fptt.metric=euclidean, or optimizer.name=adam (or adamw, rmsprop)"
            )
            yield Conflict(text, ("fptt.metric", "optimizer.name"))
        if fptt.update_rule == "proximal":
            text = (
                "fptt.update_rule=proximal does not go with fptt.metric=preconditioned: "
                "type fptt.update_rule=gradient, or fptt.metric=euclidean"
            )
            yield Conflict(text, ("fptt.update_rule", "fptt.metric"))
        if fptt.update_rule == "second_gradient":
            text = (
                "fptt.update_rule=second_gradient does not go with fptt.metric=preconditioned (its dual is a gradient, "
                "which has not the unit of the preconditioned regularizer): type fptt.update_rule=gradient, or "
                "fptt.metric=euclidean"
            )
            yield Conflict(text, ("fptt.update_rule", "fptt.metric"))
    if fptt.update_rule == "second_gradient" and fptt.alpha == 0:
        text = (
            f"fptt.update_rule=second_gradient needs fptt.alpha > 0, not fptt.alpha={fptt.alpha}: "
            "type fptt.alpha=0.5, or fptt.update_rule=gradient"
        )
        yield Conflict(text, ("fptt.update_rule", "fptt.alpha"))


def _parallel(config: Sections) -> Iterator[Conflict]:
    """The keys of `config.parallel` fit together, and with the algorithm."""
    match config.parallel:
        case DataParallel() as gradient:
            yield from _hook(gradient)
        case ConsensusParallel() as consensus:
            yield from _delay(consensus, config)
            yield from _choices_of_dual(consensus)
            yield from _algorithm(consensus, config)
            yield from _sharded_nodes(consensus)
        case DeepspeedParallel() as deepspeed:
            yield from _deepspeed(deepspeed, config)


def _hook(gradient: DataParallel) -> Iterator[Conflict]:
    """Hooks are DistributedDataParallel's."""
    if gradient.comm_hook == "none" or gradient.reduce == "ddp":
        return
    text = (
        f"parallel.comm_hook={gradient.comm_hook} needs parallel.reduce=ddp, not parallel.reduce={gradient.reduce}: "
        "type parallel.reduce=ddp, or parallel.comm_hook=none"
    )
    yield Conflict(text, ("parallel.comm_hook", "parallel.reduce"))


def _delay(consensus: ConsensusParallel, config: Sections) -> Iterator[Conflict]:
    """A delayed sync ends before the next one starts, and updates what all workers share."""
    if consensus.sync_delay == 0:
        return
    once = config.windows_run if config.algorithm in ("fptt", "tbptt") else 1  # updates per sequence
    every = consensus.sync_every or once
    if consensus.sync_delay >= every:
        text = (
            f"parallel.sync_delay={consensus.sync_delay} must be less than the updates between syncs, {every} "
            f"(parallel.sync_every{'' if consensus.sync_every else '=null is the updates of a sequence'}): "
            f"type parallel.sync_delay={every - 1}{' or less' if every > 1 else ''}, or a larger parallel.sync_every"
        )
        yield Conflict(text, ("parallel.sync_delay", "parallel.sync_every", "fptt.windows", "fptt.window_length"))
    if consensus.dual == "local":
        text = (
            "parallel.sync_delay does not go with parallel.dual=local, whose sync resets center and dual: "
            "type parallel.sync_delay=0, or parallel.dual=averaged"
        )
        yield Conflict(text, ("parallel.sync_delay", "parallel.dual"))


def _choices_of_dual(consensus: ConsensusParallel) -> Iterator[Conflict]:
    """Keys that only one of the two kinds of dual reads."""
    other = {"averaged": ("dual_update", "dual_step_size"), "local": ("weight_sync",)}[consensus.dual]
    needed = "local" if consensus.dual == "averaged" else "averaged"
    for name in other:
        default = type(consensus).model_fields[name].default
        value = getattr(consensus, name)
        if value != default:
            text = (
                f"parallel.{name}={value} is only read with parallel.dual={needed}: "
                f"type parallel.dual={needed}, or parallel.{name}={default}"
            )
            yield Conflict(text, (f"parallel.{name}", "parallel.dual"))
    if consensus.dual == "local" and consensus.dual_update == "admm" and consensus.sync_dtype == "bf16":
        text = (
            "parallel.sync_dtype=bf16 does not go with parallel.dual_update=admm, whose duals would keep the rounding: "
            "type parallel.sync_dtype=fp32, or parallel.dual_update=damped"
        )
        yield Conflict(text, ("parallel.sync_dtype", "parallel.dual_update"))


def _algorithm(consensus: ConsensusParallel, config: Sections) -> Iterator[Conflict]:
    """Some combinations need a center that FPTT's own recursion updates."""
    if consensus.weight_sync == "center" and config.algorithm != "fptt":
        text = (
            f"parallel.weight_sync=center needs a center, which algorithm={config.algorithm} has not: "
            "type parallel.weight_sync=average, or algorithm=fptt"
        )
        yield Conflict(text, ("parallel.weight_sync", "algorithm"))
    if consensus.dual == "local" and config.fptt.clip_scope == "gradient" and config.train.max_norm is not None:
        text = (
            "parallel.dual=local does not go with fptt.clip_scope=gradient, which would bias the workers' consensus: "
            "type fptt.clip_scope=total, or parallel.dual=averaged"
        )
        yield Conflict(text, ("parallel.dual", "fptt.clip_scope"))
    if consensus.dual == "local" and config.algorithm == "fptt" and config.fptt.update_rule == "second_gradient":
        text = (
            "parallel.dual=local does not go with fptt.update_rule=second_gradient, whose dual is a gradient: "
            "type fptt.update_rule=gradient, or parallel.dual=averaged"
        )
        yield Conflict(text, ("parallel.dual", "fptt.update_rule"))


def _sharded_nodes(consensus: ConsensusParallel) -> Iterator[Conflict]:
    """Some combinations need the whole model in each worker."""
    if not isinstance(consensus, HierarchicalParallel) or consensus.intra_node == "data_parallel":
        return
    if consensus.dual == "local":
        text = (
            "parallel.intra_node=fsdp does not go with parallel.dual=local, whose strength is one number for the whole "
            "model: type parallel.dual=averaged, or parallel.intra_node=data_parallel"
        )
        yield Conflict(text, ("parallel.intra_node", "parallel.dual"))
    if consensus.warmup_updates > 0:
        text = (
            f"parallel.intra_node=fsdp does not go with parallel.warmup_updates={consensus.warmup_updates}, which "
            "averages unsharded gradients: type parallel.warmup_updates=0, or parallel.intra_node=data_parallel"
        )
        yield Conflict(text, ("parallel.intra_node", "parallel.warmup_updates"))


def _deepspeed(deepspeed: DeepspeedParallel, config: Sections) -> Iterator[Conflict]:
    """DeepSpeed has no gradient at the new weights, and its stage 1 adds those of micro-batches up in bf16."""
    if config.algorithm == "fptt" and config.fptt.update_rule == "second_gradient":
        text = (
            "fptt.update_rule=second_gradient does not go with parallel.strategy=deepspeed, which gives one gradient "
            "per update: type fptt.update_rule=gradient, or parallel.strategy=fsdp"
        )
        yield Conflict(text, ("fptt.update_rule", "parallel.strategy"))
    micro = config.train.micro_batch_size
    if deepspeed.zero_stage == 1 and config.train.precision == "bf16" and micro is not None:
        text = (
            f"train.micro_batch_size={micro} does not go with parallel.zero_stage=1 and train.precision=bf16, which "
            "would add gradients up in bf16: type parallel.zero_stage=2, or train.micro_batch_size=null"
        )
        yield Conflict(text, ("train.micro_batch_size", "parallel.zero_stage", "train.precision"))
