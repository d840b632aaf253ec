"""The interface between tasks and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from fptt_dist.algorithm.losses import WindowLoss
from fptt_dist.tasks.metrics import TaskMetrics
from fptt_dist.tasks.partition import Shards

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Sequences of one split, time-major.

    Attributes:
        inputs: (T, B, I) numbers, or (T, B) ids of symbols (int64).
        targets: (B, …) for one target per sequence, (T, B) for one per step; T may differ from batch to batch.
        examples: (B,) global ids, where the task's examples have one.
        lengths: (B,) steps of each sequence, on the CPU, where they differ: what lies behind is padding, and counts for
            nothing. T is at least the longest of the global batch.
        global_lengths: those of the whole global batch, worker after worker; these are `lengths` where it is None.
    """

    inputs: Tensor
    targets: Tensor
    examples: Tensor | None = None
    per_step_targets: bool = False
    lengths: Tensor | None = None
    global_lengths: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.inputs.shape[1]

    @property
    def all_lengths(self) -> Tensor | None:
        """Lengths of the whole global batch; None where sequences have the same."""
        return self.lengths if self.global_lengths is None else self.global_lengths

    def select(self, part: slice) -> "Batch":
        """The sequences of `part`."""
        targets = self.targets[:, part] if self.per_step_targets else self.targets[part]
        examples = None if self.examples is None else self.examples[part]
        lengths = None if self.lengths is None else self.lengths[part]
        return replace(self, inputs=self.inputs[:, part], targets=targets, examples=examples, lengths=lengths)

    def to(self, device: torch.device) -> "Batch":
        """Return the same sequences on `device`; tensors that are there already are not copied."""
        beside = device.type == "cuda"  # a copy to a GPU from pinned memory need not be waited for
        examples = None if self.examples is None else self.examples.to(device, non_blocking=beside)
        inputs, targets = (each.to(device, non_blocking=beside) for each in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets, examples=examples)

    @property
    def mask(self) -> Tensor:
        """True where a step is a sequence's own and no padding, (T, B) on the inputs' device."""
        steps = torch.arange(len(self.inputs), device=self.inputs.device).unsqueeze(1)
        ends = torch.full((self.size,), len(self.inputs)) if self.lengths is None else self.lengths
        return steps < ends.to(self.inputs.device)

    def without_padding(self) -> "Batch":
        """Return the same sequences with zeros behind their ends, whatever was there (NaN included)."""
        if self.lengths is None:
            return self
        padding = ~self.mask
        inputs = self.inputs.masked_fill(padding.unsqueeze(-1) if self.inputs.dim() == 3 else padding, 0)
        if not self.per_step_targets:
            return replace(self, inputs=inputs)
        beyond = padding.reshape(padding.shape + (1,) * (self.targets.dim() - 2))
        return replace(self, inputs=inputs, targets=self.targets.masked_fill(beyond, 0))

    def last_outputs(self, output: Tensor) -> Tensor:
        """Return the outputs (B, O) after each sequence's last step, of (T or 1, B, O)."""
        if self.lengths is None:
            return output[-1]
        return output[self.lengths.to(output.device) - 1, torch.arange(self.size, device=output.device)]

    def target(self, part: slice) -> Tensor:
        """Return the targets of the window `part`: those of its steps, or the sequence's."""
        return self.targets[part] if self.per_step_targets else self.targets


def rank_slice(size: int, rank: int, world: int) -> slice:
    """Return the contiguous slice of `size` items for `rank` of `world`; sizes differ by at most one."""
    return slice(rank * size // world, (rank + 1) * size // world)


class Task(ABC):
    """Data, loss and metrics of one learning problem.

    A task has one metric that is a mean over items, of which `score` gives the sum, or with `measure_by` several of
    torchmetrics'.

    Attributes:
        name: as in the configuration.
        inputs: I, features per step (1 where they are ids).
        outputs: O, number of outputs of the network.
        length: T, steps of a sequence; of a usual one where a task has longer and shorter ones.
        train_examples: training sequences per epoch, over all workers.
        loss: the window loss.
        metric: name of the metric, the monitored one of several: it decides which checkpoint is the best one.
        higher_is_better: its direction.
        metrics: several metrics, see `measure_by`; None: `score` gives the only one.
        stateful: whether a batch's last state is the next one's first (streams of text), in training and in the
            batches of an evaluation.
        vocabulary_size: V, where inputs are ids from 0 to V − 1; None where they are features.
        lengths_differ: whether the sequences of a batch have different lengths, which its `lengths` then say.
        scale_lr_by_length: whether a batch's learning rate is in proportion to its length (Merity et al. 2018).
        unknown_tokens: of a text's "train", "validation" and "test" part: the "share" of tokens that are read as
            "<unk>", and the "commonest" symbols among them with their numbers; as in result.json.
    """

    name: str
    inputs: int
    outputs: int
    length: int
    train_examples: int
    loss: WindowLoss
    metric: str
    higher_is_better: bool
    metrics: TaskMetrics | None = None
    stateful: bool = False
    vocabulary_size: int | None = None
    lengths_differ: bool = False
    scale_lr_by_length: bool = False
    unknown_tokens: Mapping[str, Any] = MappingProxyType({})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a data worker process gets: everything but the loss, which trains where it is."""
        return {name: value for name, value in vars(self).items() if name != "loss"}

    def set_partition(self, shards: Shards, rank: int, world: int) -> None:
        """Set the partition of the training examples over the workers; "shuffled" where it is not called.

        "shuffled": every epoch's examples are shuffled globally, and each worker takes its slice of each global batch.
        "fixed": the seed assigns the examples once; each worker keeps its own, in another order at every epoch.
        "by_label": like "fixed", but sorted by label (non-IID), so that the workers' examples differ as much as they
        can.

        With the last two, `train_examples` becomes the number of examples in the partition, equal shares without the
        remainder, and `train_batch` gives this worker's own examples, as many as `part` has; it refuses batches that do
        not divide equally among the workers.

        Raises:
            ValueError: the task does not have this partition, there is no such worker, or there are fewer examples than
                workers.
        """
        if shards != "shuffled":
            raise ValueError(f"the examples of the task {self.name} can only be shuffled, not partitioned as {shards}")

    def to(self, device: torch.device) -> None:
        """Keep the data on `device`, so that batches are put together there; called once, before the first batch.

        A task that does not override it gives its batches on the CPU, and the loop moves each. Batches are the same
        numbers on any device. It is not called where data worker processes put the batches together, on the CPU.
        """

    @abstractmethod
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch of `size` that starts at example `cursor` of `epoch`.

        A pure function of its arguments, the task's seed and the partition; where that is "shuffled", any
        number of workers sees the same global batch. With data.workers it is called in other processes, on pickled
        copies of the task: random numbers come from generators of its own, seeded by (seed, epoch, example), or from
        the global ones within `seeded`.
        """

    @abstractmethod
    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set `split`, in batches."""

    def measure_by(self, metrics: TaskMetrics) -> None:
        """Evaluate by these metrics instead of `score`; called as the task is made."""
        self.metrics, self.metric, self.higher_is_better = metrics, metrics.monitored, metrics.higher_is_better

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the metric over the batch (0-dim, float64), and how many items were summed.

        Needed unless the task has `metrics`.

        Args:
            output: (T or 1, B, O), the network's outputs over the whole sequence.
            batch: the sequences.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither metrics nor a score")

    def predictions(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what `metrics` compare, without padding; a task that scales its targets scales both back.

        Args:
            output: (T or 1, B, O), the network's outputs over the whole sequence.
            batch: the sequences.

        Returns:
            Predictions and targets, see `TaskMetrics.compared`.
        """
        assert self.metrics is not None
        if self.metrics.per_step:
            real = batch.mask
            return self.metrics.compared(output[real], batch.targets[real])
        return self.metrics.compared(batch.last_outputs(output), batch.targets)

    @property
    def output_steps(self) -> Literal["last", "all"]:
        """The steps of a window whose outputs the network gives: all where a sequence may end at any."""
        return "all" if self.lengths_differ else self.loss.loss_steps

    def window_metric(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The metric of one window of a training batch (0-dim), where one can be read off; else None.

        Not asked for where sequences have different lengths.

        Args:
            output: (S, B, O), the window's outputs.
            target: as the loss takes it.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that belong to the run and not to its configuration alone, for the checkpoint."""
        return {}

    def validate_state(self, state: Mapping[str, Tensor]) -> str | None:
        """Return why tensors of a checkpoint cannot be what `state_dict` gave, in words; None if they can.

        Raises:
            DataError: they can, but for other data than the task has now: no checkpoint of the run fits.
        """
        return unlike(state, self.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back what `state_dict` gave."""

    def input_description(self) -> dict[str, Any]:
        """Return how inputs are prepared (plain JSON values), for users of an exported network; {} if they are raw."""
        return {}

    def value(self, mean: float) -> float:
        """The metric from its mean over all items (the identity; a perplexity would exponentiate)."""
        return mean


@dataclass(frozen=True)
class TaskShape:
    """Sizes that a network needs to know of its task, whose attributes these are."""

    inputs: int
    outputs: int
    length: int
    vocabulary_size: int | None
    output_steps: Literal["last", "all"]

    @classmethod
    def of(cls, task: Task) -> "TaskShape":
        """Return the sizes of a task."""
        return cls(task.inputs, task.outputs, task.length, task.vocabulary_size, task.output_steps)


def unlike(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return how names, shapes or types of tensors differ from the expected ones, in words; None if they do not."""
    if tensors.keys() != expected.keys():
        return f"it has the tensors {sorted(tensors)} instead of {sorted(expected)}"
    for name, tensor in tensors.items():
        here, there = ((each.dtype, tuple(each.shape)) for each in (tensor, expected[name]))
        if here != there:
            return f"{name} is {here[0]} of shape {here[1]} instead of {there[0]} of shape {there[1]}"
    return None
