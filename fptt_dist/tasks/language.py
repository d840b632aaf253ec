"""Language modeling: the next word or character of a text."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm.losses import IGNORED, SequenceLoss
from fptt_dist.tasks.base import Batch, Split, Task, rank_slice
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.text import MIN_COUNT, own_text, penn_treebank
from fptt_dist.tasks.data.unknown import TokenLevel, summary, warn
from fptt_dist.tasks.epoch_cache import EpochCache

SPLITS = ("train", "validation", "test")
EVALUATION_STREAMS, EVALUATION_STEPS = 10, 64
USUAL = 0.95  # share of the sequences whose mean length is the usual one; the others' is half of it
SHORTEST = 5  # steps of a sequence of random length


class Language(Task):
    """A text as B streams side by side; the recurrent state goes from each sequence to the next.

    The training text is cut into B columns of equal length L; sequence b of every global batch is the next piece of
    column b. With `length_std` σ = 0 all pieces have `length` steps, and the remainder of a column is left out, at its
    beginning and end as drawn for each epoch. With σ > 0 they have random lengths (Merity, Keskar & Socher 2018), drawn
    for each epoch and scaled such that they fill the columns exactly; the learning rate is in proportion to them.

    The metric is the perplexity exp(mean of −ln p) of words, or the bits log₂ 1/p of a character.

    Args:
        root: folder that holds `ptb/`.
        text_dir: folder with train.txt, valid.txt and test.txt; None: the Penn Treebank in `root`.
        token_level: what a step reads and predicts.
        min_count: symbols that train.txt of `text_dir` has less often are read as "<unk>".
        vocabulary: of the run that the task is built for; None: the training text's.
        length: steps of a (usual) sequence.
        length_std: σ, standard deviation of the lengths.
        streams: B, sequences of a global batch.
        windows: K; no sequence is shorter.
        train_tokens: training tokens used, from the first; None: all. The vocabulary is the whole file's.
        eval_tokens: tokens of the validation and of the test part used each; None: all.
        seed: of the lengths and of what is left out.

    Raises:
        DataError: files missing or wrong, a text too short, or more tokens asked for than there are.
    """

    name = "language"
    inputs = 1
    higher_is_better = False
    stateful = True

    def __init__(
        self,
        *,
        root: Path,
        text_dir: Path | None = None,
        token_level: TokenLevel = "word",
        min_count: int = MIN_COUNT,
        vocabulary: list[str] | None = None,
        length: int = 70,
        length_std: float = 0.0,
        streams: int,
        windows: int = 1,
        train_tokens: int | None = None,
        eval_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        read = (
            penn_treebank(root, token_level, vocabulary)
            if text_dir is None
            else own_text(text_dir, token_level, min_count=min_count, vocabulary=vocabulary)
        )
        self.token_level: TokenLevel = token_level
        self.metric = "perplexity" if token_level == "word" else "bits_per_character"
        self.vocabulary = read.vocabulary
        self.vocabulary_size = self.outputs = len(read.vocabulary)
        self.length = length
        self.deviation = length_std
        self.scale_lr_by_length = length_std > 0
        self.streams = streams
        self.seed = seed
        self.loss = SequenceLoss()
        self.train_path = read.paths[0]
        asked = (
            ("task.train_tokens", train_tokens),
            ("task.eval_tokens", eval_tokens),
            ("task.eval_tokens", eval_tokens),
        )
        self._ids = {
            split: torch.from_numpy(_first(ids, path, *limit).astype(_smallest(self.vocabulary_size)))
            for split, ids, path, limit in zip(SPLITS, read.ids, read.paths, asked, strict=True)
        }
        unknown = [read.unknown(part, len(ids)) for part, ids in enumerate(self._ids.values())]
        warn(unknown, read.paths, set(read.vocabulary), token_level)
        self.unknown_tokens = summary(dict(zip(SPLITS, unknown, strict=True)))
        self._shortest = max(SHORTEST, windows)
        self._check_length()
        column = len(self._ids["train"]) // streams
        self._predictions = column - 1
        self._sequences = self._predictions // length
        if self.scale_lr_by_length:
            mean = length * (USUAL + (1 - USUAL) / 2)
            self._sequences = min(max(1, round(self._predictions / mean)), self._predictions // self._shortest)
        self.train_examples = self._sequences * streams
        self._bounds = EpochCache(self._epoch_bounds)
        self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> None:
        """Move the whole text, as ids of a byte each where there are at most 256 symbols."""
        self._device = device
        self._ids = {split: ids.to(device) for split, ids in self._ids.items()}
        column = self._predictions + 1
        self._columns = self._ids["train"][: self.streams * column].view(self.streams, column)

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """The columns of `part`, at sequence cursor / size of the epoch: inputs and targets (T, B) int64.

        Raises:
            ValueError: `size` is not the number of streams, or `cursor` is not where a batch of the epoch starts.
        """
        if size != self.streams:
            raise ValueError(f"a batch of {size} sequences of {self.streams} streams: each batch takes one of each")
        if cursor % size or not 0 <= cursor < self.train_examples:
            raise ValueError(
                f"no batch starts at example {cursor}: expected a multiple of {size} below {self.train_examples}"
            )
        start, stop = self._bounds(epoch)[cursor // size : cursor // size + 2].tolist()
        piece = self._columns[part, start : stop + 1].t().long()
        return Batch(piece[:-1].contiguous(), piece[1:].contiguous(), per_step_targets=True)

    def chunks(
        self,
        split: Literal["train", "validation", "test"],
        *,
        streams: int,
        steps: int,
        part: slice = slice(None),
    ) -> Iterator[Batch]:
        """All N − 1 predictions of `split`, each once: contiguous streams side by side, in consecutive chunks.

        Streams differ by at most one prediction; shorter ones end with targets −100, which are not scored. The state
        goes from chunk to chunk. Every `part` gives equally many chunks, unless it has no stream.

        Args:
            split: what is read.
            streams: how many; fewer where there are fewer predictions.
            steps: of a chunk; the last one may have fewer.
            part: the streams wanted.
        """
        ids = self._ids[split]
        predictions = len(ids) - 1
        streams = min(streams, predictions)
        shares = [rank_slice(predictions, stream, streams) for stream in range(streams)]
        longest = max(own.stop - own.start for own in shares)
        wanted = shares[part]
        if not wanted:
            return
        first, last = torch.tensor([[own.start, own.stop] for own in wanted], device=self._device).unbind(1)
        for start in range(0, longest, steps):
            place = first + torch.arange(start, min(start + steps, longest), device=self._device).unsqueeze(1)
            scored = place < last
            place = torch.where(scored, place, 0)
            inputs, targets = ids[place].long(), ids[place + 1].long()
            yield Batch(inputs.masked_fill_(~scored, 0), targets.masked_fill_(~scored, IGNORED), per_step_targets=True)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of ten streams, in chunks of 64 steps."""
        part = rank_slice(EVALUATION_STREAMS, rank, world)
        return self.chunks(split, streams=EVALUATION_STREAMS, steps=EVALUATION_STEPS, part=part)

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Sum of −ln p of the targets, and their number; one step at a time in float64, which all would not fit in."""
        total = torch.zeros((), dtype=torch.float64, device=output.device)
        for logits, targets in zip(output, batch.targets, strict=True):
            total += functional.cross_entropy(logits.double(), targets, ignore_index=IGNORED, reduction="sum")
        return total, int((batch.targets != IGNORED).sum())

    def value(self, mean: float) -> float:
        """exp(mean) for words (inf where that overflows), mean / ln 2 for characters."""
        if self.token_level == "character":
            return mean / math.log(2)
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf

    def train_digest(self) -> str:
        """Return the SHA-256 of the training tokens that are used, as ids."""
        return hashlib.sha256(self._ids["train"].cpu().numpy().tobytes()).hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """The SHA-256 of the vocabulary and its size, so that a run resumes only with its own text."""
        digest = hashlib.sha256("\n".join(self.vocabulary).encode()).digest()
        return {
            "vocabulary": torch.tensor(list(digest), dtype=torch.uint8),
            "symbols": torch.tensor(self.outputs),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Check that the checkpoint's vocabulary is this text's.

        Raises:
            DataError: it is another one, so ids would mean other symbols.
        """
        own = self.state_dict()
        if not all(torch.equal(state[name].cpu(), own[name]) for name in own):
            raise DataError(
                f"{self.train_path}: its vocabulary ({self.outputs} symbols) is not the checkpoint's "
                f"({int(state['symbols'])} symbols): the run needs the text that it was trained on"
            )

    def input_description(self) -> dict[str, Any]:
        """Return the token level, and the symbols in the order of their ids."""
        return {"token_level": self.token_level, "vocabulary": self.vocabulary}

    def _check_length(self) -> None:
        steps = max(self.length, self._shortest) if self.scale_lr_by_length else self.length
        found, needed = len(self._ids["train"]), self.streams * (steps + 1)
        if found < needed:
            raise DataError(
                f"{self.train_path}: {found} tokens used for training are too few for task.length={self.length} and "
                f"train.batch_size={self.streams}: {self.streams} streams of {steps} + 1 tokens need {needed}. "
                "Type a smaller task.length or train.batch_size"
            )

    def _epoch_bounds(self, epoch: int) -> NDArray[np.int64]:
        """(n + 1,) where the epoch's n sequences begin and end in every column."""
        count, predictions = self._sequences, self._predictions
        rng = np.random.default_rng([self.seed, epoch])
        if not self.scale_lr_by_length:
            offset = rng.integers(0, predictions - count * self.length, endpoint=True)
            return offset + self.length * np.arange(count + 1)
        means = np.where(rng.random(count) < USUAL, self.length, self.length / 2)
        drawn = np.rint(rng.normal(means, self.deviation)).clip(max=2 * self.length)
        # Only what is drawn beyond the shortest length is scaled, so that no sequence gets shorter than that.
        beyond = (drawn - self._shortest).clip(min=0).astype(np.int64).cumsum()
        if beyond[-1] == 0:
            beyond = np.arange(1, count + 1)
        beyond = (beyond * (predictions - count * self._shortest) + beyond[-1] // 2) // beyond[-1]
        return np.concatenate([[0], beyond + self._shortest * np.arange(1, count + 1)])


def _smallest(symbols: int) -> type[np.integer]:
    """The smallest type of integers that holds the ids of so many symbols."""
    return np.uint8 if symbols <= 256 else np.int16 if symbols <= 1 << 15 else np.int32


def _first(ids: NDArray[np.int32], path: Path, key: str, limit: int | None) -> NDArray[np.int32]:
    if limit is not None and limit > len(ids):
        raise DataError(f"{path} has {len(ids)} tokens, fewer than {key}={limit}: type {key}=null for all")
    ids = ids[:limit]
    if len(ids) < 2:
        raise DataError(f"{path}: {len(ids)} token(s), expected at least 2, one to read and one to predict")
    return ids
