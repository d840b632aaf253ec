"""Images read as sequences of pixels, row by row, a few at a time; one label per sequence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.algorithm.losses import TerminalLoss
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, ExampleEstimate, LabelEstimate, UniformEstimate
from fptt_dist.tasks.base import Batch, Split, Task, rank_slice
from fptt_dist.tasks.data import cifar
from fptt_dist.tasks.data.augmentation import Augmentation
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.identity import check_identity
from fptt_dist.tasks.data.idx import read_labelled_images
from fptt_dist.tasks.epoch_cache import EpochCache
from fptt_dist.tasks.partition import Partition, Shards

CLASSES = 10
EVALUATION_BATCH = 500
SPLIT_SEED = 20210711  # of the validation split and the subsets of examples: the same for all runs
TEST_STREAM = 1  # of that seed, for the subset of the test images

Dataset = Literal["mnist", "fashion-mnist", "cifar10"]


@dataclass(frozen=True)
class Images:
    """Format of a data set's images, and how they become inputs.

    Attributes:
        side: pixels of a row, and rows.
        mean: subtracted from a channel's values in [0, 1], one number per channel.
        deviation: divisor of the values after that, one number per channel.
        shift: pixels that augmentation moves an image at most.
        mirror: whether augmentation mirrors; a mirrored digit is another sign.
    """

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    shift: int
    mirror: bool

    @property
    def pixels(self) -> int:
        """Number of pixels of an image."""
        return self.side * self.side

    @property
    def channels(self) -> int:
        """Values per pixel."""
        return len(self.mean)


IMAGES: dict[Dataset, Images] = {
    "mnist": Images(28, (0.1307,), (0.3081,), shift=2, mirror=False),
    "fashion-mnist": Images(28, (0.2860,), (0.3530,), shift=2, mirror=False),
    # 0.5 are not CIFAR-10's own mean and deviation, but what the paper's authors used: inputs from −1 to 1.
    "cifar10": Images(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), shift=4, mirror=True),
}


class Pixels(Task):
    """Sequential (or permuted) MNIST, Fashion-MNIST and CIFAR-10: p pixels at each of 784 / p (1024 / p) steps.

    A pixel of CIFAR-10 has three channels, which stand together: 3 p features per step. Images stay in the device's
    memory as bytes and are gathered there for each batch. The validation set is held out of the training images; both
    are the same whatever the run's seed is.

    Args:
        root: folder that holds `mnist/` or `fashion-mnist/` with the four IDX files, plain or gzipped, or
            `cifar-10-batches-bin/` with the six .bin files.
        dataset: which of them.
        pixels_per_step: p, a divisor of 784 (of 1024).
        permutation: seed of the fixed permutation of the pixels, whose channels stay together; None leaves them in
            reading order.
        validation: images held out of the 60,000 (50,000).
        examples: training images used of the rest; None: all.
        test: test images used, the same for all runs; None: all.
        augmentation: whether every epoch shows the training images moved by up to 2 pixels each way; those of CIFAR-10
            by up to 4, and half of them mirrored.
        target_estimate: Q of the terminal loss, "uniform", "class_mean" or "example".
        loss_steps: "last": loss at the window's last step; "all": at every step.
        kl_reduction: of the terminal loss: "sum" over the classes, or their "mean".
        windows: K, for the estimate's tables.
        seed: of the order of the examples, and of the augmentation.

    Raises:
        DataError: files missing or corrupt, or fewer images than asked for.
    """

    name = "pixels"
    outputs = CLASSES
    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        *,
        root: Path,
        dataset: Dataset = "mnist",
        pixels_per_step: int = 1,
        permutation: int | None = None,
        validation: int = 5000,
        examples: int | None = None,
        test: int | None = None,
        augmentation: bool = False,
        target_estimate: Literal["uniform", "class_mean", "example"] = "uniform",
        loss_steps: Literal["last", "all"] = "last",
        kl_reduction: Literal["sum", "mean"] = "sum",
        windows: int = 1,
        seed: int = 0,
    ) -> None:
        kind = IMAGES[dataset]
        images, labels = _splits(root, dataset, validation, examples, test)
        self.pixels_per_step = pixels_per_step
        self.inputs = pixels_per_step * kind.channels
        self.length = kind.pixels // pixels_per_step
        self.train_examples = len(labels["train"])
        self.seed = seed
        self.permutation = torch.arange(kind.pixels)
        if permutation is not None:
            self.permutation = torch.from_numpy(np.random.default_rng(permutation).permutation(kind.pixels))
        self.mean, self.deviation = kind.mean, kind.deviation
        self._values = _normalized(kind)
        self._channels = 256 * torch.arange(kind.channels, dtype=torch.int32)  # where each one's values begin
        self._images = {split: _bytes(own, kind) for split, own in images.items()}
        self._labels = {split: torch.from_numpy(own.astype(np.uint8)) for split, own in labels.items()}
        self.loss = TerminalLoss(
            self._estimate(target_estimate, windows), loss_steps=loss_steps, kl_reduction=kl_reduction
        )
        self._augmentation = (
            Augmentation(side=kind.side, shift=kind.shift, mirror=kind.mirror, examples=self.train_examples, seed=seed)
            if augmentation
            else None
        )
        self._order = EpochCache(self._epoch_order)
        self._shard: Partition | None = None
        self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> None:
        """Move all images and labels, and what inputs are made with; an epoch's order goes there as it is drawn."""
        self._device = device
        self._images = {split: images.to(device) for split, images in self._images.items()}
        self._labels = {split: labels.to(device) for split, labels in self._labels.items()}
        self._values, self._channels = self._values.to(device), self._channels.to(device)
        if self._shard is not None:
            self._shard.to(device)
        self._place_permutation()

    def _place_permutation(self) -> None:
        in_order = self.permutation.tolist() == list(range(len(self.permutation)))
        self._shown = None if in_order else self.permutation.to(self._device)

    def set_partition(self, shards: Shards, rank: int, world: int) -> None:
        """Set the partition as for every task; the labels are the images' classes."""
        labels, self._shard = self._labels["train"], None
        if shards != "shuffled":
            by = labels.cpu() if shards == "by_label" else None
            self._shard = Partition(len(labels), rank, world, seed=self.seed, labels=by).to(self._device)
        self.train_examples = self._shard.num_examples if self._shard else len(labels)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Images `part` of the global batch at `cursor` of the epoch's own order, or this worker's own."""
        if self._shard is None:
            indices = self._order(epoch, self._device)[cursor : cursor + size][part]
        else:
            indices = self._shard.batch(epoch, cursor, size, part)
        images = self._images["train"].index_select(0, indices)
        if self._augmentation is not None:
            images = self._augmentation(images, epoch, indices)
        return self._batch(images, self._labels["train"].index_select(0, indices), indices)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the held-out or test images, at most 500 at a time."""
        images, labels, own = (
            self._images[split],
            self._labels[split],
            rank_slice(len(self._labels[split]), rank, world),
        )
        for start in range(own.start, own.stop, EVALUATION_BATCH):
            stop = min(start + EVALUATION_BATCH, own.stop)
            indices = torch.arange(start, stop, device=self._device)
            yield self._batch(images[start:stop], labels[start:stop], indices)

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Number of images whose label the last step names, and number of images."""
        return self.correct(output, batch.targets).sum().double(), batch.size

    def window_metric(self, output: Tensor, target: Tensor) -> Tensor:
        """Share of the batch whose label the window's last step names (0-dim)."""
        return self.correct(output, target).float().mean()

    def state_dict(self) -> dict[str, Tensor]:
        """The permutation of the pixels, so that a run keeps its own for ever."""
        return {"permutation": self.permutation}

    def validate_state(self, state: Mapping[str, Tensor]) -> str | None:
        """See `Task.validate_state`: each pixel comes once."""
        problem = super().validate_state(state)
        if problem is None and not torch.equal(state["permutation"].sort().values, torch.arange(len(self.permutation))):
            problem = "permutation is not one of the pixels"
        return problem

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the permutation of the run."""
        self.permutation = state["permutation"].cpu()
        self._place_permutation()

    def input_description(self) -> dict[str, Any]:
        """From bytes (pixels, channels) to inputs.

        (byte / 255 − mean) / deviation, per channel; the pixels permuted, their channels together;
        `pixels_per_step` pixels at a step.
        """
        return {
            "pixels_per_step": self.pixels_per_step,
            "channels": len(self.mean),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "permutation": self.permutation.tolist(),
        }

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) whether the last step of (S, B, C) names the label."""
        return output[-1].argmax(-1) == target

    def _epoch_order(self, epoch: int, device: torch.device) -> Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.train_examples)).to(device)

    def _batch(self, images: Tensor, labels: Tensor, indices: Tensor) -> Batch:
        pixels = images.transpose(0, 1)  # (P, B, C): as bytes, time-major costs little
        if self._shown is not None:
            pixels = pixels.index_select(0, self._shown)
        steps = pixels.unflatten(0, (self.length, self.pixels_per_step)).transpose(1, 2)  # (T, B, p, C)
        places = steps.to(torch.int32, memory_format=torch.contiguous_format)
        if len(self._channels) > 1:
            places += self._channels
        inputs = self._values.index_select(0, places.flatten()).view(self.length, len(labels), self.inputs)
        return Batch(inputs, labels.long(), indices)

    def _estimate(self, name: str, windows: int) -> LabelEstimate:
        match name:
            case "class_mean":
                return ClassMeanEstimate(CLASSES, windows)
            case "example":
                return ExampleEstimate(self.train_examples, CLASSES, windows)
            case _:
                return UniformEstimate(CLASSES)


def _folder(root: Path, dataset: Dataset) -> Path:
    return root / (cifar.FOLDER if dataset == "cifar10" else dataset)


def _splits(
    root: Path, dataset: Dataset, validation: int, examples: int | None, test: int | None
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Images and labels of each split.

    Raises:
        DataError: files missing or corrupt, or fewer images than asked for.
    """
    folder = _folder(root, dataset)
    images, labels, test_images, test_labels = _read(root, dataset)
    wanted = validation + (1 if examples is None else examples)
    if wanted > len(images):
        raise DataError(
            f"{folder} has {len(images)} training images, fewer than task.validation={validation} and "
            f"task.examples={examples or 'at least one'} together: type a smaller one of the two"
        )
    if test is not None and test > len(test_images):
        raise DataError(
            f"{folder} has {len(test_images)} test images, fewer than task.test={test}: type task.test=null for all"
        )
    if test is not None:
        chosen = np.random.default_rng([SPLIT_SEED, TEST_STREAM]).permutation(len(test_images))[:test]
        test_images, test_labels = test_images[chosen], test_labels[chosen]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    held_out, rest = order[:validation], order[validation:][:examples]
    return (
        {"train": images[rest], "validation": images[held_out], "test": test_images},
        {"train": labels[rest], "validation": labels[held_out], "test": test_labels},
    )


def _read(root: Path, dataset: Dataset) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Training images and labels, then test images and labels."""
    if dataset == "cifar10":
        return cifar.read_cifar10(root)
    folder, side = _folder(root, dataset), IMAGES[dataset].side
    images, labels = read_labelled_images(folder, "train", dataset, CLASSES)
    test_images, test_labels = read_labelled_images(folder, "t10k", dataset, CLASSES)
    check_identity(folder, {**_named("train", images, labels), **_named("t10k", test_images, test_labels)}, dataset)
    for found, where in ((images, "train"), (test_images, "t10k")):
        if found.shape[1:] != (side, side):
            size = f"{found.shape[1]} × {found.shape[2]} pixels, expected {side} × {side}"
            raise DataError(f"{folder}/{where}-images-idx3-ubyte: {size}")
    return images, labels, test_images, test_labels


def _named(part: str, images: NDArray, labels: NDArray) -> dict[str, NDArray]:
    """A part's arrays by their files' names."""
    return {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}


def _normalized(kind: Images) -> Tensor:
    """(C · 256,) what each byte of each channel becomes.

    Looked up and not computed for each batch: a GPU divides by multiplying with the reciprocal, which rounds otherwise.
    """
    values = torch.arange(256).float().div_(255.0)
    constants = zip(torch.tensor(kind.mean), torch.tensor(kind.deviation), strict=True)
    return torch.cat([values.sub(mean).div_(deviation) for mean, deviation in constants])


def _bytes(images: NDArray, kind: Images) -> Tensor:
    """(N, pixels, channels)."""
    return torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), kind.pixels, kind.channels)))
