"""Images read as sequences of pixels, row by row, a few at a time; one label a sequence."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fptt_dist.algorithm.estimates import ClassMeanEstimate, ExampleEstimate, LabelEstimate, UniformEstimate
from fptt_dist.algorithm.losses import TerminalLoss
from fptt_dist.tasks.data_error import DataError
from fptt_dist.tasks.idx import read_labelled_images
from fptt_dist.tasks.shards import Shard, Shards
from fptt_dist.tasks.task import Batch, Split, Task, share

CLASSES = 10
SIDE = 28  # of an image
PIXELS = SIDE * SIDE
EVALUATION_BATCH = 500
SPLIT_SEED = 20210711  # of the validation split and the subset of examples: the same for all runs

Dataset = Literal["mnist", "fashion-mnist"]
NORMALISATION = {
    "mnist": (0.1307, 0.3081),
    "fashion-mnist": (0.2860, 0.3530),
}  # mean and deviation of a pixel in [0, 1]


class Pixels(Task):
    """Sequential (or permuted) MNIST and Fashion-MNIST: p pixels at each of 784 / p steps.

    Images stay in memory as bytes and are gathered for each batch. The validation set is held out of the training
    images; both are the same whatever the run's seed is.

    Args:
        root: folder that holds `mnist/` or `fashion-mnist/` with the four IDX files, plain or gzipped.
        dataset: which of them.
        pixels_per_step: p, a divisor of 784.
        permutation: seed of the fixed permutation of the pixels; None leaves them in reading order.
        validation: images held out of the 60,000.
        examples: training images used of the rest; None: all.
        estimate: Q of the terminal loss, "uniform", "class_mean" or "example".
        reads: "last": loss at the window's last step; "every": at every step.
        windows: K, for the estimate's tables.
        seed: of the order of the examples.

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
        estimate: Literal["uniform", "class_mean", "example"] = "uniform",
        reads: Literal["last", "every"] = "last",
        windows: int = 1,
        seed: int = 0,
    ) -> None:
        folder = root / dataset
        images, labels = read_labelled_images(folder, "train", dataset, CLASSES)
        test_images, test_labels = read_labelled_images(folder, "t10k", dataset, CLASSES)
        for found, where in ((images, "train"), (test_images, "t10k")):
            if found.shape[1:] != (SIDE, SIDE):
                size = f"{found.shape[1]} × {found.shape[2]} pixels, expected {SIDE} × {SIDE}"
                raise DataError(f"{folder}/{where}-images-idx3-ubyte: {size}")
        wanted = validation + (1 if examples is None else examples)
        if wanted > len(images):
            raise DataError(
                f"{folder} has {len(images)} training images, fewer than task.validation={validation} and "
                f"task.examples={examples or 'at least one'} together"
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        held_out, rest = order[:validation], order[validation:][:examples]
        self.inputs = pixels_per_step
        self.length = PIXELS // pixels_per_step
        self.train_examples = len(rest)
        self.seed = seed
        self.permutation = torch.arange(PIXELS)
        if permutation is not None:
            self.permutation = torch.from_numpy(np.random.default_rng(permutation).permutation(PIXELS))
        self.mean, self.deviation = NORMALISATION[dataset]
        self._images = {
            "train": _bytes(images[rest]),
            "validation": _bytes(images[held_out]),
            "test": _bytes(test_images),
        }
        self._labels = {
            "train": torch.from_numpy(labels[rest].astype(np.int64)),
            "validation": torch.from_numpy(labels[held_out].astype(np.int64)),
            "test": torch.from_numpy(test_labels.astype(np.int64)),
        }
        self.loss = TerminalLoss(self._estimate(estimate, windows), reads=reads)
        self._order = lru_cache(maxsize=2)(self._epoch_order)
        self._shard: Shard | None = None

    def deal(self, shards: Shards, rank: int, world: int) -> None:
        """As for every task; the labels are the images' digits or kinds of clothes."""
        labels = self._labels["train"]
        by = labels if shards == "by_label" else None
        self._shard = None if shards == "shuffled" else Shard(len(labels), rank, world, seed=self.seed, labels=by)
        self.train_examples = self._shard.dealt if self._shard else len(labels)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Images `part` of the global batch at `cursor` of the epoch's own order, or this worker's own."""
        if self._shard is None:
            return self._gather("train", self._order(epoch)[cursor : cursor + size][part])
        return self._gather("train", self._shard.batch(epoch, cursor, size, part))

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the held-out or test images, at most 500 at a time."""
        indices = torch.arange(len(self._labels[split]))[share(len(self._labels[split]), rank, world)]
        for part in indices.split(EVALUATION_BATCH):
            if len(part):
                yield self._gather(split, part)

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Number of images whose label the last step names, and number of images."""
        return self.correct(output, batch.targets).sum().double(), batch.size

    def window_metric(self, output: Tensor, target: Tensor) -> Tensor:
        """Share of the batch whose label the window's last step names (0-dim)."""
        return self.correct(output, target).float().mean()

    def state_dict(self) -> dict[str, Tensor]:
        """The permutation of the pixels, so that a run keeps its own for ever."""
        return {"permutation": self.permutation}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the permutation of the run."""
        self.permutation = state["permutation"]

    def input_description(self) -> dict[str, Any]:
        """From bytes to inputs: (byte / 255 − mean) / deviation, permuted, `pixels_per_step` at a step."""
        return {
            "pixels_per_step": self.inputs,
            "mean": self.mean,
            "deviation": self.deviation,
            "permutation": self.permutation.tolist(),
        }

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) whether the last step of (S, B, C) names the label."""
        return output[-1].argmax(-1) == target

    def _epoch_order(self, epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.train_examples))

    def _gather(self, split: str, indices: Tensor) -> Batch:
        pixels = self._images[split][indices][:, self.permutation].float().div_(255.0)
        pixels.sub_(self.mean).div_(self.deviation)
        sequences = pixels.view(len(indices), self.length, self.inputs).transpose(0, 1).contiguous()
        return Batch(sequences, self._labels[split][indices], indices)

    def _estimate(self, name: str, windows: int) -> LabelEstimate:
        match name:
            case "class_mean":
                return ClassMeanEstimate(CLASSES, windows)
            case "example":
                return ExampleEstimate(self.train_examples, CLASSES, windows)
            case _:
                return UniformEstimate(CLASSES)


def _bytes(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), PIXELS)))
