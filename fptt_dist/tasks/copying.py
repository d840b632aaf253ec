"""The copy memory task (Hochreiter & Schmidhuber 1997): say a few symbols again after a long silence."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm.losses import SequenceLoss
from fptt_dist.tasks.task import Batch, Split, Task, share

STREAMS = {"train": 0, "validation": 1, "test": 2}
EVALUATION_BATCH = 500


class Copying(Task):
    """`symbols` symbols, `delay` − 1 blanks, a marker, and `symbols` blanks in which the symbols must be said again.

    Inputs are one-hot over alphabet + blank + marker, targets are alphabet + blank at each of the delay + 2·symbols
    steps. Not remembering anything has a loss of symbols·ln(alphabet)/T and names 1/alphabet of the symbols.

    Args:
        delay: steps between the last symbol and the first recalled one, at least 1 (the marker's).
        symbols: how many are to be kept.
        alphabet: how many there are.
        examples: training sequences an epoch, generated afresh every epoch.
        validation: sequences of the fixed validation set.
        test: sequences of the fixed test set.
        seed: of the training sequences.
    """

    name = "copying"
    metric = "recall"
    higher_is_better = True

    def __init__(
        self,
        *,
        delay: int = 100,
        symbols: int = 10,
        alphabet: int = 8,
        examples: int = 12800,
        validation: int = 1000,
        test: int = 1000,
        seed: int = 0,
    ) -> None:
        self.delay, self.symbols, self.alphabet = delay, symbols, alphabet
        self.inputs = alphabet + 2
        self.outputs = alphabet + 1
        self.length = delay + 2 * symbols
        self.train_examples = examples
        self.sizes = {"validation": validation, "test": test}
        self.seed = seed
        self.loss = SequenceLoss()

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch: the whole batch is generated, then sliced."""
        return self._generate([STREAMS["train"], self.seed, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set, at most 500 sequences at a time."""
        for start in range(0, self.sizes[split], EVALUATION_BATCH):
            size = min(EVALUATION_BATCH, self.sizes[split] - start)
            batch = self._generate([STREAMS[split], start], size).select(share(size, rank, world))
            if batch.size:
                yield batch

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Number of symbols said again rightly in the last `symbols` steps, and number of symbols."""
        right = output[-self.symbols :].argmax(-1) == batch.targets[-self.symbols :]
        return right.sum().double(), right.numel()

    def _generate(self, seed: list[int], size: int) -> Batch:
        blank, marker = self.alphabet, self.alphabet + 1
        symbols = torch.from_numpy(np.random.default_rng(seed).integers(0, self.alphabet, (self.symbols, size)))
        tokens = torch.full((self.length, size), blank)
        tokens[: self.symbols] = symbols
        tokens[self.symbols + self.delay - 1] = marker
        targets = torch.full((self.length, size), blank)
        targets[-self.symbols :] = symbols
        return Batch(functional.one_hot(tokens, self.inputs).float(), targets, targets_in_time=True)
