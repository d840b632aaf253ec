"""Augmented images against a loop over pixels, and what an image's draw may depend on."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.tasks import Batch, Pixels, rank_slice
from fptt_dist.tasks.data.augmentation import Augmentation
from tests.tasks.test_cifar import write_cifar
from tests.tasks.test_pixels import some_images, write_images

Move = tuple[int, int, bool]  # down, to the right, mirrored


def moved(image: NDArray, move: Move) -> NDArray:
    """(side, side, channels), one value after the other: the moved image shows what was there before, else zeros."""
    down, right, mirrored = move
    side = len(image)
    shown = np.zeros_like(image)
    for row in range(side):
        for column in range(side):
            from_row, from_column = row - down, (side - 1 - column if mirrored else column) - right
            if 0 <= from_row < side and 0 <= from_column < side:
                shown[row, column] = image[from_row, from_column]
    return shown


def moves(shift: int, mirror: bool) -> list[Move]:
    places = range(-shift, shift + 1)
    return [(down, right, m) for down in places for right in places for m in ((False, True) if mirror else (False,))]


def noise(count: int, side: int, channels: int, seed: int = 0) -> Tensor:
    shape = (count, side * side, channels)
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8))


@given(
    side=st.integers(1, 6),
    shift=st.integers(0, 3),
    mirror=st.booleans(),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_every_image_is_one_of_those_that_a_move_gives(
    side: int, shift: int, mirror: bool, channels: int, seed: int, epoch: int
) -> None:
    images = noise(5, side, channels)
    augmentation = Augmentation(side=side, shift=shift, mirror=mirror, examples=5, seed=seed)
    found = augmentation(images, epoch, torch.arange(5)).numpy().reshape(5, side, side, channels)
    assert found.dtype == np.uint8
    for before, after in zip(images.numpy().reshape(5, side, side, channels), found, strict=True):
        assert any(np.array_equal(moved(before, move), after) for move in moves(shift, mirror))


@pytest.mark.parametrize(("shift", "mirror"), [(2, False), (4, True)])
def test_all_moves_are_equally_likely(shift: int, mirror: bool) -> None:
    side, count = 12, 6000
    image = noise(1, side, 1)
    every = moves(shift, mirror)
    names = {moved(image.numpy().reshape(side, side, 1), move).tobytes(): move for move in every}
    assert len(names) == len(every), "each looks different"
    augmentation = Augmentation(side=side, shift=shift, mirror=mirror, examples=count, seed=3)
    seen = Counter(
        names[shown.tobytes()] for shown in augmentation(image.expand(count, -1, -1), 1, torch.arange(count)).numpy()
    )
    assert seen.keys() == set(every)
    expected = count / len(every)
    distance = sum((seen[move] - expected) ** 2 / expected for move in every)
    freedom = len(every) - 1
    assert abs(distance - freedom) < 4 * (2 * freedom) ** 0.5, "χ² within four of its standard deviations"


def test_a_move_of_none_is_none() -> None:
    images = noise(7, 5, 3)
    augmentation = Augmentation(side=5, shift=0, mirror=False, examples=7, seed=1)
    assert torch.equal(augmentation(images, 4, torch.arange(7)), images)


def test_an_image_depends_on_its_id_the_epoch_and_the_seed_alone() -> None:
    images, ids = noise(60, 8, 3), torch.arange(60)
    augmentation = Augmentation(side=8, shift=4, mirror=True, examples=60, seed=5)
    whole = augmentation(images, 2, ids)
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    assert torch.equal(augmentation(images[order], 2, order), whole[order])
    for part in (slice(0, 1), slice(7, 19), slice(0, 0)):
        assert torch.equal(augmentation(images[part], 2, ids[part]), whole[part])
    for epoch in (9, 0, 1, 3):  # more than are kept
        assert not torch.equal(augmentation(images, epoch, ids), whole)
    assert torch.equal(augmentation(images, 2, ids), whole)
    fewer = Augmentation(side=8, shift=4, mirror=True, examples=11, seed=5)
    assert torch.equal(fewer(images[:11], 2, ids[:11]), whole[:11]), "whatever follows it"
    other = Augmentation(side=8, shift=4, mirror=True, examples=60, seed=6)
    assert not torch.equal(other(images, 2, ids), whole)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist", "fashion-mnist"):
        write_images(folder / name, "train", some_images(40, 0), (np.arange(40) % 10).astype(np.uint8))
        write_images(folder / name, "t10k", some_images(10, 1), np.zeros(10, dtype=np.uint8))
    write_cifar(folder, 8)
    return folder


def task(root: Path, dataset: str = "cifar10", *, augmentation: bool = True, **options: object) -> Pixels:
    rest = {"validation": 8, "dataset": dataset, "pixels_per_step": 4, **options}
    return Pixels(root=root, augmentation=augmentation, **rest)  # type: ignore[arg-type]


def shown(batch: Batch, dataset: str) -> NDArray:
    """The bytes (B, side, side, channels)."""
    side, channels = (32, 3) if dataset == "cifar10" else (28, 1)
    mean, deviation = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530), "cifar10": (0.5, 0.5)}[dataset]
    values = (batch.inputs.double() * deviation + mean) * 255
    return values.transpose(0, 1).reshape(batch.size, side, side, channels).round().to(torch.uint8).numpy()


def by_id(batch: Batch) -> dict[int, Tensor]:
    assert batch.examples is not None
    return dict(zip(batch.examples.tolist(), batch.inputs.unbind(1), strict=True))


def epoch_of(pixels: Pixels, epoch: int = 0) -> Batch:
    return pixels.train_batch(epoch, 0, 32, slice(0, 32))


@pytest.mark.parametrize(
    ("dataset", "shift", "mirror"), [("mnist", 2, False), ("fashion-mnist", 2, False), ("cifar10", 4, True)]
)
def test_each_data_set_is_moved_as_befits_it(root: Path, dataset: str, shift: int, mirror: bool) -> None:
    plain, augmented = (shown(epoch_of(task(root, dataset, augmentation=on)), dataset) for on in (False, True))
    seen = Counter()
    for before, after in zip(plain, augmented, strict=True):
        found = [move for move in moves(shift, mirror) if np.array_equal(moved_fast(before, move), after)]
        assert len(found) == 1
        seen.update(found)
    assert max(abs(down) for down, _, _ in seen) == max(abs(right) for _, right, _ in seen) == shift
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if mirror else {False})


def moved_fast(image: NDArray, move: Move) -> NDArray:
    """As `moved`, for whole images."""
    down, right, mirrored = move
    side = len(image)
    canvas = np.zeros((3 * side, 3 * side, image.shape[2]), dtype=image.dtype)
    canvas[side + down : 2 * side + down, side + right : 2 * side + right] = image
    window = canvas[side : 2 * side, side : 2 * side]
    return window[:, ::-1] if mirrored else window


def test_both_references_agree(subtests: pytest.Subtests) -> None:
    for move in ((0, 0, False), (2, -1, False), (-3, 3, True), (1, 0, True)):
        with subtests.test(move=move):
            image = noise(1, 7, 2).numpy().reshape(7, 7, 2)
            assert np.array_equal(moved_fast(image, move), moved(image, move))


def test_any_number_of_workers_sees_the_same_global_batch(subtests: pytest.Subtests, root: Path) -> None:
    for dataset, world in product(("mnist", "cifar10"), (1, 2, 4)):
        with subtests.test(dataset=dataset, world=world):
            whole = epoch_of(task(root, dataset), 3)
            for cursor in range(0, 32, 8):
                parts = [
                    task(root, dataset).train_batch(3, cursor, 8, rank_slice(8, rank, world)) for rank in range(world)
                ]
                assert torch.equal(torch.cat([part.inputs for part in parts], 1), whole.inputs[:, cursor : cursor + 8])


@pytest.mark.parametrize("shards", ["fixed", "by_label"])
def test_dealt_examples_are_augmented_as_shuffled_ones(root: Path, shards: str) -> None:
    whole, seen = by_id(epoch_of(task(root), 3)), {}
    for rank in range(3):  # 32 images, of which 30 are used
        partitioned = task(root)
        partitioned.set_partition(shards, rank, 3)  # type: ignore[arg-type]
        seen |= by_id(partitioned.train_batch(3, 0, 30, rank_slice(30, rank, 3)))
    assert len(seen) == 30
    for example, inputs in seen.items():
        assert torch.equal(inputs, whole[example])


def test_epochs_differ_and_held_out_images_are_never_augmented(root: Path) -> None:
    augmented, plain = task(root), task(root, augmentation=False)
    first, second = by_id(epoch_of(augmented, 0)), by_id(epoch_of(augmented, 1))
    assert sum(torch.equal(first[example], second[example]) for example in first) <= 3
    unmoved = [by_id(epoch_of(plain, epoch)) for epoch in (0, 1)]
    assert all(torch.equal(unmoved[0][example], unmoved[1][example]) for example in first)
    for split in ("validation", "test"):
        one, other = (next(pixels.evaluation_batches(split, 0, 1)) for pixels in (augmented, plain))
        assert torch.equal(one.inputs, other.inputs)


def test_another_seed_moves_the_same_image_otherwise(root: Path) -> None:
    one, other = by_id(epoch_of(task(root, seed=0))), by_id(epoch_of(task(root, seed=1)))
    assert one.keys() == other.keys()
    assert sum(torch.equal(one[example], other[example]) for example in one) <= 3


def test_the_permutation_comes_after(root: Path) -> None:
    one, other = task(root), task(root, permutation=3)
    pixels = epoch_of(one).inputs.transpose(0, 1).reshape(32, 1024, 3)
    permuted = epoch_of(other).inputs.transpose(0, 1).reshape(32, 1024, 3)
    assert torch.equal(pixels[:, torch.from_numpy(np.random.default_rng(3).permutation(1024))], permuted)
