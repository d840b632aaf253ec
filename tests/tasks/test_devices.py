"""Where batches are put together: on the device that the task was moved to, with the numbers of the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fptt_dist.algorithm.losses import RegressionLoss
from fptt_dist.tasks import Adding, Batch, Copying, Language, Pixels, Task
from fptt_dist.training.data_workers import _unpacked, pack
from tests.tasks.test_cifar import write_cifar
from tests.tasks.test_language import write
from tests.tasks.test_pixels import some_images, write_images

SIZE = 6
ELSEWHERE = torch.device("meta")  # any machine has it; its tensors are shapes alone
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
Make = Callable[[Path], Task]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "mnist", "train", some_images(40, 0), (np.arange(40) % 10).astype(np.uint8))
    write_images(folder / "mnist", "t10k", some_images(10, 1), np.zeros(10, dtype=np.uint8))
    write_cifar(folder, 8)
    write(folder, TEXT, TEXT[:300], TEXT[:200])
    return folder


def pixels(**options: Any) -> Make:
    return lambda root: Pixels(root=root, **{"validation": 8, **options})


def text(**options: Any) -> Make:
    return lambda root: Language(
        root=root, text_dir=root, **{"token_level": "character", "streams": SIZE, "length": 9, **options}
    )


def partitioned(make: Make, shards: Any) -> Make:
    def both(root: Path) -> Task:
        task = make(root)
        task.set_partition(shards, 0, 2)
        return task

    return both


HELD = {  # whose data are on the device
    "mnist": pixels(),
    "permuted": pixels(permutation=3, pixels_per_step=4),
    "moved digits": pixels(augmentation=True, permutation=3),
    "colors": pixels(dataset="cifar10", pixels_per_step=32),
    "moved colors": pixels(dataset="cifar10", augmentation=True, permutation=1),
    "fixed images": partitioned(pixels(), "fixed"),
    "images by label": partitioned(pixels(), "by_label"),
    "text": text(),
    "text of random lengths": text(length_std=2.0),
}
GENERATED: dict[str, Make] = {
    "adding": lambda _: Adding(length=12, examples=40, validation=20, test=7),
    "copying": lambda _: Copying(delay=5, symbols=2, examples=40, validation=20, test=7),
    "fixed sequences": partitioned(lambda _: Adding(length=12, examples=40, validation=20, test=7), "fixed"),
}
ALL = {**HELD, **GENERATED}


def part(name: str) -> slice:
    return slice(0, SIZE // 2) if name.startswith(("fixed", "images by")) else slice(1, SIZE - 1)


def batches(task: Task, name: str) -> Iterator[Batch]:
    for epoch in (0, 3, 4, 0):  # more than the task keeps
        for cursor in (0, SIZE):
            yield task.train_batch(epoch, cursor, SIZE, part(name))
    for rank in (0, 1):
        yield from task.evaluation_batches("validation", rank, 2)
        yield from task.evaluation_batches("test", rank, 2)


def tensors(batch: Batch) -> list[Tensor]:
    return [each for each in (batch.inputs, batch.targets, batch.examples) if each is not None]


class Crossings(TorchDispatchMode):
    """Notes each operation on tensors of more than one device, or from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        involved = {each.device for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)}
        if len(involved) > 1:
            self.seen.append(str(func))
        return found


def test_batches_come_on_the_device_that_the_task_was_moved_to(subtests: pytest.Subtests, root: Path) -> None:
    for name in ALL:
        with subtests.test(name=name):
            task = ALL[name](root)
            shapes = [[(each.shape, each.dtype) for each in tensors(batch)] for batch in batches(task, name)]
            task.to(ELSEWHERE)
            moved = [tensors(batch) for batch in batches(task, name)]
            assert all(each.device == ELSEWHERE for batch in moved for each in batch)
            assert [[(each.shape, each.dtype) for each in batch] for batch in moved] == shapes


def test_a_data_worker_gets_the_same_batches(subtests: pytest.Subtests, root: Path) -> None:
    for name in ALL:
        with subtests.test(name=name):
            task = ALL[name](root)
            expected = [tensors(batch) for batch in batches(task, name)]
            task.loss = _NotForOthers()
            packed = pack(task, 1)
            sent = _unpacked([memoryview(packed.pickled), *packed.buffers], packed.modules)
            found = [tensors(batch) for batch in batches(sent, name)]
            assert [[each.tolist() for each in batch] for batch in found] == [
                [each.tolist() for each in batch] for batch in expected
            ]


class _NotForOthers(RegressionLoss):
    def __reduce__(self) -> str | tuple[Any, ...]:
        raise AssertionError("the loss stays where it is trained")


def test_nothing_of_a_batch_is_copied_from_the_host(subtests: pytest.Subtests, root: Path) -> None:
    for name in HELD:
        with subtests.test(name=name):
            task = HELD[name](root)
            with Crossings() as at_first:
                task.to(ELSEWHERE)
                task.train_batch(0, 0, SIZE, part(name))
            assert set(at_first.seen) == {"aten._to_copy.default"}, "the data, and an epoch's order"
            with Crossings() as later:
                task.train_batch(0, SIZE, SIZE, part(name))
                list(task.evaluation_batches("validation", 0, 1))
            assert later.seen == []


def test_the_permutation_of_a_checkpoint_goes_to_the_device(root: Path) -> None:
    one, other = HELD["mnist"](root), HELD["permuted"](root)
    one.to(ELSEWHERE)
    one.load_state_dict(other.state_dict())
    with Crossings() as crossings:
        one.train_batch(0, 0, SIZE, slice(0, SIZE))
    assert len(crossings.seen) == 1, "the epoch's order"
    assert torch.equal(one.state_dict()["permutation"], other.state_dict()["permutation"])
    assert one.input_description()["permutation"] == other.input_description()["permutation"]


def test_a_task_moved_before_it_is_dealt(root: Path) -> None:
    task = HELD["mnist"](root)
    task.to(ELSEWHERE)
    task.set_partition("fixed", 0, 2)
    assert all(each.device == ELSEWHERE for each in tensors(task.train_batch(0, 0, SIZE, slice(0, SIZE // 2))))


@pytest.mark.parametrize("name", ["mnist", "images by label", "text", "adding"])
def test_to_the_same_device_changes_nothing(root: Path, name: str) -> None:
    one, other = ALL[name](root), ALL[name](root)
    other.to(torch.device("cpu"))
    assert equal(batches(one, name), batches(other, name))


@pytest.mark.parametrize(("symbols", "bytes_each"), [(255, 1), (256, 2), ((1 << 15) - 1, 2), (1 << 15, 4)])
def test_ids_take_no_more_room_than_they_need(tmp_path: Path, symbols: int, bytes_each: int) -> None:
    everything = "".join(chr(0x10000 + place) for place in range(symbols))
    task = Language(
        root=tmp_path,
        text_dir=write(tmp_path, everything, everything, everything),
        token_level="character",
        min_count=1,
        streams=2,
        length=8,
    )
    assert task.vocabulary_size == symbols + 1  # "<unk>"
    assert task._columns.element_size() == bytes_each
    shown = torch.cat([batch.inputs for batch in task.chunks("test", streams=1, steps=1000)]).flatten()
    assert shown.dtype == torch.int64
    assert shown.tolist() == list(range(symbols - 1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_the_numbers_on_a_gpu_are_those_on_the_cpu(root: Path, name: str) -> None:
    here, there = ALL[name](root), ALL[name](root)
    there.to(torch.device("cuda", 0))
    moved = list(batches(there, name))
    assert all(each.is_cuda for batch in moved for each in tensors(batch))
    assert equal(batches(here, name), (batch.to(torch.device("cpu")) for batch in moved))


def equal(one: Iterator[Batch], other: Iterator[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(mine, theirs) for a, b in pairs for mine, theirs in zip(tensors(a), tensors(b), strict=True))
