"""Predictions for a text: the probability that the network gives to each next token."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fptt_dist.config import LanguageTask
from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.text import END
from fptt_dist.tasks.data.unknown import SHOWN, UNKNOWN, named
from fptt_dist.training.predict.series import STEP, STEPS
from fptt_dist.training.saved_run import SavedRun
from fptt_dist.types import State

HEADER = [STEP, "token", "probability"]


class TextPrediction:
    """A text read as the run's own was, word by word or character by character.

    Args:
        run: of a language model.
        source: name of the text, for messages.
    """

    def __init__(self, run: SavedRun, source: str) -> None:
        assert isinstance(run.config.task, LanguageTask)
        self._network, self._device, self._source = run.network, run.device, source
        self._level = run.config.task.token_level
        self._separated = self._level == "word" or run.config.task.text_dir is None
        self._ids = {symbol: place for place, symbol in enumerate(run.input["vocabulary"])}
        self._unknown: Counter[str] = Counter()
        self._nats, self._predicted, self._tokens_read = 0.0, 0, 0

    @torch.no_grad()
    def rows(self, lines: Iterable[str], *, window: int = STEPS) -> Iterator[list[Any]]:
        """Yield each token's number, the token, and its probability given those before it (None of the first).

        Args:
            lines: the text's.
            window: tokens that are read at once; 1 answers each one before the next is read.

        Raises:
            DataError: no text, or a symbol that the vocabulary lacks where it has no "<unk>".
        """
        state: State = None
        before: Tensor | None = None  # (1, V) log-probabilities of the next token
        tokens = self._tokens(lines)
        while part := list(islice(tokens, window)):
            ids = torch.tensor([self._id_of(token) for token in part], device=self._device)
            output, state = self._network(ids.unsqueeze(1), state)
            after = output[:, 0].double().log_softmax(-1)
            expected = after[:-1] if before is None else torch.cat((before, after[:-1]))
            known = ids[len(ids) - len(expected) :]
            values = expected.gather(1, known.unsqueeze(1))[:, 0].tolist()
            self._nats -= math.fsum(values)
            self._predicted += len(values)
            before = after[-1:]
            chances = [None] * (len(part) - len(values)) + [math.exp(value) for value in values]
            for token, chance in zip(part, chances, strict=True):
                yield [self._tokens_read, token, chance]
                self._tokens_read += 1
        if not self._tokens_read:
            raise DataError(f"{self._source} has no text: expected more than white space")

    def summary(self) -> str:
        """Return perplexity or bits per character of what was read, and which symbols were read as "<unk>"."""
        said = "no token had one before it"
        if self._predicted and self._level == "character":
            mean = self._nats / self._predicted / math.log(2)
            said = f"{mean:.5g} bits per character over {self._predicted} characters"
        elif self._predicted:
            said = f"perplexity {math.exp(min(self._nats / self._predicted, 700)):.5g} over {self._predicted} words"
        if not self._unknown:
            return said
        shown = ", ".join(f"{named(symbol)} {number}×" for symbol, number in self._unknown.most_common(SHOWN))
        more = ", …" if len(self._unknown) > SHOWN else ""
        return f"{said}; {self._unknown.total()} of {self._tokens_read} tokens are read as {UNKNOWN} ({shown}{more})"

    def _id_of(self, token: str) -> int:
        found = self._ids.get(token)
        if found is not None:
            return found
        if UNKNOWN not in self._ids:
            raise DataError(
                f"{self._source}: {named(token)} is not among the {len(self._ids)} symbols of the run, which have no "
                f"{UNKNOWN}"
            )
        self._unknown[token] += 1
        return self._ids[UNKNOWN]

    def _tokens(self, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines):
            text = line.removeprefix("\ufeff") if number == 0 else line
            if not self._separated:
                yield from text
            elif text.endswith("\n") or text.strip():  # the last line has an end too
                yield from (*text.split(), END)
