"""The copy memory task (Hochreiter & Schmidhuber 1997): repeat a few symbols after a long delay."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm.losses import SequenceLoss
from fptt_dist.tasks.base import Batch
from fptt_dist.tasks.synthetic import SyntheticTask


class Copying(SyntheticTask):
    """`symbols` symbols, `delay` − 1 blanks, a marker, and `symbols` blanks in which the symbols must be recalled.

    Inputs are one-hot over alphabet + blank + marker, targets are alphabet + blank at each of the delay + 2·symbols
    steps. A network that remembers nothing has a loss of symbols·ln(alphabet)/T and recalls 1/alphabet of the symbols.

    Args:
        delay: steps between the last symbol and the first recalled one, at least 1 (the marker's).
        symbols: number of symbols to remember.
        alphabet: number of different symbols.
        examples: training sequences per epoch.
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
        super().__init__(examples=examples, validation=validation, test=test, seed=seed)
        self.delay, self.symbols, self.alphabet = delay, symbols, alphabet
        self.inputs = alphabet + 2
        self.outputs = alphabet + 1
        self.length = delay + 2 * symbols
        self.loss = SequenceLoss()

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Number of symbols recalled correctly in the last `symbols` steps, and number of symbols."""
        right = output[-self.symbols :].argmax(-1) == batch.targets[-self.symbols :]
        return right.sum().double(), right.numel()

    def generate(self, seed: list[int], size: int) -> Batch:
        """`size` sequences, a pure function of `seed`."""
        blank, marker = self.alphabet, self.alphabet + 1
        symbols = torch.from_numpy(np.random.default_rng(seed).integers(0, self.alphabet, (self.symbols, size)))
        tokens = torch.full((self.length, size), blank)
        tokens[: self.symbols] = symbols
        tokens[self.symbols + self.delay - 1] = marker
        targets = torch.full((self.length, size), blank)
        targets[-self.symbols :] = symbols
        return Batch(functional.one_hot(tokens, self.inputs).float(), targets, per_step_targets=True)
