"""A task on a user's Dataset: an object with a length and items, each a series with its target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.scaling import Scaling, as_float, digest
from fptt_dist.tasks.data.series import PARTS, RawSeries
from fptt_dist.tasks.data.splits import Examples
from fptt_dist.tasks.data.targets import Classes
from fptt_dist.tasks.metrics import Targets, TaskMetrics
from fptt_dist.tasks.random_streams import seeded
from fptt_dist.tasks.series_task import CLASSES, PER_STEP, SeriesTask, require_length
from fptt_dist.user_code import said

CHUNK = 256  # items whose inputs are in memory together while all are read
AGAIN = 32  # items of each split that are read a second time
EXPECTED: dict[Targets, str] = {
    "class": "one class",
    "labels": "L labels, each 0 or 1",
    "value": "a number, or D of them",
    "step_class": "one class for each of the {steps} steps",
    "step_value": "a number, or D of them, for each of the {steps} steps",
}


@dataclass(frozen=True)
class _Items(RawSeries):
    """Items of one split, one after another; inputs (R, 0) where only lengths and targets are kept.

    Attributes:
        call: that made the Dataset.
        ids: (N,) index of each item; None: their position.
    """

    call: str = ""
    ids: NDArray | None = None

    def name_of(self, series: int) -> str:
        """Return the item as one types it."""
        return f"{self.call}[{series if self.ids is None else self.ids[series]}]"


class DatasetTask(SeriesTask):
    """Items of a user's Dataset, each (inputs, targets) or a mapping with these two keys.

    Inputs are (T, C) or (T,) numbers, and come as they are: nothing is standardized. All items are read once at the
    start, for their lengths, classes and mistakes; while training, each is read anew with the random streams of
    `seeded(seed, epoch, index)`, so that random augmentation depends on neither the process nor the past.

    Args:
        make: called with `split` ("train", "validation", "test") and the options; returns an object with `__len__` and
            `__getitem__`.
        name: of `make` in its file.
        options: keyword arguments.
        file: that defines `make`, for messages.
        target: kind of the targets; see `Arrays`, without "forecast".
        length: T, steps of the longest series.
        metrics: see `TaskMetrics`.
        monitor: see `TaskMetrics`.
        seed: of the order of the examples, and of what their code draws.

    Raises:
        DataError: the file, the split and the item, what was expected and what was found.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        options: Mapping[str, Any],
        *,
        name: str,
        file: Path,
        target: Targets,
        length: int,
        metrics: Sequence[str] = (),
        monitor: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target=target, length=length, bucketing=True, seed=seed)
        self.name, self.source = name, f"{file}:{name}"
        self._file = file
        self._first: tuple[int, tuple[int, ...], bool] | None = None
        self._calls = {
            split: f"{name}({', '.join(f'{key}={value!r}' for key, value in {'split': split, **options}.items())})"
            for split in PARTS
        }
        self._sets = {split: self._made(split, lambda split=split: make(split=split, **options)) for split in PARTS}
        found = {split: self._read_all(split) for split in PARTS}
        require_length(list(found.values()), length)
        examples = {split: _whole(raw) for split, raw in found.items()}
        self._classes = Classes(examples["train"], per_step=target in PER_STEP) if target in CLASSES else None
        targets = {split: self._encoded(raw) for split, raw in found.items()}
        self._labels = targets["train"] if target == "class" else None
        self.digest = digest(found["train"].lengths, (), found["train"].targets)
        self._set_lengths({split: raw.lengths for split, raw in found.items()})
        assert self._first is not None
        self.inputs = self._first[0]
        self.outputs = len(self.classes) if target in CLASSES else targets["train"].shape[1]
        self._scale = Scaling.none(self.outputs)
        self.loss = self._loss()
        self.measure_by(TaskMetrics(target, metrics, monitor, self.outputs))
        for split in PARTS:
            self._require_reproducible(split)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a data worker process gets: the training set alone."""
        return {**super().__getstate__(), "_sets": {"train": self._sets["train"]}}

    def _read(self, split: str, epoch: int, ids: NDArray, steps: NDArray, which: NDArray) -> tuple[NDArray, NDArray]:
        raw = self._same_lengths(split, epoch, ids)
        return raw.inputs, self._encoded(raw)

    def _same_lengths(self, split: str, epoch: int, ids: NDArray) -> RawSeries:
        """Read items, and refuse those with other numbers of steps than at the start."""
        raw = self._items(split, epoch, ids)
        before = self._lengths[split][ids]
        other = np.nonzero(raw.lengths != before)[0]
        if len(other):
            item = int(other[0])
            raise DataError(
                f"{raw.path}: {raw.name_of(item)} has {raw.lengths[item]} steps, and had {before[item]} when all were "
                "read at the start: random augmentation must keep the number of steps"
            )
        return raw

    def _train_labels(self) -> NDArray:
        assert self._labels is not None
        return self._labels

    def _made(self, split: str, make: Callable[[], Any]) -> Any:
        """Return the Dataset of a split."""
        place = f"{self._file}: {self._calls[split]}"
        try:
            found = make()
        except (Exception, SystemExit) as error:
            raise DataError(f"{place} failed: {said(error)}") from error
        kind = type(found)
        if isinstance(found, Mapping):
            raise DataError(
                f"{place} gave a {kind.__name__} with the keys {', '.join(map(str, found))}: return one of them, that "
                "of the split"
            )
        if not hasattr(kind, "__len__") or not hasattr(kind, "__getitem__"):
            raise DataError(
                f"{place} gave a {kind.__name__}: expected an object with __len__ and __getitem__, such as a "
                "torch.utils.data.Dataset"
            )
        return found

    def _read_all(self, split: str) -> RawSeries:
        """Return lengths and targets of all items of a split."""
        place = f"{self._file}: {self._calls[split]}"
        try:
            count = len(self._sets[split])
        except (Exception, SystemExit) as error:
            raise DataError(f"len of {place} failed: {said(error)}") from error
        if count == 0:
            raise DataError(f"{place} has no items: expected at least one")
        lengths, targets = [], []
        for start in range(0, count, CHUNK):
            raw = self._items(split, 0, np.arange(start, min(start + CHUNK, count)))
            lengths.append(raw.lengths)
            targets.append(raw.targets)
        steps = np.concatenate(lengths)
        rows = np.empty((steps.sum(), 0), np.float32)
        return _Items(self._file, rows, steps, np.concatenate(targets), [], call=self._calls[split])

    def _require_reproducible(self, split: str) -> None:
        """Refuse items that are others when they are read again, and those with other lengths in another epoch."""
        ids = np.arange(min(AGAIN, len(self._lengths[split])))
        for index in ids[:, None]:
            one, other = (self._items(split, 0, index) for _ in range(2))
            assert one.targets is not None
            assert other.targets is not None
            if not (np.array_equal(one.inputs, other.inputs) and np.array_equal(one.targets, other.targets)):
                raise DataError(
                    f"{one.path}: {one.name_of(0)} was another one when it was read a second time: draw random numbers "
                    "by torch.rand, numpy.random.rand, random.random and the like, which are seeded before each item, "
                    "not from a generator of its own, so that a run can be resumed"
                )
            if split == "train":
                self._same_lengths(split, 1, index)

    def _items(self, split: str, epoch: int, ids: NDArray) -> _Items:
        """Read items, with what they draw seeded by the run's seed, the epoch and their index."""
        read = [self._item(split, epoch, int(index)) for index in ids]
        inputs, targets = ([each[part] for each in read] for part in range(2))
        return _Items(
            self._file,
            np.concatenate(inputs),
            np.array([len(each) for each in inputs]),
            np.concatenate(targets) if self.target in PER_STEP else np.stack(targets),
            [],
            call=self._calls[split],
            ids=ids,
        )

    def _item(self, split: str, epoch: int, index: int) -> tuple[NDArray, NDArray]:
        """Return the inputs (T, C) float32 and the target of an item: class (), numbers (D,), or (T, …) of these."""
        place = f"{self._file}: {self._calls[split]}[{index}]"
        try:
            with seeded(self.seed, epoch, index):
                item = self._sets[split][index]
        except (Exception, SystemExit) as error:
            raise DataError(f"{place} failed: {said(error)}") from error
        inputs, targets = _pair(item, place)
        inputs = _inputs(inputs, place)
        targets = self._target(targets, len(inputs), place)
        shape = targets.shape[1:] if self.target in PER_STEP else targets.shape
        mine = inputs.shape[1], shape, targets.dtype.kind == "U"
        self._first = self._first or mine
        if mine != self._first:
            raise DataError(
                f"{place} has {_kind(*mine)}: expected those of the first training item, {_kind(*self._first)}"
            )
        return inputs, targets

    def _target(self, value: Any, steps: int, place: str) -> NDArray:
        found = _array(value, place, "targets")
        shape = found.shape
        is_class, per_step = self.target in CLASSES, self.target in PER_STEP
        axes = 1 + per_step  # at most, with that of the numbers
        if is_class and found.ndim == axes and found.shape[-1] == 1:
            found = found[..., 0]
        expected = axes - 1 if is_class else axes
        if not is_class and found.ndim == axes - 1:
            found = found[..., None]
        if found.ndim != expected or (per_step and len(found) != steps) or found.size == 0:
            wanted = EXPECTED[self.target].format(steps=steps)
            raise DataError(f"{place}: targets has the shape {shape}: expected {wanted} with task.target={self.target}")
        if found.dtype.kind == "U" and not is_class:
            raise DataError(f"{place}: targets is text: expected numbers with task.target={self.target}")
        if is_class and found.dtype.kind == "f":
            broken = ~np.isfinite(found) | (found != np.floor(found))
            if broken.any():
                raise DataError(
                    f"{place}: targets has the class {found[broken].flat[0]:g}: expected whole "
                    f"numbers or text, or task.target={self.target.replace('class', 'value')} for numbers"
                )
            return found.astype(np.int64)
        return found


def _whole(raw: RawSeries) -> Examples:
    """Return each item as an example."""
    return Examples(raw, np.arange(len(raw.lengths)), raw.first_rows(), raw.lengths)


def _pair(item: Any, place: str) -> tuple[Any, Any]:
    """Return inputs and targets of an item."""
    expected = "expected (inputs, targets), or a mapping with the keys inputs and targets"
    if isinstance(item, Mapping):
        if not {"inputs", "targets"} <= item.keys():
            raise DataError(f"{place} has the keys {', '.join(map(str, item))}: {expected}")
        return item["inputs"], item["targets"]
    if not isinstance(item, tuple | list):
        raise DataError(f"{place} is a {type(item).__name__}: {expected}")
    if len(item) != 2:
        raise DataError(f"{place} has {len(item)} parts: {expected}")
    return item[0], item[1]


def _inputs(value: Any, place: str) -> NDArray:
    """Return inputs as (T, C) float32."""
    found = _array(value, place, "inputs")
    if found.dtype.kind == "U":
        raise DataError(f"{place}: inputs is text: expected numbers")
    if found.ndim not in (1, 2) or found.size == 0:
        raise DataError(
            f"{place}: inputs has the shape {found.shape}: expected (T, C) or (T,), at least one step and channel"
        )
    found = as_float(found.reshape(len(found), -1))
    if not np.isfinite(found).all():
        step, channel = np.argwhere(~np.isfinite(found))[0]
        raise DataError(
            f"{place}: inputs is {found[step, channel]:g} at step {step}, channel {channel}: expected a finite number"
        )
    return found


def _array(value: Any, place: str, what: str) -> NDArray:
    """Return numbers or text of any kind as an array."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{place}: {what} cannot be made an array: {' '.join(str(error).split())}") from error
    if found.dtype.kind not in "fiubU":
        raise DataError(f"{place}: {what} holds {found.dtype}: expected numbers{' or text' * (what == 'targets')}")
    return found


def _kind(channels: int, shape: tuple[int, ...], is_text: bool) -> str:
    """Return channels and targets of an item in words."""
    numbers = f", {shape[0]} targets" if shape else ""
    return f"{channels} channels{numbers}{', text as target' if is_text else ''}"
