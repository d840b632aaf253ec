"""Images as sequences: layout, normalisation, permutation, splits, orders and estimates, on small sets and on MNIST."""

import json
import os
import struct
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fptt_dist.algorithm.losses import TerminalLoss
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, ExampleEstimate, UniformEstimate
from fptt_dist.algorithm.windows import sequence_windows
from fptt_dist.tasks import Batch, DataError, Pixels, Split, rank_slice
from fptt_dist.tasks.data.download import check
from fptt_dist.tasks.data.idx import read_labelled_images
from fptt_dist.tasks.pixels import IMAGES, Dataset
from tests.tasks.test_cifar import some_records, write_cifar

TRAIN, TEST, HELD_OUT = 40, 10, 8
CONSTANTS: dict[Dataset, tuple[float, float]] = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}


def write_images(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def some_images(count: int, seed: int) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count)  # the first pixel says which image it is
    return images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in CONSTANTS:
        write_images(folder / name, "train", some_images(TRAIN, 0), (np.arange(TRAIN) % 10).astype(np.uint8))
        write_images(folder / name, "t10k", some_images(TEST, 1), (np.arange(TEST)[::-1] % 10).astype(np.uint8))
    return folder


def pixels(root: Path, **options: Any) -> Pixels:
    return Pixels(root=root, **{"validation": HELD_OUT, **options})


def raw(batch: Batch, dataset: Dataset = "mnist") -> Tensor:
    """The bytes (B, 784) in the order that the sequence shows them in."""
    mean, deviation = CONSTANTS[dataset]
    values = (batch.inputs.double() * deviation + mean) * 255
    return values.transpose(0, 1).reshape(batch.size, 784).round().to(torch.uint8)


def whole_epoch(task: Pixels, epoch: int = 0) -> Batch:
    return task.train_batch(epoch, 0, task.train_examples, slice(0, task.train_examples))


def ids(batch: Batch) -> list[int]:
    assert batch.examples is not None
    return batch.examples.tolist()


def names(batch: Batch) -> list[int]:
    """Which images of the files these are, by their first pixel."""
    return raw(batch)[:, 0].tolist()


def test_pixels_come_row_by_row_and_normalised(subtests: pytest.Subtests, root: Path) -> None:
    for step, dataset in product((1, 7, 28, 784), ("mnist", "fashion-mnist")):
        with subtests.test(step=step, dataset=dataset):
            task = pixels(root, dataset=dataset, pixels_per_step=step)
            batch = next(task.evaluation_batches("test", 0, 1))
            assert (task.inputs, task.outputs, task.length) == (step, 10, 784 // step)
            assert batch.inputs.shape == (784 // step, TEST, step)
            assert batch.inputs.dtype == torch.float32
            assert batch.inputs.is_contiguous()
            mean, deviation = (np.float32(constant) for constant in CONSTANTS[dataset])
            values = (some_images(TEST, 1).astype(np.float32) / np.float32(255) - mean) / deviation
            assert np.array_equal(batch.inputs.numpy(), values.reshape(TEST, 784 // step, step).transpose(1, 0, 2))
            assert batch.targets.tolist() == list(range(9, -1, -1))
            assert batch.targets.dtype == torch.int64


@pytest.mark.parametrize("step", [1, 28])
def test_the_permutation_moves_the_pixels_of_all_splits_alike(root: Path, step: int) -> None:
    plain, moved = pixels(root, pixels_per_step=step), pixels(root, pixels_per_step=step, permutation=3)
    order = torch.from_numpy(np.random.default_rng(3).permutation(784))
    assert order.sort().values.tolist() == list(range(784))
    assert torch.equal(moved.permutation, order)
    assert torch.equal(plain.permutation, torch.arange(784))
    pairs = [(whole_epoch(plain), whole_epoch(moved))]
    splits: tuple[Split, ...] = ("validation", "test")
    pairs += [(next(plain.evaluation_batches(s, 0, 1)), next(moved.evaluation_batches(s, 0, 1))) for s in splits]
    for one, other in pairs:
        assert not torch.equal(one.inputs, other.inputs)
        assert torch.equal(raw(one)[:, order], raw(other))
        assert torch.equal(one.targets, other.targets)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 records in each of the five training files and in the test file."""
    folder = tmp_path_factory.mktemp("colors")
    write_cifar(folder, 8)
    return folder


def cifar_planes(batch: int) -> np.ndarray:
    """The bytes (8, 3, 1024) of one of the files."""
    return np.frombuffer(some_records(8, batch), dtype=np.uint8).reshape(8, 3073)[:, 1:].reshape(8, 3, 1024)


def test_the_channels_of_a_pixel_stand_together(subtests: pytest.Subtests, colors: Path) -> None:
    for permutation, step in product((None, 3), (1, 32, 1024)):
        with subtests.test(permutation=permutation, step=step):
            task = pixels(colors, dataset="cifar10", pixels_per_step=step, permutation=permutation)
            order = np.arange(1024) if permutation is None else np.random.default_rng(permutation).permutation(1024)
            batch = next(task.evaluation_batches("test", 0, 1))
            assert (task.inputs, task.outputs, task.length) == (3 * step, 10, 1024 // step)
            assert batch.inputs.shape == (1024 // step, 8, 3 * step)
            assert batch.inputs.dtype == torch.float32
            assert batch.inputs.is_contiguous()
            planes, found = cifar_planes(5), batch.inputs.numpy()
            for shown, pixel in enumerate(order):
                for channel in range(3):
                    value = (planes[:, channel, pixel] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
                    assert np.array_equal(found[shown // step, :, 3 * (shown % step) + channel], value)
            assert batch.targets.tolist() == list(range(8))


def test_each_channel_has_its_own_constants(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, deviation = (0.1, 0.25, 0.7), (0.5, 0.3, 0.9)
    monkeypatch.setitem(IMAGES, "cifar10", replace(IMAGES["cifar10"], mean=mean, deviation=deviation))
    task = pixels(colors, dataset="cifar10", pixels_per_step=4, permutation=3)
    planes = cifar_planes(5)[:, :, np.random.default_rng(3).permutation(1024)].transpose(0, 2, 1)
    values = (planes.astype(np.float32) / np.float32(255) - np.asarray(mean, dtype=np.float32)) / np.asarray(
        deviation, dtype=np.float32
    )
    found = next(task.evaluation_batches("test", 0, 1)).inputs.numpy()
    assert np.array_equal(found, values.reshape(8, 256, 12).transpose(1, 0, 2))


def test_the_splits_of_coloured_images(colors: Path) -> None:
    task = pixels(colors, dataset="cifar10")
    assert task.train_examples == 32
    seen = torch.cat([whole_epoch(task).inputs, next(task.evaluation_batches("validation", 0, 1)).inputs], 1)
    found = {image.numpy().tobytes() for image in seen.unbind(1)}
    planes = np.concatenate([cifar_planes(batch) for batch in range(5)]).astype(np.float32)
    values = (planes.transpose(0, 2, 1) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert found == {np.ascontiguousarray(image).tobytes() for image in values}


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_batches_are_what_they_have_always_been(root: Path, dataset: Dataset) -> None:
    # A run begun with an earlier version resumes with the same numbers, bit for bit.
    task = pixels(root, dataset=dataset, pixels_per_step=7, permutation=5, seed=2)
    rest = np.random.default_rng(20210711).permutation(TRAIN)[HELD_OUT:]
    order = rest[np.random.default_rng([2, 3]).permutation(TRAIN - HELD_OUT)]
    shown = some_images(TRAIN, 0).reshape(TRAIN, 784)[order][:, np.random.default_rng(5).permutation(784)]
    mean, deviation = (np.float32(constant) for constant in CONSTANTS[dataset])
    values = (shown.astype(np.float32) / np.float32(255) - mean) / deviation
    expected = values.reshape(TRAIN - HELD_OUT, 112, 7).transpose(1, 0, 2)
    batch = task.train_batch(3, 8, 16, slice(4, 12))
    assert np.array_equal(batch.inputs.numpy(), expected[:, 12:20])
    assert batch.targets.tolist() == (order[12:20] % 10).tolist()


def test_the_permutation_is_a_function_of_its_own_seed(root: Path) -> None:
    permutation = pixels(root, permutation=0).permutation
    assert torch.equal(pixels(root, permutation=0, seed=5).permutation, permutation)
    assert not torch.equal(pixels(root, permutation=1).permutation, permutation)
    assert not torch.equal(permutation, torch.arange(784)), "seed 0 permutes too"


def test_a_checkpoint_brings_its_permutation_back(root: Path) -> None:
    task, other = pixels(root, permutation=1), pixels(root, permutation=2)
    saved = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    assert saved.keys() == {"permutation"}
    assert not torch.equal(whole_epoch(other).inputs, whole_epoch(task).inputs)
    other.load_state_dict(saved)
    assert torch.equal(whole_epoch(other).inputs, whole_epoch(task).inputs)
    for split in ("validation", "test"):
        mine, theirs = (next(t.evaluation_batches(split, 0, 1)).inputs for t in (task, other))
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar10"])
def test_the_description_of_the_inputs_is_enough_to_make_them(root: Path, colors: Path, dataset: Dataset) -> None:
    colored = dataset == "cifar10"
    task = pixels(colors if colored else root, dataset=dataset, permutation=4, pixels_per_step=4)
    known = json.loads(json.dumps(task.input_description()))
    images = cifar_planes(5).transpose(0, 2, 1) if colored else some_images(TEST, 1).reshape(TEST, 784, 1)
    assert known["channels"] == images.shape[2] == len(known["mean"]) == len(known["deviation"])
    values = (images[:, known["permutation"]] / 255 - np.array(known["mean"])) / np.array(known["deviation"])
    values = values.reshape(len(images), -1, known["pixels_per_step"] * known["channels"])
    inputs = next(task.evaluation_batches("test", 0, 1)).inputs
    np.testing.assert_allclose(inputs.numpy(), values.transpose(1, 0, 2), atol=1e-6)


def test_validation_is_held_out_of_training_and_the_same_for_all_runs(root: Path) -> None:
    held_out, trained = [], []
    for seed in (0, 1, 99):
        task = pixels(root, seed=seed, permutation=None)
        held_out.append(names(next(task.evaluation_batches("validation", 0, 1))))
        trained.append(sorted(names(whole_epoch(task))))
    assert held_out[0] == held_out[1] == held_out[2]
    assert trained[0] == trained[1] == trained[2]
    assert len(held_out[0]) == HELD_OUT
    assert not set(held_out[0]) & set(trained[0])
    assert sorted(held_out[0] + trained[0]) == list(range(TRAIN))
    assert sorted(held_out[0]) != list(range(HELD_OUT)), "drawn, not the first ones"


def test_every_image_keeps_its_label(root: Path) -> None:
    task = pixels(root)
    for batch in (whole_epoch(task), whole_epoch(task, 1), next(task.evaluation_batches("validation", 0, 1))):
        assert batch.targets.tolist() == [name % 10 for name in names(batch)]


def test_an_epoch_shows_every_example_once_in_its_own_order(root: Path) -> None:
    orders = {(s, e): ids(whole_epoch(pixels(root, seed=s), e)) for s in (0, 1) for e in (0, 1, 2)}
    for order in orders.values():
        assert sorted(order) == list(range(TRAIN - HELD_OUT))
    assert len({tuple(order) for order in orders.values()}) == 6
    assert orders[0, 0] != list(range(TRAIN - HELD_OUT))
    assert ids(whole_epoch(pixels(root, seed=1), 2)) == orders[1, 2]


def test_an_order_does_not_depend_on_the_epochs_before(root: Path) -> None:
    task = pixels(root)
    there = ids(whole_epoch(task, 1))
    for epoch in (5, 0, 3, 2):  # more than the task keeps
        whole_epoch(task, epoch)
    assert ids(whole_epoch(task, 1)) == there


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_are_slices_of_the_epochs_order_shared_out(root: Path, world: int) -> None:
    task = pixels(root)
    everything, size = whole_epoch(task, 2), 8
    for cursor in range(0, task.train_examples, size):
        parts = [task.train_batch(2, cursor, size, rank_slice(size, rank, world)) for rank in range(world)]
        assert [part.size for part in parts] == [size // world] * world
        assert torch.equal(torch.cat([p.inputs for p in parts], 1), everything.inputs[:, cursor : cursor + size])
        assert torch.equal(torch.cat([p.targets for p in parts]), everything.targets[cursor : cursor + size])
        assert [i for part in parts for i in ids(part)] == ids(everything)[cursor : cursor + size]


def test_ids_name_the_examples_of_the_training_set(root: Path) -> None:
    first, second = whole_epoch(pixels(root, seed=0), 0), whole_epoch(pixels(root, seed=7), 4)
    assert dict(zip(ids(first), names(first), strict=True)) == dict(zip(ids(second), names(second), strict=True))


def test_evaluation_covers_each_split_once(subtests: pytest.Subtests, root: Path) -> None:
    for world, split in product((1, 2, 3, 16), ("validation", "test")):
        with subtests.test(world=world, split=split):
            task = pixels(root)
            whole = next(task.evaluation_batches(split, 0, 1))
            assert whole.size == (HELD_OUT if split == "validation" else TEST)
            parts = [batch for rank in range(world) for batch in task.evaluation_batches(split, rank, world)]
            assert torch.equal(torch.cat([part.inputs for part in parts], 1), whole.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
            assert min(part.size for part in parts) > 0


def test_large_sets_are_evaluated_500_at_a_time(tmp_path: Path) -> None:
    images = np.zeros((1203, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(1203) // 256, np.arange(1203) % 256
    for prefix in ("train", "t10k"):
        write_images(tmp_path / "mnist", prefix, images, np.zeros(1203, dtype=np.uint8))
    task = pixels(tmp_path, pixels_per_step=784)
    assert [batch.size for batch in task.evaluation_batches("test", 0, 1)] == [500, 500, 203]
    seen = []
    for rank in (0, 1):
        for batch in task.evaluation_batches("test", rank, 2):
            assert batch.size <= 500
            seen += (raw(batch)[:, :2].long() @ torch.tensor([256, 1])).tolist()
    assert seen == list(range(1203))


def test_examples_limit_the_training_set_alone(root: Path) -> None:
    few, all_of_them = pixels(root, examples=5), pixels(root)
    assert (few.train_examples, all_of_them.train_examples) == (5, TRAIN - HELD_OUT)
    assert sorted(ids(whole_epoch(few))) == list(range(5))
    assert set(names(whole_epoch(few))) < set(names(whole_epoch(all_of_them)))
    for split in ("validation", "test"):
        one, other = (next(task.evaluation_batches(split, 0, 1)) for task in (few, all_of_them))
        assert torch.equal(one.inputs, other.inputs)
    assert pixels(root, examples=TRAIN - HELD_OUT).train_examples == TRAIN - HELD_OUT


def test_test_limits_the_test_set_alone_and_is_the_same_for_all_runs(root: Path) -> None:
    whole = pixels(root)
    chosen = [names(next(pixels(root, test=n, seed=n).evaluation_batches("test", 0, 1))) for n in (3, 6, TEST)]
    assert sorted(chosen[2]) == list(range(TEST))
    assert chosen[2][:6] == chosen[1], "more images are the same ones and others"
    assert chosen[1][:3] == chosen[0]
    assert chosen[1] != list(range(6)), "drawn, not the first ones"
    few = pixels(root, test=6)
    batch = next(few.evaluation_batches("test", 0, 1))
    assert batch.targets.tolist() == [9 - name for name in names(batch)]
    assert torch.equal(whole_epoch(few).inputs, whole_epoch(whole).inputs)
    one, other = (next(task.evaluation_batches("validation", 0, 1)) for task in (few, whole))
    assert torch.equal(one.inputs, other.inputs)
    with pytest.raises(DataError) as caught:
        pixels(root, test=TEST + 1)
    message = f"{root}/mnist has {TEST} test images, fewer than task.test={TEST + 1}: type task.test=null for all"
    assert str(caught.value) == message


def test_more_images_asked_for_than_there_are(root: Path) -> None:
    for options, text in (
        ({"validation": TRAIN}, f"task.validation={TRAIN} and task.examples=at least one together"),
        ({"validation": 8, "examples": 33}, "task.validation=8 and task.examples=33 together"),
    ):
        with pytest.raises(DataError) as caught:
            pixels(root, **options)
        smaller = "type a smaller one of the two"
        assert str(caught.value) == f"{root}/mnist has {TRAIN} training images, fewer than {text}: {smaller}"


def test_images_of_another_size(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for wrong, shape in product(("train", "t10k"), ((27, 28), (14, 56), (0, 28))):
        with subtests.test(wrong=wrong, shape=shape):
            for prefix in ("train", "t10k"):
                images = np.zeros((TRAIN, *(shape if prefix == wrong else (28, 28))), dtype=np.uint8)
                write_images(tmp_path / "mnist", prefix, images, np.zeros(TRAIN, dtype=np.uint8))
            with pytest.raises(DataError) as caught:
                pixels(tmp_path)
            file = f"{tmp_path}/mnist/{wrong}-images-idx3-ubyte"
            assert str(caught.value) == f"{file}: {shape[0]} × {shape[1]} pixels, expected 28 × 28"


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(root: Path, tmp_path: Path, missing: str) -> None:
    (tmp_path / "mnist").mkdir()
    for path in (root / "mnist").iterdir():
        if path.name != missing:
            (tmp_path / "mnist" / path.name).symlink_to(path)
    with pytest.raises(
        DataError, match=rf"has neither {missing} nor {missing}\.gz.*data fetch mnist --root {tmp_path};"
    ):
        pixels(tmp_path)


@pytest.mark.parametrize("steps", [1, 4])
def test_score_and_window_metric_count_right_labels(root: Path, steps: int) -> None:
    task, batch = pixels(root), next(pixels(root).evaluation_batches("test", 0, 1))
    output = torch.randn(steps, TEST, 10, generator=torch.Generator().manual_seed(0))
    output[-1, :4] += 20 * torch.nn.functional.one_hot(batch.targets[:4], 10)
    right = output[-1].numpy().argmax(-1) == batch.targets.numpy()
    assert 4 <= right.sum() < TEST
    total, items = task.score(output, batch)
    assert (total.item(), items) == (right.sum(), TEST)
    assert total.dtype == torch.float64
    metric = task.window_metric(output, batch.targets)
    assert metric.shape == ()
    assert metric.item() == pytest.approx(right.mean())


@pytest.mark.parametrize("reads", ["last", "all"])
@pytest.mark.parametrize(
    ("name", "kind"), [("uniform", UniformEstimate), ("class_mean", ClassMeanEstimate), ("example", ExampleEstimate)]
)
def test_each_estimate_gives_its_loss(root: Path, name: str, kind: type, reads: str) -> None:
    task = pixels(root, target_estimate=name, loss_steps=reads, windows=3, examples=12)
    assert isinstance(task.loss, TerminalLoss)
    assert type(task.loss.estimate) is kind
    assert task.loss.terminal
    assert task.loss.loss_steps == reads
    assert task.loss.kl_reduction == "sum"
    shapes = {key: tuple(tensor.shape) for key, tensor in task.loss.state_dict().items()}
    assert (
        shapes
        == {
            "uniform": {},
            "class_mean": {"table": (3, 10, 10), "sums": (3, 10, 10), "counts": (3, 10)},
            "example": {"table": (12, 3, 10), "next": (12, 3, 10)},
        }[name]
    )


def test_the_divergence_is_the_losss(root: Path) -> None:
    window, output = sequence_windows(784, 4)[1], torch.randn(1, 5, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    logs = output[0].double().log_softmax(-1)
    label, uniform = -logs[torch.arange(5), labels].mean(), -logs.mean(-1).mean()
    for divergence, share_of_it in (("sum", 1.0), ("mean", 0.1)):
        loss = pixels(root, kl_reduction=divergence).loss(output, labels, window)
        torch.testing.assert_close(loss.double(), 0.5 * label + 0.5 * uniform * share_of_it, rtol=1e-6, atol=0)


def test_the_example_estimate_is_kept_by_the_ids_of_the_batches(root: Path) -> None:
    task = pixels(root, target_estimate="example", windows=2, pixels_per_step=28)
    assert isinstance(task.loss, TerminalLoss)
    windows, generator = sequence_windows(task.length, 2), torch.Generator().manual_seed(0)
    said = {}
    for cursor in range(0, task.train_examples, 8):
        batch = task.train_batch(0, cursor, 8, slice(0, 8))
        for window in windows:
            output = torch.randn(1, 8, 10, generator=generator)
            task.loss(output, batch.target(window.part), window, examples=batch.examples)
            for example, probabilities in zip(ids(batch), output[0].softmax(-1), strict=True):
                said[example, window.index] = probabilities
    task.loss.end_epoch(lambda tensor: tensor)
    later = whole_epoch(task, 1)
    assert ids(later) != ids(whole_epoch(task, 0))
    for window in windows:
        expected = torch.stack([said[example, window.index] for example in ids(later)])
        torch.testing.assert_close(task.loss.estimate(window.index, later.targets, later.examples), expected)


@pytest.mark.slow
@pytest.mark.skipif("FPTT_DATA" not in os.environ, reason="needs FPTT_DATA, the folder that holds mnist/")
def test_the_real_mnist() -> None:
    folder = Path(os.environ["FPTT_DATA"])
    assert check("mnist", folder) == []
    task = Pixels(root=folder, validation=5000, pixels_per_step=28)
    assert task.train_examples == 55000
    splits = {s: list(task.evaluation_batches(s, 0, 1)) for s in ("validation", "test")}
    assert [sum(batch.size for batch in batches) for batches in splits.values()] == [5000, 10000]
    labels = torch.cat([batch.targets for batch in splits["test"]])
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images, labels = read_labelled_images(folder / "mnist", "train", "mnist", 10)
    assert images.shape == (60000, 28, 28)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean, deviation = CONSTANTS["mnist"]
    assert images.mean() / 255 == pytest.approx(mean, abs=5e-5)
    square = np.square(images, dtype=np.uint16).mean()
    assert np.sqrt(square - images.mean() ** 2) / 255 == pytest.approx(deviation, abs=5e-5)
