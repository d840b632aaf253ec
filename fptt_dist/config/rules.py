"""The rules that tie several keys of a configuration together."""

from typing import TYPE_CHECKING

from fptt_dist.config.parallel_rules import parallel_conflicts
from fptt_dist.config.section import Conflict

if TYPE_CHECKING:
    from fptt_dist.config.schema import Config


def conflicts_of(config: "Config") -> list[Conflict]:
    """Everything in `config` that does not fit together."""
    conflicts = [*_length_of_run(config), *_batch_split(config), *_windows(config), *_shards(config), *_text(config)]
    conflicts += [*_graph(config), *parallel_conflicts(config)]
    if config.algorithm == "fptt":
        conflicts += [*_metric(config), *_algorithm2(config)]
    return conflicts


def _length_of_run(config: "Config") -> list[Conflict]:
    """The run must end."""
    if config.train.batches is not None or config.train.epochs is not None:
        return []
    text = (
        "train.batches=null and train.epochs=null leave the run without an end: "
        "type one of them, such as train.epochs=10 or train.batches=1000"
    )
    return [Conflict(text, ("train.batches", "train.epochs"))]


def _batch_split(config: "Config") -> list[Conflict]:
    """Micro-batches must fill a batch."""
    size, micro = config.train.batch_size, config.train.micro_batch_size
    if micro is None or size % micro == 0:
        return []
    below = next(divisor for divisor in range(min(micro, size), 0, -1) if size % divisor == 0)
    text = (
        f"train.micro_batch_size={micro} does not divide train.batch_size={size}: "
        f"type a divisor such as train.micro_batch_size={below}, or train.micro_batch_size=null"
    )
    return [Conflict(text, ("train.micro_batch_size", "train.batch_size"))]


def _graph(config: "Config") -> list[Conflict]:
    """A graph holds the learning rate it was captured with, unless the update is compiled for one that changes."""
    if not config.train.graph or config.train.compile:
        return []
    text = "train.graph=true needs the compiled update: type train.compile=true, or train.graph=false"
    return [Conflict(text, ("train.graph", "train.compile"))]


def _windows(config: "Config") -> list[Conflict]:
    """A window needs at least one step."""
    windows, length = config.fptt.windows, config.task.sequence_length
    if config.algorithm == "bptt" or windows is None or windows <= length:
        return []
    text = (
        f"fptt.windows={windows} is more than the steps of a sequence, {config.task.length_text}: "
        f"type fptt.windows={length} or less, or fptt.windows=null for round(sqrt(length))"
    )
    return [Conflict(text, ("fptt.windows", "task.length", "task.pixels_per_step", "task.delay", "task.symbols"))]


def _shards(config: "Config") -> list[Conflict]:
    """Dealing by label needs labels."""
    task = config.task.name
    if config.data.shards != "by_label" or task == "pixels":
        return []
    text = (
        f"data.shards=by_label needs a task with labels, task.name={task} has none: "
        "type data.shards=shuffled (or fixed), or task.name=pixels"
    )
    return [Conflict(text, ("data.shards", "task.name"))]


def _text(config: "Config") -> list[Conflict]:
    """What belongs to a text, and what does not."""
    language, model = config.task.name == "language", config.model
    conflicts = []
    if not language and model.cell == "awd_lstm":
        text = (
            f"model.cell=awd_lstm is a language model, and task.name={config.task.name} is no text: "
            "type task.name=language, or model.cell=lstm"
        )
        conflicts.append(Conflict(text, ("model.cell", "task.name")))
    if not language and model.cell != "awd_lstm" and model.embedding is not None:
        text = (
            f"model.embedding={model.embedding} is for words or characters, and task.name={config.task.name} is no "
            "text: type model.embedding=null, or task.name=language"
        )
        conflicts.append(Conflict(text, ("model.embedding", "task.name")))
    if config.task.name == "language" and config.task.deviation > 0 and config.fptt.remainder == "extra":
        text = (
            "fptt.remainder=extra would give sequences of different lengths different numbers of windows: "
            "type fptt.remainder=spread, or task.deviation=0"
        )
        conflicts.append(Conflict(text, ("fptt.remainder", "task.deviation")))
    if language and config.data.shards == "fixed":
        text = (
            "data.shards=fixed does not go with task.name=language, whose streams have their places in the batch: "
            "type data.shards=shuffled"
        )
        conflicts.append(Conflict(text, ("data.shards", "task.name")))
    return conflicts


def _metric(config: "Config") -> list[Conflict]:
    """The preconditioned force needs a diagonal preconditioner, and the explicit update."""
    if config.fptt.metric != "preconditioned":
        return []
    conflicts = []
    if config.optimizer.name in ("sgd", "nt_asgd"):
        text = (
            "fptt.metric=preconditioned needs an optimizer with a preconditioner, "
            f"optimizer.name={config.optimizer.name} has none: "
            "type fptt.metric=euclidean, or optimizer.name=adam (or adamw, rmsprop)"
        )
        conflicts.append(Conflict(text, ("fptt.metric", "optimizer.name")))
    if config.fptt.update == "prox":
        text = (
            "fptt.update=prox does not go with fptt.metric=preconditioned: "
            "type fptt.update=explicit, or fptt.metric=euclidean"
        )
        conflicts.append(Conflict(text, ("fptt.update", "fptt.metric")))
    if config.fptt.update == "algorithm2":
        text = (
            "fptt.update=algorithm2 does not go with fptt.metric=preconditioned (its dual is a gradient, "
            "the preconditioned force has not its unit): type fptt.update=explicit, or fptt.metric=euclidean"
        )
        conflicts.append(Conflict(text, ("fptt.update", "fptt.metric")))
    return conflicts


def _algorithm2(config: "Config") -> list[Conflict]:
    """Algorithm 2 divides by alpha."""
    if config.fptt.update != "algorithm2" or config.fptt.alpha > 0:
        return []
    text = (
        f"fptt.update=algorithm2 needs fptt.alpha > 0, not fptt.alpha={config.fptt.alpha}: "
        "type fptt.alpha=0.5, or fptt.update=explicit"
    )
    return [Conflict(text, ("fptt.update", "fptt.alpha"))]
