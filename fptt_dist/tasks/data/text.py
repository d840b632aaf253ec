"""Reading a text: three files, one vocabulary, ids."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.datasets import DATASETS
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import is_file
from fptt_dist.tasks.data.nearby import get_it
from fptt_dist.tasks.data.unknown import SHOWN, UNKNOWN, TokenLevel, Unknown, named

END = "<eos>"  # of a line, where symbols are separated by blanks
MIN_COUNT = 2
LOG = logging.getLogger("fptt_dist")
PIECE = 1 << 20  # characters turned into ids at a time
_SIZES = {file.name: file.bytes for file in DATASETS["ptb"].files if file.bytes is not None}
PENN_TREEBANK = {
    "word": {name: size for name, size in _SIZES.items() if ".char." not in name},
    "character": {name: size for name, size in _SIZES.items() if ".char." in name},
}  # bytes
FILES = ("train.txt", "valid.txt", "test.txt")


@dataclass(frozen=True)
class Text:
    """A text in three parts, as ids of one vocabulary.

    Attributes:
        vocabulary: V symbols; an id is a place in it. By falling frequency in the training part, ties by the symbol.
        paths: the files of the training, validation and test part.
        symbols: S symbols of all parts, known or not.
        numbers: (N,) int32 each, in the order of `paths`: places in `symbols`.
        id_of: (S,) int32, the id that each symbol is read as.
    """

    vocabulary: list[str]
    paths: list[Path]
    symbols: list[str]
    numbers: list[NDArray[np.int32]]
    id_of: NDArray[np.int32]

    @property
    def ids(self) -> list[NDArray[np.int32]]:
        """(N,) int32 each, in the order of `paths`."""
        return [self.id_of[part] for part in self.numbers]

    def unknown(self, part: int, tokens: int) -> Unknown:
        """Return what is read as "<unk>" among the first `tokens` of part number `part`."""
        counts = np.bincount(self.numbers[part][:tokens], minlength=len(self.symbols))
        unknown = np.array([self.vocabulary[place] == UNKNOWN for place in self.id_of.tolist()])
        lacking = {
            self.symbols[number]: int(counts[number])
            for number in np.flatnonzero(unknown & (counts > 0)).tolist()
            if self.symbols[number] != UNKNOWN
        }
        commonest = sorted(lacking, key=lambda symbol: (-lacking[symbol], symbol))[:SHOWN]
        return Unknown(float(counts[unknown].sum() / tokens), {symbol: lacking[symbol] for symbol in commonest})


def penn_treebank(root: Path, token_level: TokenLevel, vocabulary: list[str] | None = None) -> Text:
    """Mikolov's Penn Treebank: 10,000 words, or 50 characters ("_" is the blank); each line's end is a symbol.

    The files have "<unk>" for rare words already, so their symbols stay as they are.

    Args:
        root: folder that holds `ptb/`.
        token_level: words of `ptb.*.txt`, or characters of `ptb.char.*.txt`.
        vocabulary: of the run that the text is read for, instead of the training part's.

    Raises:
        DataError: a file is missing, of another size or not UTF-8; the message says what gets it.
    """
    folder, sizes = root / "ptb", PENN_TREEBANK[token_level]
    again = f"fptt-dist data fetch ptb --root {root}"
    for name, expected in sizes.items():
        if not is_file(folder / name):
            get = get_it(root, folder / name)
            raise DataError(
                f"{folder} has no {name}. {get} the Penn Treebank with: {again}; or type data.root=… for the folder "
                "that holds ptb/, or task.text_dir=… for a folder with a text of your own"
            )
        found = (folder / name).stat().st_size
        if found != expected:
            guess = "truncated?" if found < expected else "another text?"
            raise DataError(f"{folder / name} has {found} bytes, expected {expected} ({guess}). Get it with: {again}")
    return _read([folder / name for name in sizes], separated=True, min_count=None, vocabulary=vocabulary)


def own_text(
    folder: Path, token_level: TokenLevel, *, min_count: int = MIN_COUNT, vocabulary: list[str] | None = None
) -> Text:
    """A text of one's own: train.txt, valid.txt and test.txt, UTF-8.

    The vocabulary has the symbols that train.txt has at least `min_count` times, the end of a line, and "<unk>", as
    which all others are read.

    Args:
        folder: that holds the three files.
        token_level: words, split at white space, each line's end "<eos>"; or characters as they stand,
            newlines among them.
        min_count: number of times that train.txt has each symbol of the vocabulary, at least.
        vocabulary: of the run that the text is read for, instead of train.txt's.

    Raises:
        DataError: a file is missing, empty or not UTF-8.
    """
    for name in FILES:
        if not is_file(folder / name):
            what = f"{folder} has no {name}" if folder.is_dir() else f"{folder} is no folder"
            raise DataError(
                f"{what}: type task.text_dir=… for a folder that holds {FILES[0]}, {FILES[1]} and {FILES[2]}"
            )
    return _read(
        [folder / name for name in FILES], separated=token_level == "word", min_count=min_count, vocabulary=vocabulary
    )


def _read(paths: list[Path], *, separated: bool, min_count: int | None, vocabulary: list[str] | None) -> Text:
    """Read the files; `min_count` None: all symbols of the training part, and no other "<unk>" than its own."""
    index: defaultdict[str, int] = defaultdict()  # a new symbol's number is how many there are before it
    index.default_factory = index.__len__
    numbers = [_numbers(path, index, separated) for path in paths]
    symbols = list(index)
    if vocabulary is None:
        counts = np.bincount(numbers[0], minlength=len(symbols))
        vocabulary = _vocabulary(symbols, counts, min_count, END if separated else "\n")
    places = {symbol: place for place, symbol in enumerate(vocabulary)}
    unknown = places.get(UNKNOWN)
    lacking = [symbol for symbol in symbols if symbol not in places]
    if lacking and unknown is None:
        raise DataError(
            f"{named(lacking[0])} in {paths[0].parent} is not among the {len(vocabulary)} symbols of the vocabulary, "
            f"which has no {UNKNOWN}: another text?"
        )
    ids = np.array([places.get(symbol, unknown) for symbol in symbols], dtype=np.int32)
    return Text(vocabulary, paths, symbols, numbers, ids)


def _vocabulary(symbols: list[str], counts: NDArray, min_count: int | None, end: str) -> list[str]:
    """The symbols, of which the training part has `counts`, without the rare ones; the end of a line is never rare.

    A text on one line has one end, and its other parts many.
    """
    found = {symbol: int(count) for symbol, count in zip(symbols, counts, strict=True) if count}
    totals = found
    if min_count is not None:
        totals = {symbol: count for symbol, count in found.items() if count >= min_count or symbol == end}
        rare = sum(count for symbol, count in found.items() if symbol not in totals)
        totals[UNKNOWN] = totals.get(UNKNOWN, 0) + rare
    return sorted(totals, key=lambda symbol: (-totals[symbol], symbol))


def _numbers(path: Path, index: defaultdict[str, int], separated: bool) -> NDArray[np.int32]:
    """The symbols of a file by their numbers in `index`, which learns the new ones."""
    content = _content(path)
    if separated and "\r" in content and "\n" not in content:
        LOG.warning(f"{path} has \\r (carriage return) and no newline: all of it is one line")
    if separated and content[content.rfind("\n") + 1 :].strip():
        content += "\n"  # the last line has an end too; blanks after the last newline are no line
    pieces = _pieces(content, separated)
    return np.concatenate([np.fromiter(map(index.__getitem__, p), dtype=np.int32, count=len(p)) for p in pieces])


def _pieces(content: str, separated: bool) -> Iterator[Sequence[str]]:
    """Symbols, a few lines at a time: a large text's would need many times its own memory."""
    start = 0
    while start < len(content):
        stop = content.find("\n", start + PIECE) + 1 or len(content)
        piece = content[start:stop]
        yield piece.replace("\n", f" {END} ").split() if separated else piece
        start = stop


def _content(path: Path) -> str:
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8").removeprefix("\ufeff")  # the byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} ({error.object[error.start]:#04x}), {error.reason}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not content or content.isspace():
        raise DataError(f"{path} has {len(raw)} bytes and no text: expected more than white space")
    return content
