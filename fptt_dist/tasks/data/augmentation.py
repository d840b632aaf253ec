"""Augmentation of images: every epoch shows each of them a little moved, and some mirrored."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.tasks.epoch_cache import EpochCache

STREAM = 2  # of the seed, apart from those that `shards` draws from


class Augmentation:
    """Moves each image by up to `shift` pixels each way, filled up with zeros; mirrors each with probability ½.

    The augmentation of an image is a pure function of the seed, the epoch and the image's id: it depends neither on the
    other images of the batch nor on the worker.

    Args:
        side: pixels of a row, and rows of an image.
        shift: pixels that an image moves at most: it is padded with so many zeros and cropped at a random place.
        mirror: whether images are mirrored, left to right.
        examples: N, how many images there are; their ids are 0 to N − 1.
        seed: of the draws.
    """

    def __init__(self, *, side: int, shift: int, mirror: bool, examples: int, seed: int) -> None:
        self._side, self._shift, self._mirror, self._examples, self._seed = side, shift, mirror, examples, seed
        self._draws = EpochCache(self._epoch_draws)

    def __call__(self, images: Tensor, epoch: int, examples: Tensor) -> Tensor:
        """The images as `epoch` shows them.

        Args:
            images: (B, side · side, channels), before normalization, in reading order.
            epoch: from 0.
            examples: (B,) their ids, on the images' device.
        """
        side, shift = self._side, self._shift
        places = 2 * shift + 1
        draw = self._draws(epoch, images.device)[examples]
        corner = torch.arange(side, device=images.device)
        rows = (draw % places)[:, None] + corner
        columns = (draw // places % places)[:, None] + corner
        mirrored = draw // places**2 == 1
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        padded = functional.pad(images.unflatten(1, (side, side)), (0, 0, shift, shift, shift, shift))
        image = torch.arange(len(images), device=images.device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].flatten(1, 2)

    def _epoch_draws(self, epoch: int, device: torch.device) -> Tensor:
        """(N,) one number per image: row and column where its crop begins, and whether it is mirrored.

        One number each, so that an image's draw does not depend on how many images follow it.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(STREAM, epoch)))
        draws = rng.integers(0, (2 * self._shift + 1) ** 2 * (1 + self._mirror), self._examples)
        return torch.from_numpy(draws).to(device)
