"""Series of the user's own, from arrays or tables, with targets of several kinds."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, ExampleEstimate, LabelEstimate, UniformEstimate
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import Scaling, Statistics, as_double, blocks, check_values, digest, filled
from fptt_dist.tasks.data.series import RawSeries
from fptt_dist.tasks.data.splits import Examples, forecasts, whole_series
from fptt_dist.tasks.data.targets import Classes, single_targets, targets_of
from fptt_dist.tasks.metrics import Targets, TaskMetrics, naive_scale
from fptt_dist.tasks.series_task import CLASSES, PER_STEP, SeriesTask, require_length

LOG = logging.getLogger("fptt_dist")


class Arrays(SeriesTask):
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
        super().__init__(target=target, length=length, bucketing=bucketing, seed=seed)
        self.features = train.features
        self.horizon, self.missing = horizon, missing
        self.source = str(train.path)
        _require_same_channels(given)
        _require_other_series(given)
        for raw in given:
            check_values(raw, missing_allowed=missing == "fill")
        shares = {"validation": 0.15, "test": 0.15} if shares is None else shares
        if target == "forecast":
            self._channels = _positions(train, channels)
            self._examples = forecasts(files, shares, length, horizon)
        else:
            require_length(given, length)
            strata = (
                np.unique(single_targets(train, per_step=False), return_inverse=True)[1] if target == "class" else None
            )
            self._examples = whole_series(files, shares, split_seed, strata)
        self.digest = self._train_digest()
        self._classes = Classes(self._examples["train"], per_step=target in PER_STEP) if target in CLASSES else None
        read = {id(raw): self._read_targets(raw) for raw in given}
        self._targets = {split: read[id(part.raw)] for split, part in self._examples.items()}
        self._scaling, self._scale = self._fit(standardize=standardize)
        if target == "forecast":
            self._require_targets_there(given)
        self._set_lengths({split: part.lengths for split, part in self._examples.items()})
        self.inputs = len(self.features) * (2 if missing == "fill" else 1)
        self.outputs = self._count_outputs()
        self.loss = self._loss(
            class_weights=self._balanced() if class_weights == "balanced" else None,
            estimate=self._estimate(target_estimate, windows) if target == "class" else None,
        )
        self.measure_by(self._make_metrics(metrics, monitor))

    def state_dict(self) -> dict[str, Tensor]:
        """The constants of standardization, and the checksum of the training examples that they come from."""
        named = {
            "mean": self._scaling.mean,
            "std": self._scaling.std,
            "target_mean": self._scale.mean,
            "target_std": self._scale.std,
        }
        return {name: torch.from_numpy(value) for name, value in named.items()} | super().state_dict()

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
        } | super().input_description()
        if self.target in (*CLASSES, "labels"):
            return found
        scaling = self._scale
        return found | {"target_mean": scaling.mean.tolist(), "target_std": scaling.std.tolist()}

    def _read(self, split: str, epoch: int, ids: NDArray, steps: NDArray, which: NDArray) -> tuple[NDArray, NDArray]:
        part = self._examples[split]
        rows = part.starts[ids][which] + steps
        values = as_double(part.raw.inputs[rows])
        if self.missing == "fill":
            values, seen = filled(values, steps, self._scaling.mean)
            values = np.concatenate([self._scaling.scaled(values), seen], axis=1)
        else:
            values = self._scaling.scaled(values)
        return values, self._targets_of(split, ids, rows)

    def _targets_of(self, split: str, ids: NDArray, rows: NDArray) -> NDArray:
        part = self._examples[split]
        if self.target == "forecast":
            later = rows[:, None] + 1 + np.arange(self.horizon)
            values = as_double(part.raw.inputs[later.reshape(-1)][:, self._channels])
            return self._scale.scaled(values.reshape(len(rows), -1))
        targets = self._targets[split]
        found = targets[rows] if self.target in PER_STEP else targets[part.series[ids]]
        return found if self.target in (*CLASSES, "labels") else self._scale.scaled(found)

    def _train_labels(self) -> NDArray:
        return self._targets["train"][self._examples["train"].series]

    def _train_digest(self) -> NDArray:
        part = self._examples["train"]
        if self.target == "forecast":
            (starts, lengths), own = _union(part, self.horizon), None
        else:
            starts, lengths, targets = part.starts, part.lengths, part.raw.targets
            assert targets is not None
            own = targets_of(part, targets, per_step=self.target in PER_STEP)
        return digest(lengths, (values for values, _, _ in blocks(part.raw, starts, lengths)), own)

    def _read_targets(self, raw: RawSeries) -> NDArray:
        """Return the targets of all series of a file as numbers: int64 classes, or float64."""
        if self.target == "forecast":
            return np.zeros(0)
        return self._encoded(raw)

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
            torch.from_numpy(as_double(part.raw.inputs[start : start + length][:, self._channels]))
            for start, length in zip(*_union(part, self.horizon), strict=True)
        ]
        return naive_scale(series)

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


def _require_other_series(given: list[RawSeries]) -> None:
    """Refuse a series of one id and the same values in two files: an id alone may be counted anew in each."""
    known: dict[str, tuple[RawSeries, int]] = {}
    for raw in given:
        for series, name in enumerate(raw.names or []):
            other, place = known.setdefault(name, (raw, series))
            if other is not raw and np.array_equal(_steps_of(other, place), _steps_of(raw, series), equal_nan=True):
                raise DataError(f"series {name} is in {other.path} and in {raw.path}: expected each in one split")


def _steps_of(raw: RawSeries, series: int) -> NDArray:
    first = int(raw.first_rows()[series])
    return raw.inputs[first : first + raw.lengths[series]]


def _positions(raw: RawSeries, channels: Sequence[str] | None) -> NDArray:
    if channels is None:
        return np.arange(len(raw.features))
    for name in channels:
        if name not in raw.features:
            raise DataError(f"{raw.path} has no channel {name} to forecast: expected one of {', '.join(raw.features)}")
    return np.array([raw.features.index(name) for name in channels])


def _union(part: Examples, horizon: int) -> tuple[NDArray, NDArray]:
    """Return each series' rows in the stretches of a split and their forecasts: first row and steps of each."""
    _, first, counts = np.unique(part.series, return_index=True, return_counts=True)  # a series' stretches are in a row
    last = first + counts - 1
    starts = part.starts[first]
    return starts, part.starts[last] + part.lengths[last] + horizon - starts
