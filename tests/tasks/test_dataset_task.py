"""A task on a user's Dataset: its batches beside plain loops over the items, and what is refused in which words."""

import pickle
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from fptt_dist.tasks import DataError, DatasetTask
from fptt_dist.tasks.metrics import Targets

LONGEST, CHANNELS = 9, 2
SIZES = {"train": 40, "validation": 11, "test": 7}
LABELS = ["no", "perhaps", "yes"]


class Items(Dataset[Any]):
    """Series of different lengths, the same whenever they are made."""

    def __init__(self, split: str, target: Targets = "class", size: int | None = None) -> None:
        self.target = target
        size = size or SIZES[split]
        generator = np.random.default_rng([size, len(split)])
        lengths = generator.integers(1, LONGEST + 1, size)
        self.series = [generator.normal(size=(steps, CHANNELS)) for steps in lengths]
        self.numbers = [generator.normal(size=(steps, 3)) for steps in lengths]

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> Any:
        return self.series[index], self.right(index)

    def right(self, index: int) -> Any:
        steps = len(self.series[index])
        return {
            "class": LABELS[index % 3],
            "labels": torch.tensor([index % 2, index % 3 % 2]),
            "value": self.numbers[index][0],
            "step_class": [(index + step) % 3 * 10 for step in range(steps)],
            "step_value": self.numbers[index][:, 0].tolist(),
        }[self.target]


class Augmented(Items):
    """Noise from three global streams."""

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(CHANNELS).numpy() + np.random.rand() + random.random()  # noqa: NPY002
        return {"inputs": self.series[index] + noise, "targets": self.right(index), "weight": None}


def task_of(make: Callable[..., Any] = Items, target: Targets = "class", **more: Any) -> DatasetTask:
    settings = {"options": {"target": target}, "length": LONGEST, "seed": 3, **more}
    return DatasetTask(make, name=getattr(make, "__name__", "rows"), file=Path("own.py"), target=target, **settings)


@pytest.mark.parametrize("target", ["class", "labels", "value", "step_class", "step_value"])
def test_a_batch_is_what_plain_loops_give(target: Targets) -> None:
    task, items = task_of(target=target), Items("train", target)
    outputs = {"class": 3, "labels": 2, "value": 3, "step_class": 3, "step_value": 1}
    assert (task.name, task.inputs, task.outputs, task.train_examples) == ("Items", CHANNELS, outputs[target], 40)
    batch = task.train_batch(1, 8, 8, slice(2, 6))
    assert batch.examples is not None
    assert batch.lengths is not None
    assert batch.global_lengths is not None
    assert len(batch.inputs) == batch.global_lengths.max()
    for b, index in enumerate(batch.examples.tolist()):
        series, right = items.series[index], items.right(index)
        steps = len(series)
        assert batch.lengths[b] == steps
        assert np.array_equal(batch.inputs[:steps, b].numpy(), series.astype(np.float32))
        found = (batch.targets[:steps, b] if target.startswith("step") else batch.targets[b]).numpy()
        match target:
            case "class":
                assert task.classes[int(found)] == right
            case "step_class":
                assert [int(task.classes[each]) for each in found] == right
            case _:
                assert np.array_equal(found, np.asarray(right).reshape(found.shape).astype(np.float32))
    (held_out,) = task.evaluation_batches("test", 0, 1)
    assert held_out.examples is not None
    assert sorted(held_out.examples.tolist()) == list(range(SIZES["test"]))
    assert task.input_description()["target"] == target


def test_what_an_item_may_be() -> None:
    rows: list[Any] = [
        ([1, 2, 3], 0),
        [torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0)],
        (torch.tensor([1, 2, 3], dtype=torch.bfloat16), np.int8(0)),
        {"inputs": [[1], [2], [3]], "targets": [0.0], "id": "x"},
        (np.array([1, 2, 3], np.uint8), np.array([1])),
    ]
    task = task_of(lambda split: rows, options={}, length=3)
    assert not task.lengths_differ
    for batch in task.evaluation_batches("test", 0, 1):
        assert batch.inputs.dtype == torch.float32
        assert torch.equal(batch.inputs, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 5, 1))
        assert batch.targets.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("shards", ["shuffled", "fixed", "by_label"])
def test_workers_see_the_global_batch_in_slices(shards: Any) -> None:
    tasks = [task_of(Augmented) for _ in range(2)]
    for rank, task in enumerate(tasks):
        task.set_partition(shards, rank, 2)
    seen = []
    for cursor in range(0, 40, 8):
        halves = [task.train_batch(1, cursor, 8, slice(4 * rank, 4 * rank + 4)) for rank, task in enumerate(tasks)]
        both = torch.cat([half.lengths for half in halves if half.lengths is not None])
        for half in halves:
            assert half.examples is not None
            assert half.global_lengths is not None
            assert torch.equal(half.global_lengths, both)
            seen += half.examples.tolist()
        if shards == "shuffled":
            whole = tasks[0].train_batch(1, cursor, 8, slice(0, 8))
            assert torch.equal(torch.cat([half.inputs for half in halves], 1), whole.inputs)
    assert sorted(seen) == list(range(40))


def test_augmentation_depends_on_seed_epoch_and_item_alone() -> None:
    task = task_of(Augmented)
    batch = task.train_batch(1, 0, 8, slice(0, 8))
    state = torch.get_rng_state(), random.getstate()
    elsewhere = pickle.loads(pickle.dumps(task))  # as a data worker gets it
    assert set(elsewhere._sets) == {"train"}
    elsewhere.train_batch(0, 8, 8, slice(0, 8))
    assert torch.equal(elsewhere.train_batch(1, 0, 8, slice(0, 8)).inputs, batch.inputs)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()

    def noise(task: DatasetTask, epoch: int) -> float:
        items = Items("train").series
        batches = [task.train_batch(epoch, cursor, 1, slice(0, 1)) for cursor in range(40)]
        return next(float(each.inputs[0, 0, 0]) - items[0][0, 0] for each in batches if each.examples == 0)

    assert len({noise(task, 0), noise(task, 1), noise(task_of(Augmented, seed=4), 0)}) == 3
    first, again = (list(task.evaluation_batches("test", 0, 1)) for _ in range(2))
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(first, again, strict=True))


class Changed(Items):
    """Another target in the last item."""

    def right(self, index: int) -> Any:
        return "perhaps" if index == len(self) - 1 else super().right(index)


def test_a_checkpoint_of_other_training_items_is_refused() -> None:
    task = task_of()
    assert task.validate_state(task_of(Augmented, seed=8).state_dict()) is None, "lengths and targets are the same"
    for other in (task_of(Changed), task_of(lambda split, target: Items(split, target, SIZES[split] + 1))):
        with pytest.raises(
            DataError, match=r"^the run was trained on other examples than those that own\.py:Items has"
        ):
            task.validate_state(other.state_dict())


def test_metrics_are_chosen() -> None:
    task = task_of(target="value", metrics=["mae", "rmse"], monitor="rmse")
    assert (task.metric, task.higher_is_better) == ("rmse", False)
    assert task.metrics is not None
    found = task.metrics.make()["mae"]
    (batch,) = task.evaluation_batches("validation", 0, 1)
    found.update(*task.predictions(torch.zeros(len(batch.inputs), batch.size, 3), batch))
    assert float(found.compute()) == pytest.approx(float(batch.targets.abs().mean()), rel=1e-5)


class Broken(Items):
    """One item is another one."""

    def __init__(self, split: str, place: tuple[str, int], item: Any, target: Targets) -> None:
        super().__init__(split, target)
        self.index, self.item = place[1] if split == place[0] else -1, item

    def __getitem__(self, index: int) -> Any:
        return self.item if index == self.index else super().__getitem__(index)


X = [[0.0, 1.0]]
ITEMS: list[tuple[Targets, tuple[str, int], Any, str]] = [
    ("class", ("test", 3), ([[[0] * 4] * 3] * 2, "no"), r"inputs has the shape (2, 3, 4): expected (T, C) or (T,)"),
    ("class", ("test", 0), (np.zeros((0, 2)), "no"), r"inputs has the shape (0, 2): expected (T, C) or (T,), at least"),
    ("class", ("train", 5), ([[0, np.nan]], "no"), "inputs is nan at step 0, channel 1: expected a finite number"),
    ("class", ("train", 5), ([[1e39, 0]], "no"), "inputs is inf at step 0, channel 0: expected a finite number"),
    ("class", ("train", 5), ([[0, None]], "no"), "inputs holds object: expected numbers"),
    ("class", ("train", 5), ([["a", "b"]], "no"), "inputs is text: expected numbers"),
    ("class", ("train", 5), ([[0, 1], [2]], "no"), "inputs cannot be made an array: setting an array element"),
    (
        "class",
        ("train", 5),
        ([[0, 1, 2]], "no"),
        "has 3 channels, text as target: expected those of the first",
    ),
    ("class", ("train", 5), (X, 1), "has 2 channels: expected those of the first training item, 2 channels, text"),
    ("class", ("test", 3), (X, "maybe"), "has the class maybe, which no training example has: expected one of no, per"),
    ("class", ("test", 3), (X, ["no", "yes"]), "targets has the shape (2,): expected one class with task.target=class"),
    ("class", ("test", 3), (X, 0.5), "targets has the class 0.5: expected whole numbers or text, or task.target=value"),
    ("class", ("test", 3), (X, None), "targets holds object: expected numbers or text"),
    (
        "class",
        ("train", 5),
        X,
        "has 1 parts: expected (inputs, targets), or a mapping with the keys",
    ),
    ("class", ("train", 5), None, "is a NoneType: expected (inputs, targets), or a mapping"),
    ("class", ("train", 5), {"x": X, "y": 0}, "has the keys x, y: expected (inputs, targets), or a mapping with"),
    (
        "class",
        ("validation", 1),
        ([[0, 0]] * 12, "no"),
        "has 12 steps, more than task.length=9: type task.length=",
    ),
    ("labels", ("validation", 1), (X, [0, 2]), "has the target 2: expected 0 or 1"),
    (
        "labels",
        ("validation", 1),
        (X, [0, 1, 1]),
        "has 2 channels, 3 targets: expected those of the first",
    ),
    ("value", ("train", 39), (X, [0.0, 1.0, np.inf]), "has the target inf: expected a finite number"),
    ("value", ("train", 39), (X, "no"), "targets is text: expected numbers with task.target=value"),
    (
        "step_class",
        ("train", 39),
        (X, [0, 10]),
        "targets has the shape (2,): expected one class for each of the 1",
    ),
    ("step_class", ("test", 3), (X, [5]), ", step 0 has the class 5, which no training example has: expected one of 0"),
    (
        "step_value",
        ("test", 3),
        (X, 1.0),
        "targets has the shape (): expected a number, or D of them, for each of",
    ),
]


def refused(make: Callable[..., Any], target: Targets = "class", **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        task_of(make, target, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_items_that_cannot_be_learned(subtests: pytest.Subtests) -> None:
    for target, place, item, said in ITEMS:
        with subtests.test(target=target, said=said):
            options = {"place": place, "item": item, "target": target}
            message = refused(Broken, target, options=options)
            assert message.startswith(f"own.py: Broken(split='{place[0]}', ")
            assert f")[{place[1]}]" in message
            assert said in message


class Fails(Items):
    def __getitem__(self, index: int) -> Any:
        raise FileNotFoundError(f"no {index}.wav")


class Ends(Items):
    def __init__(self, split: str, target: Targets) -> None:
        raise SystemExit(0)


class Counts(Items):
    def __len__(self) -> int:
        raise AttributeError("rows")


class Streams(IterableDataset[Any]):
    def __init__(self, split: str, target: Targets) -> None:
        self.rows = [1]

    def __iter__(self) -> Iterator[int]:
        yield from self.rows


class OwnGenerator(Items):
    """Draws from a generator of its own, which nobody seeds."""

    def __getitem__(self, index: int) -> Any:
        series, right = super().__getitem__(index)
        return series + np.random.default_rng().normal(), right


class Cropped(Items):
    """Random crops."""

    def __getitem__(self, index: int) -> Any:
        series, right = super().__getitem__(index)
        return series[: int(torch.randint(1, len(series) + 1, ()))], right


def rows_of(split: str, target: Targets) -> dict[str, Sequence[Any]]:
    return {"train": [1], "test": [2]}


HERE = Path(__file__).name
DATASETS: list[tuple[Callable[..., Any], str]] = [
    (
        Fails,
        rf"^own\.py: Fails\(split='train', target='class'\)\[0\] failed: FileNotFoundError: no 0\.wav \({HERE}",
    ),
    (Ends, rf"^own\.py: Ends\(split='train', target='class'\) failed: SystemExit: 0 \({HERE}, line \d+\)$"),
    (Counts, rf"^len of own\.py: Counts\(split='train', .*\) failed: AttributeError: rows \({HERE}, line \d+\)$"),
    (Streams, r"Streams\(.*\) gave a Streams: expected an object with __len__ and __getitem__, such as a torch\.utils"),
    (rows_of, r"rows_of\(.*\) gave a dict with the keys train, test: return one of them, that of the split$"),
    (lambda split, target: [], r"has no items: expected at least one$"),
    (lambda split: Items(split), r"failed: TypeError: .* got an unexpected keyword argument 'target'"),
    (lambda split, target: [(X, "no")], r"^own\.py: all training examples are of the class no: expected at least two$"),
    (
        OwnGenerator,
        r"\[0\] was another one when it was read a second time: draw random numbers by torch\.rand, ",
    ),
    (
        Cropped,
        r"Cropped\(split='train', .*\)\[\d+\] has \d steps, and had \d when all were read at the start: ",
    ),
]


def test_datasets_that_cannot_be_trained(subtests: pytest.Subtests) -> None:
    for make, said in DATASETS:
        with subtests.test(said=said):
            assert re.search(said, refused(make))


def test_a_mistake_in_the_middle_of_a_run_names_the_item() -> None:
    task = task_of()
    broken = task._sets["train"]
    broken.series[7] = broken.series[7] * np.nan
    broken.series[20] = np.zeros((LONGEST + 1, CHANNELS))
    messages = []
    for cursor in range(40):
        try:
            task.train_batch(2, cursor, 1, slice(0, 1))
        except DataError as error:
            messages.append(str(error))
    place = "own.py: Items(split='train', target='class')"
    assert sorted(messages) == [
        f"{place}[20] has 10 steps, and had {task._lengths['train'][20]} when all were read at the start: random "
        "augmentation must keep the number of steps",
        f"{place}[7]: inputs is nan at step 0, channel 0: expected a finite number",
    ]
