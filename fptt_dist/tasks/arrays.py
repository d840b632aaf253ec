"""Series of the user's own, from arrays or tables, with targets of several kinds."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

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
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, ExampleEstimate, LabelEstimate, UniformEstimate
from fptt_dist.tasks.base import Batch, Split, Task, unlike
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import Scaling, Statistics, as_float, blocks, check_values, digest, filled
from fptt_dist.tasks.data.series import RawSeries, rows_of
from fptt_dist.tasks.data.splits import Examples, forecasts, whole_series
from fptt_dist.tasks.data.targets import Classes, number_targets, single_targets, targets_of
from fptt_dist.tasks.epoch_cache import EpochCache
from fptt_dist.tasks.metrics import Targets, TaskMetrics, naive_scale
from fptt_dist.tasks.partition import Partition, Shards

PER_STEP = ("step_class", "step_value", "forecast")
CLASSES = ("class", "step_class")
EVALUATION_BATCH = 256
POOL = 16  # batches whose sequences are sorted by length together
LOG = logging.getLogger("fptt_dist")


class Arrays(Task):
    """Series of one's own: a class, several labels or numbers for each or for each of its steps, or a forecast.

    Channels (and targets that are numbers) are standardized by the training examples alone. Missing values are carried
    forward, with a channel more for each that says where a value was there. The metrics are in the data's own units.

    Args:
        files: "train", and "validation" and "test" where they are files of their own; see `whole_series` and
            `forecasts`.
        target: what is learned. "class": one of C per series; "labels": several, each 0 or 1; "value": one number per
            series, or several; "step_class" and "step_value": the same per step; "forecast": the next `horizon` values
            of some channels, at every step.
        length: T, steps of the longest series; of a forecast, steps that it is made from.
        horizon: h, steps of a forecast.
        channels: names of the channels to forecast; None: all.
        shares: of "validation" and "test", where they are held out of the training file.
        split_seed: of what is held out.
        missing: "refuse" missing values, or "fill" them.
        standardize: whether channels and numbers are.
        class_weights: "balanced" weighs a class by N / (C · its number of training examples or steps).
        target_estimate: Q of the terminal loss.
        bucketing: whether sequences of similar length are put into one batch.
        metrics: see `TaskMetrics`.
        monitor: see `TaskMetrics`.
        windows: K, for the estimate's tables.
        seed: of the order of the examples.

    Raises:
        DataError: the file, its series, what was expected and what was found.
    """

    name = "arrays"

    def __init__(
        self,
        *,
        files: Mapping[str, RawSeries | None],
        target: Targets,
        length: int,
        horizon: int = 1,
        channels: Sequence[str] | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        missing: Literal["refuse", "fill"] = "refuse",
        standardize: bool = True,
        class_weights: Literal["none", "balanced"] = "none",
        target_estimate: Literal["uniform", "class_mean", "example"] = "uniform",
        bucketing: bool = True,
        metrics: Sequence[str] = (),
        monitor: str | None = None,
        windows: int = 1,
        seed: int = 0,
    ) -> None:
        given = [raw for raw in files.values() if raw is not None]
        train = files["train"]
        assert train is not None
        self.target: Targets = target
        self.features = train.features
        self.length, self.horizon, self.seed = length, horizon, seed
        self.missing, self.bucketing = missing, bucketing
        _require_same_channels(given)
        for raw in given:
            check_values(raw, missing_allowed=missing == "fill")
        shares = {"validation": 0.15, "test": 0.15} if shares is None else shares
        if target == "forecast":
            self._channels = _positions(train, channels)
            self._examples = forecasts(files, shares, length, horizon)
        else:
            for raw in given:
                _require_length(raw, length)
            strata = np.unique(single_targets(train), return_inverse=True)[1] if target == "class" else None
            self._examples = whole_series(files, shares, split_seed, strata)
        self.digest = self._train_digest()
        self._classes = Classes(self._examples["train"], per_step=target in PER_STEP) if target in CLASSES else None
        self.classes = [] if self._classes is None else self._classes.names
        read = {id(raw): self._read_targets(raw) for raw in given}
        self._targets = {split: read[id(part.raw)] for split, part in self._examples.items()}
        self._scaling, self._scale = self._fit(standardize=standardize)
        if target == "forecast":
            self._require_targets_there(given)
        self.lengths_differ = any((part.lengths != length).any() for part in self._examples.values())
        self.inputs = len(self.features) * (2 if missing == "fill" else 1)
        self.outputs = self._count_outputs()
        self.train_examples = len(self._examples["train"])
        self.loss = self._make_loss(class_weights, target_estimate, windows)
        self.measure_by(self._make_metrics(metrics, monitor))
        self._shards: list[Partition] | None = None
        self._own = 0
        self._order = EpochCache(self._epoch_order)

    def set_partition(self, shards: Shards, rank: int, world: int) -> None:
        """Set the partition as for every task; the labels are the series' classes.

        Raises:
            ValueError: by label, and there is not one class per series.
        """
        part = self._examples["train"]
        self._shards, self._own = None, rank
        if shards == "by_label" and self.target != "class":
            raise ValueError(f"examples with task.target={self.target} have not one label each to partition them by")
        if shards != "shuffled":
            labels = self._labels(part) if shards == "by_label" else None
            # Of every worker: the lengths of the whole global batch are needed.
            self._shards = [Partition(len(part), each, world, seed=self.seed, labels=labels) for each in range(world)]
        self.train_examples = self._shards[0].num_examples if self._shards else len(part)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch at `cursor` of the epoch's own order, or this worker's own."""
        if self._shards is None:
            everywhere = self._order(epoch, size)[cursor : cursor + size]
            own = everywhere[part]
        else:
            each = [shard.batch(epoch, cursor, size, part).numpy() for shard in self._shards]
            everywhere, own = np.concatenate(each), each[self._own]
        lengths = self._examples["train"].lengths[everywhere]
        return self._batch("train", own, lengths if self.lengths_differ else None)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of a held-out set, in batches of similar length."""
        part = self._examples[split]
        own = np.argsort(part.lengths, kind="stable")[rank::world]
        for start in range(0, len(own), EVALUATION_BATCH):
            ids = own[start : start + EVALUATION_BATCH]
            yield self._batch(split, ids, part.lengths[ids] if self.lengths_differ else None)

    def predictions(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what is predicted and what is right, numbers in the data's own units.

        Args:
            output: (T or 1, B, O), the network's outputs over the whole sequence.
            batch: the sequences.

        Returns:
            Predictions and targets as `TaskMetrics.compared` returns them; of a forecast those of the last step.
        """
        assert self.metrics is not None
        if self.metrics.per_step:
            real = batch.mask
            output, right = output[real], batch.targets[real]
        else:
            output = batch.last_outputs(output)
            right = batch.last_outputs(batch.targets) if self.target == "forecast" else batch.targets
        if self.target in (*CLASSES, "labels"):
            return self.metrics.compared(output, right)
        mean, std = (torch.from_numpy(each).to(output.device) for each in (self._scale.mean, self._scale.std))
        return self.metrics.compared(output.double() * std + mean, right.double() * std + mean)

    def state_dict(self) -> dict[str, Tensor]:
        """The constants of standardization, and the checksum of the training examples that they come from."""
        named = {
            "mean": self._scaling.mean,
            "std": self._scaling.std,
            "target_mean": self._scale.mean,
            "target_std": self._scale.std,
            "train_sha256": self.digest,
        }
        return {name: torch.from_numpy(value) for name, value in named.items()}

    def validate_state(self, state: Mapping[str, Tensor]) -> str | None:
        """See `Task.validate_state`: the checkpoint comes from the same training examples."""
        problem = unlike(state, self.state_dict())
        if problem is None and not np.array_equal(state["train_sha256"].numpy(), self.digest):
            path = self._examples["train"].raw.path
            problem = f"it was trained on other examples than those that {path} has now"
        return problem

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the constants of standardization of the run."""
        values = {name: tensor.cpu().numpy() for name, tensor in state.items()}
        self._scaling = Scaling(values["mean"], values["std"])
        self._scale = Scaling(values["target_mean"], values["target_std"])

    def input_description(self) -> dict[str, Any]:
        """Channels, their standardization, and classes, or what numbers are multiplied with and added to."""
        found: dict[str, Any] = {
            "features": self.features,
            "mean": self._scaling.mean.tolist(),
            "std": self._scaling.std.tolist(),
            "missing": self.missing,
            "target": self.target,
        }
        if self.target in CLASSES:
            return found | {"classes": self.classes}
        if self.target == "labels":
            return found
        scaling = self._scale
        return found | {"target_mean": scaling.mean.tolist(), "target_std": scaling.std.tolist()}

    def _epoch_order(self, epoch: int, size: int) -> NDArray:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.train_examples)
        lengths = self._examples["train"].lengths
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

    def _batch(self, split: str, ids: NDArray, everywhere: NDArray | None) -> Batch:
        """Put examples side by side.

        Args:
            split: "train", "validation" or "test".
            ids: (B,) which of its examples.
            everywhere: lengths of the whole global batch; None: all are of `self.length`.
        """
        part = self._examples[split]
        lengths = part.lengths[ids]
        rows, steps, which = rows_of(part.starts[ids], lengths)
        values = as_float(part.raw.inputs[rows])
        if self.missing == "fill":
            values, seen = filled(values, steps, self._scaling.mean)
            values = np.concatenate([self._scaling.scaled(values), seen], axis=1)
        else:
            values = self._scaling.scaled(values)
        longest = self.length if everywhere is None else int(everywhere.max())
        inputs = np.zeros((longest, len(ids), values.shape[1]), np.float32)
        inputs[steps, which] = values
        targets = self._targets_of(split, ids, rows)
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

    def _targets_of(self, split: str, ids: NDArray, rows: NDArray) -> NDArray:
        part = self._examples[split]
        if self.target == "forecast":
            later = rows[:, None] + 1 + np.arange(self.horizon)
            values = as_float(part.raw.inputs[later.reshape(-1)][:, self._channels])
            return self._scale.scaled(values.reshape(len(rows), -1))
        targets = self._targets[split]
        found = targets[rows] if self.target in PER_STEP else targets[part.series[ids]]
        return found if self.target in (*CLASSES, "labels") else self._scale.scaled(found)

    def _labels(self, part: Examples) -> Tensor:
        return torch.from_numpy(self._targets["train"][part.series])

    def _train_digest(self) -> NDArray:
        part = self._examples["train"]
        if self.target == "forecast":
            return digest(part.raw, *_union(part, self.horizon), None)
        targets = part.raw.targets
        assert targets is not None
        own = targets_of(part, targets, per_step=self.target in PER_STEP)
        return digest(part.raw, part.starts, part.lengths, own)

    def _read_targets(self, raw: RawSeries) -> NDArray:
        """Return the targets of all series of a file as numbers: int64 classes, or float32."""
        if self.target == "forecast":
            return np.zeros(0, np.float32)
        per_step = self.target in PER_STEP
        if self._classes is not None:
            return self._classes.encoded(raw)
        return number_targets(raw, labels=self.target == "labels", per_step=per_step)

    def _train_targets(self) -> NDArray:
        part = self._examples["train"]
        return targets_of(part, self._targets["train"], per_step=self.target in PER_STEP)

    def _fit(self, *, standardize: bool) -> tuple[Scaling, Scaling]:
        """Return the constants of the channels and of the targets, from the training examples."""
        part = self._examples["train"]
        raw = part.raw
        channels = Statistics(len(self.features))
        starts, lengths = _union(part, self.horizon) if self.target == "forecast" else (part.starts, part.lengths)
        targets = self._targets["train"]
        numbers = self.target in ("value", "step_value")
        own = Statistics(targets.shape[1] if numbers else 0)
        for values, _, _ in blocks(raw, starts, lengths):
            channels.add(values)
        if numbers:
            own.add(self._train_targets())
        constant = np.nonzero(channels.constant())[0]
        if len(constant):
            names = ", ".join(self.features[each] for each in constant[:10])
            LOG.warning("%s: constant at all training steps, so that nothing is learned from it: %s", raw.path, names)
        scaling = channels.scaling() if standardize else Scaling.none(len(self.features))
        if self.target == "forecast":
            chosen = self._channels
            return scaling, Scaling(
                np.tile(scaling.mean[chosen], self.horizon), np.tile(scaling.std[chosen], self.horizon)
            )
        return scaling, own.scaling() if numbers and standardize else Scaling.none(targets.shape[1] if numbers else 0)

    def _require_targets_there(self, given: list[RawSeries]) -> None:
        for raw in given if self.missing == "fill" else []:
            for values, steps, which in blocks(raw, raw.first_rows(), raw.lengths):
                gone = np.isnan(values[:, self._channels])
                if gone.any():
                    row, channel = (int(index[0]) for index in np.nonzero(gone))
                    raise DataError(
                        f"{raw.path}: {raw.name_of(int(which[row]))}, step {steps[row]}, channel "
                        f"{self.features[self._channels[channel]]} is missing (NaN), and it is to be forecast: "
                        "task.missing=fill is for inputs alone; choose others by task.target_columns, or leave these "
                        "steps out"
                    )

    def _count_outputs(self) -> int:
        if self.target in CLASSES:
            return len(self.classes)
        if self.target == "forecast":
            return self.horizon * len(self._channels)
        return self._targets["train"].shape[1]

    def _make_metrics(self, listed: Sequence[str], monitor: str | None) -> TaskMetrics:
        forecast = self.target == "forecast"
        size = len(self._channels) if forecast else self.outputs
        scale = self._naive_scale() if forecast and ("mase" in listed or not listed) else None
        return TaskMetrics(self.target, listed, monitor, size, scale)

    def _naive_scale(self) -> Tensor:
        part = self._examples["train"]
        series = [
            torch.from_numpy(as_float(part.raw.inputs[start : start + length][:, self._channels]))
            for start, length in zip(*_union(part, self.horizon), strict=True)
        ]
        return naive_scale(series)

    def _make_loss(self, class_weights: str, target_estimate: str, windows: int) -> WindowLoss:
        weights = self._balanced() if class_weights == "balanced" else None
        match self.target:
            case "class":
                return TerminalLoss(self._estimate(target_estimate, windows), class_weights=weights)
            case "step_class":
                return SequenceLoss(class_weights=weights)
            case "labels":
                return MultiLabelLoss()
            case "value":
                return RegressionLoss()
            case _:
                return StepRegressionLoss()

    def _balanced(self) -> Tensor:
        own = self._train_targets()
        counts = np.bincount(own, minlength=len(self.classes))
        return torch.from_numpy(len(own) / (len(self.classes) * counts)).float()

    def _estimate(self, name: str, windows: int) -> LabelEstimate:
        match name:
            case "class_mean":
                return ClassMeanEstimate(len(self.classes), windows)
            case "example":
                return ExampleEstimate(self.train_examples, len(self.classes), windows)
            case _:
                return UniformEstimate(len(self.classes))


def _require_same_channels(given: list[RawSeries]) -> None:
    for raw in given[1:]:
        if raw.features != given[0].features:
            raise DataError(
                f"{raw.path} has the channels {', '.join(raw.features)}: expected those of {given[0].path}, "
                f"{', '.join(given[0].features)}"
            )


def _require_length(raw: RawSeries, length: int) -> None:
    longest = int(raw.lengths.argmax())
    if raw.lengths[longest] > length:
        raise DataError(
            f"{raw.path}: {raw.name_of(longest)} has {raw.lengths[longest]} steps, more than task.length={length}: "
            f"type task.length={raw.lengths.max()}, the steps of the longest series"
        )


def _positions(raw: RawSeries, channels: Sequence[str] | None) -> NDArray:
    if channels is None:
        return np.arange(len(raw.features))
    for name in channels:
        if name not in raw.features:
            raise DataError(f"{raw.path} has no channel {name} to forecast: expected one of {', '.join(raw.features)}")
    return np.array([raw.features.index(name) for name in channels])


def _union(part: Examples, horizon: int) -> tuple[NDArray, NDArray]:
    """Return each series' rows in the stretches of a split and their forecasts: first row and steps of each."""
    series, first = np.unique(part.series, return_index=True)
    last = np.array([np.nonzero(part.series == each)[0][-1] for each in series])
    starts = part.starts[first]
    return starts, part.starts[last] + part.lengths[last] + horizon - starts
