"""Tasks on series of the user's own: order, batches, losses and metrics of whatever gives the series."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.algorithm.losses import (
    MultiLabelLoss,
    RegressionLoss,
    SequenceLoss,
    StepRegressionLoss,
    TerminalLoss,
    WindowLoss,
)
from fptt_dist.algorithm.target_estimates import LabelEstimate, UniformEstimate
from fptt_dist.tasks.base import Batch, Split, Task, unlike
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import Scaling
from fptt_dist.tasks.data.series import RawSeries, rows_of
from fptt_dist.tasks.data.targets import Classes, number_targets
from fptt_dist.tasks.epoch_cache import EpochCache
from fptt_dist.tasks.metrics import Targets
from fptt_dist.tasks.partition import Partition, Shards

PER_STEP = ("step_class", "step_value", "forecast")
CLASSES = ("class", "step_class")
EVALUATION_BATCH = 256
POOL = 16  # batches whose sequences are sorted by length together


class SeriesTask(Task):
    """Series with targets of one kind; a subclass reads them, and calls `_set_lengths` in its constructor.

    Args:
        target: kind of the targets.
        length: T, steps of the longest series.
        bucketing: whether sequences of similar length are put into one batch.
        seed: of the order of the examples.

    Attributes:
        digest: (32,) uint8, SHA-256 that says which the training examples are.
        source: where the series come from, for messages.
    """

    digest: NDArray
    source: str
    _classes: Classes | None
    _scale: Scaling  # of targets that are numbers, (O,)

    def __init__(self, *, target: Targets, length: int, bucketing: bool, seed: int) -> None:
        self.target: Targets = target
        self.length, self.bucketing, self.seed = length, bucketing, seed
        self._lengths: dict[str, NDArray] = {}
        self._shards: list[Partition] | None = None
        self._own = 0
        self._order = EpochCache(self._epoch_order)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the outputs; [] of targets that have none."""
        return [] if self._classes is None else self._classes.names

    @abstractmethod
    def _read(self, split: str, epoch: int, ids: NDArray, steps: NDArray, which: NDArray) -> tuple[NDArray, NDArray]:
        """Return the steps of examples one after another as the network gets them, and their targets.

        Args:
            split: "train", "validation" or "test".
            epoch: of the training; 0 of a split that is held out.
            ids: (B,) which of its examples.
            steps: (M,) of each row, the step within its example.
            which: (M,) of each row, the position of its example among the B.

        Returns:
            (M, C) float32, and (B, …) or of one target per step (M, …), int64 classes or numbers.
        """

    @abstractmethod
    def _train_labels(self) -> NDArray:
        """Return the class of each training example, (E,) int64; of task.target=class."""

    def _set_lengths(self, lengths: Mapping[str, NDArray]) -> None:
        """Take the lengths (E,) of each split's examples."""
        self._lengths = dict(lengths)
        self.lengths_differ = any((each != self.length).any() for each in lengths.values())
        self.train_examples = len(lengths["train"])

    def set_partition(self, shards: Shards, rank: int, world: int) -> None:
        """Set the partition as for every task; the labels are the series' classes.

        Raises:
            ValueError: by label, and there is not one class per series.
        """
        examples = len(self._lengths["train"])
        self._shards, self._own = None, rank
        if shards == "by_label" and self.target != "class":
            raise ValueError(f"examples with task.target={self.target} have not one label each to partition them by")
        if shards != "shuffled":
            labels = torch.from_numpy(self._train_labels()) if shards == "by_label" else None
            # Of every worker: the lengths of the whole global batch are needed.
            self._shards = [Partition(examples, each, world, seed=self.seed, labels=labels) for each in range(world)]
        self.train_examples = self._shards[0].num_examples if self._shards else examples

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch at `cursor` of the epoch's own order, or this worker's own."""
        if self._shards is None:
            everywhere = self._order(epoch, size)[cursor : cursor + size]
            own = everywhere[part]
        else:
            each = [shard.batch(epoch, cursor, size, part).numpy() for shard in self._shards]
            everywhere, own = np.concatenate(each), each[self._own]
        lengths = self._lengths["train"][everywhere]
        return self._batch("train", epoch, own, lengths if self.lengths_differ else None)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of a held-out set, in batches of similar length."""
        lengths = self._lengths[split]
        own = np.argsort(lengths, kind="stable")[rank::world]
        for start in range(0, len(own), EVALUATION_BATCH):
            ids = own[start : start + EVALUATION_BATCH]
            yield self._batch(split, 0, ids, lengths[ids] if self.lengths_differ else None)

    def predictions(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what is predicted and what is right, numbers in the data's own units.

        Args:
            output: (T or 1, B, O), the network's outputs over the whole sequence.
            batch: the sequences.

        Returns:
            Predictions and targets as `TaskMetrics.compared` returns them; of a forecast those of the last step.
        """
        targets = batch.last_outputs(batch.targets) if self.target == "forecast" else batch.targets
        if self.target not in (*CLASSES, "labels"):
            mean, std = (torch.from_numpy(each).to(output.device) for each in (self._scale.mean, self._scale.std))
            output, targets = (each.double() * std + mean for each in (output, targets))
        return super().predictions(output, replace(batch, targets=targets))

    def state_dict(self) -> dict[str, Tensor]:
        """The checksum of the training examples."""
        return {"train_sha256": torch.from_numpy(self.digest)}

    def validate_state(self, state: Mapping[str, Tensor]) -> str | None:
        """See `Task.validate_state`.

        Raises:
            DataError: the checkpoint makes sense, but comes from other training examples.
        """
        problem = unlike(state, self.state_dict())
        if problem is None and not np.array_equal(state["train_sha256"].numpy(), self.digest):
            raise DataError(
                f"the run was trained on other examples than those that {self.source} has now: put that file back, or "
                "train a new run"
            )
        return problem

    def input_description(self) -> dict[str, Any]:
        """Kind of the targets, and the classes where they are some."""
        return {"target": self.target} | ({"classes": self.classes} if self.target in CLASSES else {})

    def _epoch_order(self, epoch: int, size: int) -> NDArray:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.train_examples)
        lengths = self._lengths["train"]
        if not self.bucketing or not self.lengths_differ:
            return order
        order = order[: len(order) // size * size]
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size]
            order[start : start + POOL * size] = pool[np.argsort(lengths[pool], kind="stable")]
        batches = order.reshape(-1, size)
        # Within a batch, too: the workers' slices of it have the same lengths on average.
        generator = np.random.default_rng([self.seed, epoch, 1])
        return generator.permuted(generator.permutation(batches), axis=1).reshape(-1)

    def _batch(self, split: str, epoch: int, ids: NDArray, everywhere: NDArray | None) -> Batch:
        """Put examples side by side.

        Args:
            split: "train", "validation" or "test".
            epoch: of the training; 0 of a split that is held out.
            ids: (B,) which of its examples.
            everywhere: lengths of the whole global batch; None: all are of `self.length`.
        """
        lengths = self._lengths[split][ids]
        _, steps, which = rows_of(np.zeros_like(lengths), lengths)
        values, targets = self._read(split, epoch, ids, steps, which)
        if targets.dtype.kind == "f":
            targets = targets.astype(np.float32)
        longest = self.length if everywhere is None else int(everywhere.max())
        inputs = np.zeros((longest, len(ids), values.shape[1]), np.float32)
        inputs[steps, which] = values
        if self.target in PER_STEP:
            own = np.zeros((longest, len(ids), *targets.shape[1:]), targets.dtype)
            own[steps, which] = targets
            targets = own
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(targets),
            torch.from_numpy(ids.astype(np.int64)),
            per_step_targets=self.target in PER_STEP,
            lengths=None if everywhere is None else torch.from_numpy(lengths),
            global_lengths=None if everywhere is None else torch.from_numpy(everywhere),
        )

    def _encoded(self, raw: RawSeries) -> NDArray:
        """Return the targets of series as numbers: int64 classes, or float64 with as many columns as outputs."""
        if self._classes is not None:
            return self._classes.encoded(raw)
        return number_targets(raw, labels=self.target == "labels", per_step=self.target in PER_STEP)

    def _loss(self, *, class_weights: Tensor | None = None, estimate: LabelEstimate | None = None) -> WindowLoss:
        """Return the window loss of the kind of targets.

        Args:
            class_weights: (C,) of targets that are classes.
            estimate: Q of the terminal loss; None: uniform.
        """
        match self.target:
            case "class":
                estimate = estimate or UniformEstimate(len(self.classes))
                return TerminalLoss(estimate, class_weights=class_weights)
            case "step_class":
                return SequenceLoss(class_weights=class_weights)
            case "labels":
                return MultiLabelLoss()
            case "value":
                return RegressionLoss()
            case _:
                return StepRegressionLoss()


def require_length(given: Sequence[RawSeries], length: int) -> None:
    """Refuse series with more steps than the configured ones.

    Raises:
        DataError: the longest series, and what to type.
    """
    raw = max(given, key=lambda each: each.lengths.max())
    longest = int(raw.lengths.argmax())
    if raw.lengths[longest] > length:
        raise DataError(
            f"{raw.path}: {raw.name_of(longest)} has {raw.lengths[longest]} steps, more than task.length={length}: "
            f"type task.length={raw.lengths.max()}, the steps of the longest series"
        )
