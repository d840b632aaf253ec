"""A user's task: what is made, what is refused before the run, and in which words."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fptt_dist import Batch, MultiLabelLoss, RegressionLoss, SequenceLoss, Task, TerminalLoss, UniformEstimate
from fptt_dist.algorithm import WindowLoss
from fptt_dist.tasks import Adding, Copying, Split, make_task, rank_slice
from fptt_dist.user_code import UserCodeError, load_class

STEPS, FEATURES, CLASSES, EXAMPLES, BATCH = 6, 2, 3, 20, 4


class Good(Task):
    """Series with one class each, kept whole; a subclass spoils one thing."""

    inputs, outputs, length, train_examples = FEATURES, CLASSES, STEPS, EXAMPLES
    metric, higher_is_better = "accuracy", True

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng(3)
        self.series = torch.from_numpy(rng.standard_normal((STEPS, EXAMPLES + 8, FEATURES), dtype=np.float32))
        self.labels = torch.from_numpy(rng.integers(0, CLASSES, EXAMPLES + 8))
        self.loss: WindowLoss = TerminalLoss(UniformEstimate(CLASSES))

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        order = np.random.default_rng([self.seed, epoch]).permutation(EXAMPLES)
        return self.batch(torch.from_numpy(order[cursor : cursor + size])).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Any]:
        yield self.batch(torch.arange(EXAMPLES, EXAMPLES + 8)[rank_slice(8, rank, world)])

    def score(self, output: Tensor, batch: Batch) -> Any:
        return (output[-1].argmax(-1) == batch.targets).double().sum(), batch.size

    def batch(self, index: Tensor) -> Batch:
        return Batch(self.series[:, index], self.labels[index], index)


class Unequal(Good):
    """The same with series of other lengths, and NaN for padding."""

    lengths_differ = True

    def score(self, output: Tensor, batch: Batch) -> Any:
        assert batch.lengths is not None
        last = output[batch.lengths - 1, torch.arange(batch.size)]
        return (last.argmax(-1) == batch.targets).double().sum(), batch.size

    def batch(self, index: Tensor) -> Batch:
        lengths = 2 + index % (STEPS - 1)
        batch = replace(super().batch(index), lengths=lengths, global_lengths=lengths)
        padding = torch.arange(STEPS).unsqueeze(1) >= lengths
        return replace(batch, inputs=batch.inputs.masked_fill(padding.unsqueeze(-1), torch.nan))


class Tagged(Good):
    """One class per step."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.loss = SequenceLoss()

    def batch(self, index: Tensor) -> Batch:
        steps = torch.arange(STEPS).unsqueeze(1)
        targets = ((self.labels[index] + steps) % CLASSES).masked_fill(steps == 0, -100)
        return Batch(self.series[:, index], targets, per_step_targets=True)


class UnequalTagged(Unequal):
    """One class per step of series of other lengths."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.loss = SequenceLoss()

    def batch(self, index: Tensor) -> Batch:
        return replace(super().batch(index), targets=self.labels[index].expand(STEPS, -1), per_step_targets=True)

    def score(self, output: Tensor, batch: Batch) -> Any:
        right = (output.argmax(-1) == batch.targets) & batch.mask
        return right.double().sum(), int(batch.mask.sum())


def make(kind: type[Task], **options: Any) -> Task:
    return make_task(kind, options, seed=5, length=STEPS, batch_size=BATCH)


def test_good_ones_are_made() -> None:
    for kind in (Good, Unequal, Tagged, UnequalTagged):
        task = make(kind)
        assert type(task) is kind
        assert (task.name, getattr(task, "seed")) == (kind.__name__, 5)  # noqa: B009


def test_the_packages_own_tasks_keep_it() -> None:
    sizes = {"examples": 20, "validation": 3, "test": 3}
    assert make_task(Adding, {**sizes, "length": 9}, seed=1, length=9, batch_size=4).name == "adding"
    assert make_task(Copying, {**sizes, "delay": 3, "symbols": 2}, seed=1, length=7, batch_size=4).name == "copying"


def test_a_batch_of_one_and_an_epoch_smaller_than_a_batch() -> None:
    assert make_task(Good, {}, seed=0, length=STEPS, batch_size=1)
    assert make_task(Good, {}, seed=0, length=STEPS, batch_size=EXAMPLES + 5)


class Spoiled(Good):
    """An attribute, or a tensor of every batch, is other than it should be."""

    def __init__(self, seed: int, attributes: Any = (), tensors: Any = ()) -> None:
        super().__init__(seed)
        self.tensors = dict(tensors)
        for name, value in dict(attributes).items():
            setattr(self, name, value)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        return replace(super().train_batch(epoch, cursor, size, part), **self.tensors)


ATTRIBUTES = [
    ("inputs", 2.0, "Spoiled.inputs is 2.0, not a whole number from 1 on"),
    ("outputs", 0, "Spoiled.outputs is 0, not a whole number"),
    ("train_examples", None, "Spoiled.train_examples is None, not a whole number"),
    ("length", 7, "Spoiled.length is 7, the steps of its longest sequence, and task.length=6: type task.length=7"),
    ("loss", "mse", "Spoiled.loss is 'mse', not a window loss, such as fptt_dist.SequenceLoss()"),
    ("metric", "", "Spoiled.metric is '', not a name of letters, digits and _, such as 'accuracy'"),
    ("higher_is_better", None, "Spoiled.higher_is_better is None, not True or False"),
    ("lengths_differ", 1, "Spoiled.lengths_differ is 1, not True or False"),
    ("vocabulary_size", 0, "Spoiled.vocabulary_size is 0, not the number of symbols"),
    ("vocabulary_size", 5, "gave inputs that are torch.float32 of shape (6, 4, 2), not torch.int64 of shape (6, 4)"),
    ("inputs", 3, "gave inputs that are torch.float32 of shape (6, 4, 2), not torch.float32 of shape (6, 4, 3)"),
    ("outputs", 2, " to 2, not from 0 to 1 (Spoiled.outputs − 1)"),
    ("lengths_differ", True, "gave no lengths, and Spoiled.lengths_differ is True"),
    (
        "loss",
        SequenceLoss(),
        "a target per sequence (per_step_targets=False), and SequenceLoss takes one per step",
    ),
    (
        "loss",
        RegressionLoss(),
        "targets that are torch.int64 of shape (4,), not torch.float32 of shape (4, 3), as",
    ),
    ("loss", MultiLabelLoss(), "as MultiLabelLoss takes them with Spoiled.outputs = 3"),
    ("loss", WindowLoss(), "Spoiled.loss of the targets of Spoiled.train_batch(0, 0, 4, slice(0, 4)) and outputs that"),
]
TENSORS = [
    ("inputs", torch.zeros(4, STEPS, FEATURES), "of shape (4, 6, 2), not torch.float32 of shape (6, 4, 2): steps, seq"),
    ("inputs", torch.full((STEPS, 4, FEATURES), torch.inf), "gave inputs that are not finite: replace NaN and"),
    ("inputs", np.zeros((STEPS, 4, FEATURES)), "gave inputs that are a ndarray, not torch.float32 of shape (6, 4, 2)"),
    ("targets", torch.full((4,), 3), "gave labels from 3 to 3, not from 0 to 2"),
    ("targets", torch.full((4,), -100), "gave labels from -100 to -100, not from 0 to 2"),
    ("targets", torch.zeros(4, dtype=torch.int32), "torch.int32 of shape (4,), not torch.int64 of shape (4,), as"),
    ("targets", torch.zeros(4, 1, dtype=torch.int64), "torch.int64 of shape (4, 1), not torch.int64 of shape (4,), as"),
    ("examples", torch.zeros(4), "gave examples that are torch.float32 of shape (4,), not (B,) int64"),
    ("lengths", torch.full((4,), 2), "gave lengths: set Spoiled.lengths_differ = True"),
]


def refused(kind: type[Task], **options: Any) -> str:
    with pytest.raises(UserCodeError) as caught:
        make(kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_attributes_and_tensors(subtests: pytest.Subtests) -> None:
    for where, cases in (("attributes", ATTRIBUTES), ("tensors", TENSORS)):
        for name, value, said in cases:
            with subtests.test(name=name, said=said):
                assert said in refused(Spoiled, **{where: {name: value}})


class NoSeed(Good):
    def __init__(self) -> None:
        super().__init__(0)


class Fails(Good):
    def __init__(self, seed: int) -> None:
        raise FileNotFoundError("no data.csv")


class Ends(Good):
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        raise SystemExit(0)


class Abstract(Task):
    def __init__(self, seed: int) -> None:
        pass


class Draws(Good):
    """Draws from a global stream."""

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        return self.batch(torch.randint(EXAMPLES, (size,))).select(part)


class Streams(Good):
    """Gives what comes next, as a data loader does."""

    position = 0

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        self.position = (self.position + size) % EXAMPLES
        return self.batch((torch.arange(size) + self.position) % EXAMPLES).select(part)


class IgnoresPart(Good):
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        return super().train_batch(epoch, cursor, size, slice(0, part.stop - part.start))


class GivesAll(Good):
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        return super().train_batch(epoch, cursor, size, slice(None))


class Pair(Good):
    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        batch = super().train_batch(epoch, cursor, size, part)
        return batch.inputs, batch.targets


class ShortEpoch(Good):
    """Has fewer examples than it says."""

    train_examples = 3 * EXAMPLES


class OwnLengths(Unequal):
    """Knows the lengths of its slice alone."""

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        batch = super().train_batch(epoch, cursor, size, part)
        return replace(batch, global_lengths=batch.lengths)


class OwnPadding(Unequal):
    """Pads each slice to its own longest sequence."""

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Any:
        batch = super().train_batch(epoch, cursor, size, part)
        assert batch.lengths is not None
        return replace(batch, inputs=batch.inputs[: int(batch.lengths.max())])


class TooLong(Unequal):
    def batch(self, index: Tensor) -> Batch:
        batch = super().batch(index)
        return replace(batch, lengths=batch.lengths + STEPS if batch.lengths is not None else None)


class NoTest(Good):
    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Any]:
        if split != "test":
            yield from super().evaluation_batches(split, rank, world)


class ScoresAlone(Good):
    def score(self, output: Tensor, batch: Batch) -> Any:
        return super().score(output, batch)[0]


class ScoresEach(Good):
    def score(self, output: Tensor, batch: Batch) -> Any:
        return (output[-1].argmax(-1) == batch.targets).double(), batch.size


class ScoresInPython(Good):
    def score(self, output: Tensor, batch: Batch) -> Any:
        return float(super().score(output, batch)[0]), batch.size


class ScoresNothing(Good):
    def score(self, output: Tensor, batch: Batch) -> Any:
        return super().score(output, batch)[0], 0


class ScoresTheLastStep(Unequal):
    """Reads the outputs where the batch ends, not the sequence."""

    def score(self, output: Tensor, batch: Batch) -> Any:
        return (output[-1].argmax(-1) == batch.targets).double().sum(), batch.size


class CountsPadding(UnequalTagged):
    """Takes padding for the class 0, which is what stands there."""

    def score(self, output: Tensor, batch: Batch) -> Any:
        return (output.argmax(-1) == batch.targets).double().sum(), batch.targets.numel()


class NoValue(Good):
    def value(self, mean: float) -> float:
        raise ZeroDivisionError("of nothing")


HERE = Path(__file__).name
FIRST = r"\.train_batch\(0, 0, 4, slice\(0, 4\)\)"
REFUSED: list[tuple[type[Task], str]] = [
    (NoSeed, r"^NoSeed\(seed=5\) failed: TypeError: .*unexpected keyword argument 'seed'"),
    (Fails, rf"^Fails\(seed=5\) failed: FileNotFoundError: no data.csv \({HERE}, line \d+\)"),
    (Ends, rf"^Ends{FIRST} failed: SystemExit: 0 \({HERE}, line \d+\)"),
    (Abstract, r"^Abstract\(seed=5\) failed: TypeError: Can't instantiate abstract class .*train_batch"),
    (Draws, rf"^Draws{FIRST} gave other inputs the second time: it must be a pure function of its arguments"),
    (Streams, rf"^Streams{FIRST} gave other inputs the second time"),
    (IgnoresPart, rf"^IgnoresPart{FIRST} gave other inputs than slice\(0, 2\) and slice\(2, 4\) together"),
    (
        GivesAll,
        r"^GivesAll.*slice\(0, 2\)\) gave inputs that are .* of shape \(6, 4, 2\), not .* \(6, 2, 2\)",
    ),
    (Pair, rf"^Pair{FIRST} gave a tuple, not a fptt_dist.Batch"),
    (ShortEpoch, r"^ShortEpoch\.train_batch\(0, 56, 4, slice\(0, 4\)\) gave inputs that are .* of shape \(6, 0, 2\)"),
    (OwnLengths, r"^OwnLengths.*slice\(0, 2\)\) gave no global_lengths of shape \(4,\)"),
    (OwnPadding, rf"^OwnPadding{FIRST} gave other numbers of steps .* than slice\(0, 2\) and slice\(2, 4\)"),
    (TooLong, rf"^TooLong{FIRST} gave lengths from \d+ to \d+, not from 1 to the 6 steps of its inputs"),
    (NoTest, r'^NoTest\.evaluation_batches\("test", 0, 1\) gave no batch: the test set must have at least one'),
    (
        ScoresAlone,
        r"score\(output, batch\) with outputs of shape \(1, 8, 3\) that are all 0 gave a Tensor, not the pair",
    ),
    (ScoresEach, r"gave a sum that is torch.float64 of shape \(8,\), not a tensor of shape \(\)"),
    (ScoresInPython, r"gave a sum that is a float, not a tensor of shape \(\)"),
    (ScoresNothing, r"gave 0 items, not a whole number from 1 on"),
    (
        ScoresTheLastStep,
        r"score\(output, batch\) depends on the padding: the sum is \d of 8 items, .* \d of 8: count",
    ),
    (
        CountsPadding,
        r"depends on the padding: the sum is \d+ of 48 items, .* \d+ of 72: count the steps of batch",
    ),
    (NoValue, rf"^NoValue\.value\(0\.\d+\) failed: ZeroDivisionError: of nothing \({HERE}, line \d+\)"),
]


def test_what_breaks_the_protocol_is_said(subtests: pytest.Subtests) -> None:
    for kind, said in REFUSED:
        with subtests.test(kind=kind):
            assert re.search(said, refused(kind))


def test_a_file_without_a_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from fptt_dist import Task\nclass Mine(Task): pass\nclass Other: pass\n")
    assert issubclass(load_class(file, "Mine", Task), Task)
    with pytest.raises(UserCodeError, match=r"has no Nobody; its classes derived from fptt_dist\.Task: Mine$"):
        load_class(file, "Nobody", Task)
    with pytest.raises(UserCodeError, match=r"Other of .*mine\.py is no class derived from fptt_dist\.Task$"):
        load_class(file, "Other", Task)
