"""Partition of the training examples over the workers: shuffled, partitioned once for ever, or by label."""

import struct
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.tasks import Adding, Batch, Copying, Pixels, Task, rank_slice
from fptt_dist.tasks.partition import Partition, Shards

TRAIN, HELD_OUT = 40, 8
EXAMPLES = TRAIN - HELD_OUT
PARTITIONED: list[Shards] = ["fixed", "by_label"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each digit, each with a first pixel of its own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    images = np.zeros((TRAIN, 28, 28), dtype=np.uint8)
    images[:, 0, 0] = np.arange(TRAIN)
    labels = (np.arange(TRAIN) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
            (folder / "mnist" / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


class Makers:
    """The tasks that can be partitioned, all of them small."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, **options: Any) -> Task:
        match name:
            case "adding":
                return Adding(length=6, **{"examples": EXAMPLES, **options})
            case "copying":
                return Copying(delay=2, symbols=8, **{"examples": EXAMPLES, **options})
            case _:
                return Pixels(root=self.root, validation=HELD_OUT, pixels_per_step=784, **options)


@pytest.fixture(scope="module")
def make(root: Path) -> Makers:
    return Makers(root)


def ids(batch: Batch) -> list[int]:
    assert batch.examples is not None
    return batch.examples.tolist()


def own(task: Task, rank: int, world: int, epoch: int = 0, size: int | None = None) -> list[Batch]:
    """This worker's batches of an epoch; the last one may be smaller than `size` (None: one batch)."""
    total = task.train_examples
    size = total if size is None else size
    sizes = [min(size, total - cursor) for cursor in range(0, total, size)]
    return [task.train_batch(epoch, index * size, n, rank_slice(n, rank, world)) for index, n in enumerate(sizes)]


def partitioned(make: Makers, name: str, shards: Shards, rank: int, world: int, **options: Any) -> Task:
    task = make(name, **options)
    task.set_partition(shards, rank, world)
    return task


def shown(batch: Batch) -> dict[int, tuple[bytes, bytes]]:
    """The sequences, by id."""
    targets = batch.targets.T if batch.per_step_targets else batch.targets
    pairs = zip(batch.inputs.unbind(1), targets.unbind(0), strict=True)
    return {i: (x.numpy().tobytes(), y.numpy().tobytes()) for i, (x, y) in zip(ids(batch), pairs, strict=True)}


WAYS: list[tuple[str, Shards]] = [
    ("adding", "fixed"),
    ("copying", "fixed"),
    ("pixels", "fixed"),
    ("pixels", "by_label"),
]
by_way = pytest.mark.parametrize(("name", "shards"), WAYS)


@given(
    examples=st.integers(1, 200),
    world=st.integers(1, 9),
    own_size=st.integers(1, 30),
    seed=st.integers(0, 2**63 - 1),
    epochs=st.lists(st.integers(0, 50), min_size=2, max_size=3, unique=True),
    by_label=st.booleans(),
)
def test_every_dealt_example_is_shown_once_an_epoch_by_one_worker(
    examples: int, world: int, own_size: int, seed: int, epochs: list[int], by_label: bool
) -> None:
    if examples < world:
        with pytest.raises(ValueError, match=f"^{examples} training examples are too few for {world} workers$"):
            Partition(examples, 0, world, seed=seed)
        return
    labels = torch.arange(examples) * 7 % 5 if by_label else None
    shards = [Partition(examples, rank, world, seed=seed, labels=labels) for rank in range(world)]
    assert {shard.num_examples for shard in shards} == {examples // world * world}
    total, size = shards[0].num_examples, own_size * world
    seen: list[list[list[int]]] = []
    for epoch in epochs:
        seen.append([[] for _ in shards])
        for cursor in range(0, total, size):
            n = min(size, total - cursor)
            parts = [shard.batch(epoch, cursor, n, rank_slice(n, rank, world)) for rank, shard in enumerate(shards)]
            assert [len(part) for part in parts] == [n // world] * world
            for shown_by, part in zip(seen[-1], parts, strict=True):
                shown_by += part.tolist()
        everything = [example for shown_by in seen[-1] for example in shown_by]
        assert len(set(everything)) == len(everything) == total
        assert set(everything) <= set(range(examples))
    assert all([set(s) for s in other] == [set(s) for s in seen[0]] for other in seen)
    if labels is not None:
        ranges = [labels[torch.tensor(shown_by)] for shown_by in seen[0]]
        assert all(one.max() <= other.min() for one, other in pairwise(ranges))


@given(
    world=st.integers(2, 6),
    batches=st.integers(1, 4),
    own_size=st.integers(1, 5),
    wrong=st.integers(1, 5),
    data=st.data(),
)
def test_what_the_workers_cannot_share_equally_is_refused(
    world: int, batches: int, own_size: int, wrong: int, data: st.DataObject
) -> None:
    size, wrong = own_size * world, min(wrong, world - 1)
    rank = data.draw(st.integers(0, world - 1))
    shard = Partition(batches * size, rank, world, seed=0)
    assert len(shard.batch(0, 0, size, rank_slice(size, rank, world))) == own_size
    message = f"the batch size must be a multiple of {world}$"
    for cursor, asked, part in (
        (0, size + wrong, rank_slice(size + wrong, rank, world)),
        (wrong, size, rank_slice(size, rank, world)),
        (0, size, slice(0, own_size + wrong)),
        (0, size, slice(0, size)),
    ):
        with pytest.raises(ValueError, match=message):
            shard.batch(0, cursor, asked, part)
    with pytest.raises(ValueError, match=f"beyond the {batches * size} examples of an epoch$"):
        shard.batch(0, batches * size, size, rank_slice(size, rank, world))


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_that_is_not_there(make: Makers, rank: int, world: int) -> None:
    for name, shards in WAYS:
        with pytest.raises(ValueError, match=f"^there is no worker {rank} among {world}"):
            partitioned(make, name, shards, rank, world)


def test_each_worker_shuffles_in_its_own_way() -> None:
    """How the places of one epoch move to the next is another permutation for each worker and each pair of epochs."""
    moves = []
    for rank in range(2):
        shard = Partition(2000, rank, 2, seed=0)
        orders = [shard.batch(epoch, 0, 2000, slice(0, 1000)).tolist() for epoch in (0, 1, 2)]
        moves += [[before.index(example) for example in after] for before, after in pairwise(orders)]
    for one, first in enumerate([*moves, list(range(1000))]):
        for other in moves[:one]:
            assert sum(a == b for a, b in zip(first, other, strict=True)) < 20


@by_way
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_worker_keeps_its_examples_and_their_order_changes(
    make: Makers, name: str, shards: Shards, world: int
) -> None:
    tasks = [partitioned(make, name, shards, rank, world) for rank in range(world)]
    total = EXAMPLES // world * world
    assert {task.train_examples for task in tasks} == {total}
    whole = [[own(task, rank, world, epoch)[0] for epoch in (0, 1, 5)] for rank, task in enumerate(tasks)]
    held = [shown(epochs[0]) for epochs in whole]
    assert all(shown(batch) == held[rank] for rank, epochs in enumerate(whole) for batch in epochs)
    assert all(len({tuple(ids(batch)) for batch in epochs}) == 3 for epochs in whole)
    everything = [example for one in held for example in one]
    assert len(everything) == len(set(everything)) == total
    assert len({sequence for one in held for sequence in one.values()}) == total
    for rank, task in enumerate(tasks):
        batches = own(task, rank, world, 1, size=2 * world)
        assert [batch.size for batch in batches[:-1]] == [2] * (len(batches) - 1)
        assert [i for batch in batches for i in ids(batch)] == ids(whole[rank][1])
        assert torch.equal(torch.cat([batch.inputs for batch in batches], 1), whole[rank][1].inputs)
        in_time = batches[0].per_step_targets
        assert in_time == (name == "copying")
        assert torch.equal(torch.cat([b.targets for b in batches], 1 if in_time else 0), whole[rank][1].targets)


@by_way
def test_one_worker_trains_on_all(make: Makers, name: str, shards: Shards) -> None:
    (batch,) = own(partitioned(make, name, shards, 0, 1), 0, 1)
    assert sorted(ids(batch)) == list(range(EXAMPLES))


@by_way
def test_batches_are_a_pure_function(make: Makers, name: str, shards: Shards) -> None:
    """Two constructions are equal, whatever was asked before."""
    one, other = (partitioned(make, name, shards, 1, 2, seed=3) for _ in range(2))
    asked = [(epoch, cursor) for epoch in (4, 0, 2, 1) for cursor in (16, 0, 8)]
    first = {at: one.train_batch(*at, 8, slice(4, 8)) for at in asked}
    for at in sorted(asked):
        again = other.train_batch(*at, 8, slice(4, 8))
        assert ids(again) == ids(first[at])
        assert torch.equal(again.inputs, first[at].inputs)
        assert torch.equal(again.targets, first[at].targets)


@by_way
def test_another_seed_deals_otherwise(make: Makers, name: str, shards: Shards) -> None:
    held = [
        [shown(own(partitioned(make, name, shards, rank, 5, seed=seed), rank, 5)[0]) for rank in range(5)]
        for seed in (0, 1, 2**40)
    ]
    assert len({tuple(frozenset(examples) for examples in shards) for shards in held}) == 3
    if name != "pixels":
        sequences = [{sequence for examples in shards for sequence in examples.values()} for shards in held]
        assert not sequences[0] & sequences[1], "other sequences too"


@by_way
def test_dealing_again_begins_afresh(make: Makers, name: str, shards: Shards) -> None:
    """As after a restart with another number of workers."""
    task = partitioned(make, name, shards, 0, 5)
    assert task.train_examples == 30
    task.set_partition(shards, 1, 2)
    assert task.train_examples == EXAMPLES
    assert ids(own(task, 1, 2)[0]) == ids(own(partitioned(make, name, shards, 1, 2), 1, 2)[0])


@pytest.mark.parametrize("name", ["adding", "copying", "pixels"])
@pytest.mark.parametrize("before", [None, "fixed"])
def test_shuffled_is_what_it_is_without_being_asked_for(make: Makers, name: str, before: Shards | None) -> None:
    plain, asked = make(name), make(name)
    if before:
        asked.set_partition(before, 2, 3)
    asked.set_partition("shuffled", 2, 3)
    assert asked.train_examples == plain.train_examples == EXAMPLES
    for at in ((0, 0, 7, slice(1, 4)), (3, 5, 8, slice(0, 8)), (1, 16, 5, slice(4, 5))):
        one, other = plain.train_batch(*at), asked.train_batch(*at)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert (one.examples is None) == (other.examples is None) == (name != "pixels")
        assert one.examples is None or ids(one) == ids(other)


def test_the_shuffled_examples_are_those_of_the_releases_before(make: Makers) -> None:
    order = np.random.default_rng([3, 2]).permutation(EXAMPLES)[8:16][2:5]
    assert ids(make("pixels", seed=3).train_batch(2, 8, 8, slice(2, 5))) == order.tolist()
    values = np.random.default_rng([0, 3, 2, 8]).random((6, 8), dtype=np.float32)[:, 2:5]
    inputs = make("adding", seed=3).train_batch(2, 8, 8, slice(2, 5)).inputs
    assert np.array_equal(inputs[..., 0].numpy(), values)


@pytest.mark.parametrize("world", [2, 4, 5])
def test_dealt_by_label_each_worker_has_labels_of_its_own(make: Makers, world: int) -> None:
    whole = Counter(own(make("pixels"), 0, 1)[0].targets.tolist())
    held = [own(partitioned(make, "pixels", "by_label", rank, world), rank, world)[0] for rank in range(world)]
    assert [batch.size for batch in held] == [EXAMPLES // world] * world
    counts = [Counter(batch.targets.tolist()) for batch in held]
    for one, other in pairwise(counts):
        assert max(one) <= min(other), "a label is cut in two at most at the border of two workers"
    dealt_counts = sum(counts, Counter())
    left_out = EXAMPLES % world
    assert (whole - dealt_counts).total() == left_out
    assert not dealt_counts - whole
    for first, last, labels in ((min(count), max(count), set(count)) for count in counts):
        assert all(label in labels for label in range(first, last + 1) if dealt_counts[label])


def test_fixed_mixes_the_labels(make: Makers) -> None:
    held = [own(partitioned(make, "pixels", "fixed", rank, 2), rank, 2)[0].targets for rank in range(2)]
    assert all(len(labels.unique()) > 5 for labels in held)


def test_an_image_keeps_its_label_and_id(make: Makers) -> None:
    plain = shown(own(make("pixels"), 0, 1)[0])
    for shards in PARTITIONED:
        for rank in range(2):
            batch = shown(own(partitioned(make, "pixels", shards, rank, 2, seed=5), rank, 2)[0])
            assert batch.items() <= plain.items()


@pytest.mark.parametrize("name", ["adding", "copying"])
@pytest.mark.parametrize("world", [1, 2])
def test_generated_sequences_are_dealt_from_one_set(make: Makers, name: str, world: int) -> None:
    """Whatever the number of workers, the sequence of an id is the same, and no other task's set."""
    single = shown(own(partitioned(make, name, "fixed", 0, 1), 0, 1)[0])
    for rank in range(world):
        assert shown(own(partitioned(make, name, "fixed", rank, world), rank, world)[0]).items() <= single.items()
    task = make(name)
    evaluated = torch.cat([b.inputs for s in ("validation", "test") for b in task.evaluation_batches(s, 0, 1)], 1)
    trained = {inputs for inputs, _ in single.values()}
    assert not trained & {inputs.numpy().tobytes() for inputs in evaluated.unbind(1)}


@pytest.mark.parametrize("name", ["adding", "copying"])
def test_generated_sequences_have_no_labels(make: Makers, name: str) -> None:
    with pytest.raises(ValueError, match=f"^the sequences of the task {name} have no labels to partition by"):
        partitioned(make, name, "by_label", 0, 2)


@by_way
def test_a_task_refuses_what_the_workers_cannot_share(make: Makers, name: str, shards: Shards) -> None:
    task = partitioned(make, name, shards, 0, 3)
    with pytest.raises(ValueError, match=r"the batch size must be a multiple of 3$"):
        task.train_batch(0, 0, 8, rank_slice(8, 0, 3))
    with pytest.raises(ValueError, match=f"^{EXAMPLES} training examples are too few for 33 workers$"):
        task.set_partition(shards, 0, 33)


def test_a_task_that_cannot_be_dealt_says_so(make: Makers) -> None:
    task = make("adding")
    Task.set_partition(task, "shuffled", 0, 2)
    for shards in PARTITIONED:
        with pytest.raises(ValueError, match=f"task adding can only be shuffled, not partitioned as {shards}$"):
            Task.set_partition(task, shards, 0, 2)
