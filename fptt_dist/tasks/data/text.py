"""Reading a text: three files, one vocabulary, ids."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.datasets import DATASETS
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import is_file

TokenLevel = Literal["word", "character"]
END = "<eos>"  # of a line, where symbols are separated by blanks
UNKNOWN = "<unk>"
PIECE = 1 << 20  # characters turned into ids at a time
_SIZES = {file.name: file.bytes for file in DATASETS["ptb"].files if file.bytes is not None}
PENN_TREEBANK = {
    "word": {name: size for name, size in _SIZES.items() if ".char." not in name},
    "character": {name: size for name, size in _SIZES.items() if ".char." in name},
}  # bytes
FILES = ("train.txt", "valid.txt", "test.txt")
LOG = logging.getLogger("fptt_dist")


@dataclass(frozen=True)
class Text:
    """A text in three parts, as ids of one vocabulary.

    Attributes:
        vocabulary: V symbols; an id is a place in it. By falling frequency in the training part, ties by the symbol.
        paths: the files of the training, validation and test part.
        ids: (N,) int32 each, in the order of `paths`.
    """

    vocabulary: list[str]
    paths: list[Path]
    ids: list[NDArray[np.int32]]


def penn_treebank(root: Path, token_level: TokenLevel) -> Text:
    """Mikolov's Penn Treebank: 10,000 words, or 50 characters ("_" is the blank); each line's end is a symbol.

    Args:
        root: folder that holds `ptb/`.
        token_level: words of `ptb.*.txt`, or characters of `ptb.char.*.txt`.

    Raises:
        DataError: a file is missing, of another size or not UTF-8; the message says what gets it.
    """
    folder, sizes = root / "ptb", PENN_TREEBANK[token_level]
    again = f"fptt-dist data fetch ptb --root {root}"
    for name, expected in sizes.items():
        if not is_file(folder / name):
            raise DataError(
                f"{folder} has no {name}. Get the Penn Treebank with: {again}; or type data.root=… for the folder "
                "that holds ptb/, or task.text_dir=… for a folder with a text of your own"
            )
        found = (folder / name).stat().st_size
        if found != expected:
            guess = "truncated?" if found < expected else "another text?"
            raise DataError(f"{folder / name} has {found} bytes, expected {expected} ({guess}). Get it with: {again}")
    return _read([folder / name for name in sizes], separated=True)


def own_text(folder: Path, token_level: TokenLevel) -> Text:
    """A text of one's own: train.txt, valid.txt and test.txt, UTF-8.

    The vocabulary is train.txt's. Symbols that it lacks are read as its "<unk>"; where it has none, so are the symbols
    that it has only once, and a warning says so.

    Args:
        folder: that holds the three files.
        token_level: words, split at white space, each line's end "<eos>"; or characters as they stand,
            newlines among them.

    Raises:
        DataError: a file is missing, empty or not UTF-8, or has symbols that cannot be read as "<unk>".
    """
    for name in FILES:
        if not is_file(folder / name):
            what = f"{folder} has no {name}" if folder.is_dir() else f"{folder} is no folder"
            raise DataError(
                f"{what}: type task.text_dir=… for a folder that holds {FILES[0]}, {FILES[1]} and {FILES[2]}"
            )
    return _read([folder / name for name in FILES], separated=token_level == "word")


def _read(paths: list[Path], *, separated: bool) -> Text:
    index: defaultdict[str, int] = defaultdict()  # a new symbol's number is how many there are before it
    index.default_factory = index.__len__
    train = _numbers(paths[0], index, separated)
    counts = np.bincount(train)
    numbers = [train, *(_numbers(path, index, separated) for path in paths[1:])]
    reads_as = _reads_as(paths, numbers, counts, index, END if separated else "\n")
    totals = np.zeros(len(index), dtype=np.int64)
    np.add.at(totals, reads_as[: len(counts)], counts)
    symbols = list(index)
    order = sorted(np.flatnonzero(totals).tolist(), key=lambda number: (-totals[number], symbols[number]))
    ids = np.zeros(len(index), dtype=np.int32)
    ids[order] = np.arange(len(order))
    ids = ids[reads_as]
    return Text([symbols[number] for number in order], paths, [ids[part] for part in numbers])


def _reads_as(
    paths: list[Path], numbers: list[NDArray], counts: NDArray, index: defaultdict[str, int], end: str
) -> NDArray:
    """The number that each symbol's number is read as: its own, or that of "<unk>", which joins `index` if needed."""
    known = len(counts)
    if len(index) == known:
        return np.arange(known)
    unknown = index[UNKNOWN]
    reads_as = np.arange(len(index))
    reads_as[known:] = unknown
    if unknown < known:
        return reads_as
    once = counts == 1
    if not once.any():
        raise DataError(_first_unknown(paths, numbers, known, index, end))
    reads_as[:known][once] = unknown
    lacking = [
        f"{np.unique(part[part >= known]).size} symbols of {path}"
        for path, part in zip(paths[1:], numbers[1:], strict=True)
        if part.max() >= known
    ]
    LOG.warning(
        f"{' and '.join(lacking)} are not in {paths[0]}, which has no {UNKNOWN}: they are read as {UNKNOWN}, and so "
        f"are the {once.sum()} symbols that it has only once"
    )
    return reads_as


def _first_unknown(
    paths: list[Path], numbers: list[NDArray], known: int, index: defaultdict[str, int], end: str
) -> str:
    path, part = next((p, n) for p, n in zip(paths[1:], numbers[1:], strict=True) if n.max() >= known)
    place = int(np.argmax(part >= known))
    line = 1 + np.count_nonzero(part[:place] == index[end])
    return (
        f"{path}: {list(index)[part[place]]!r} in line {line} is not in {paths[0]}, which has no {UNKNOWN} to read it "
        f"as, and no symbol only once that could teach what {UNKNOWN} is like: add it to {paths[0]}, or write "
        f"{UNKNOWN} for rare symbols"
    )


def _numbers(path: Path, index: defaultdict[str, int], separated: bool) -> NDArray[np.int32]:
    """The symbols of a file by their numbers in `index`, which learns the new ones."""
    content = _content(path)
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
