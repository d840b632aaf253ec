"""Tokens of a text that are read as "<unk>": how many, which, and the warning that says so."""

import logging
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

TokenLevel = Literal["word", "character"]
UNKNOWN = "<unk>"
MANY = 0.2
"""Share of "<unk>" from which a metric says little about a text."""
SHOWN, LONGEST = 5, 30  # symbols of a message, characters of a symbol
CONTROLS = {"\r": "carriage return", "\n": "newline", "\t": "tab"}  # they have no Unicode name
LOG = logging.getLogger("fptt_dist")


@dataclass(frozen=True)
class Unknown:
    """Tokens of one part of a text that are read as "<unk>".

    Attributes:
        share: of all tokens, from 0 to 1; those that the file itself has as "<unk>" are counted too.
        commonest: the commonest symbols that the file has and the vocabulary lacks, with their numbers.
    """

    share: float
    commonest: dict[str, int]


def summary(parts: dict[str, Unknown]) -> dict[str, Any]:
    """Return the parts as plain values, as in result.json."""
    return {name: asdict(part) for name, part in parts.items()}


def many_unknown(parts: Mapping[str, Any]) -> str:
    """Return words to add to a test metric, " (31% <unk>)", where many of the tokens are unknown; else ""."""
    share = parts["test"]["share"] if "test" in parts else 0.0
    return f" ({share:.0%} {UNKNOWN})" if share > MANY else ""


def warn(parts: list[Unknown], paths: list[Path], known: Container[str], token_level: TokenLevel) -> None:
    """Warn where symbols of the training, validation or test part are read as "<unk>", or many tokens are.

    Args:
        parts: what is read as "<unk>" in each.
        paths: their files.
        known: the vocabulary.
        token_level: of the tokens.
    """
    many = max(part.share for part in parts) > MANY
    if not many and not any(part.commonest for part in parts):
        return
    tokens = "words and line ends" if token_level == "word" else "characters"
    shares = [_share(part, path) for part, path in zip(parts, paths, strict=True) if part.share]
    said = [f"of the {tokens}, {' and '.join(shares)} are read as {UNKNOWN}"]
    if parts[0].share == 0.0:
        said.append(
            f"Nothing in {paths[0]} is, so the model cannot learn what {UNKNOWN} is like: add these {token_level}s "
            f"there, or raise task.min_count so that its rarest ones become {UNKNOWN}"
        )
    hints = (_hint(symbol, known, paths[0]) for part in parts[1:] for symbol in part.commonest)
    said += list(dict.fromkeys(hint for hint in hints if hint is not None))
    if many and token_level == "word":
        said.append(
            f"Above {MANY:.0%} the perplexity is mostly that of {UNKNOWN}: type task.token_level=character to read "
            "the text by characters"
        )
    elif many:
        way_out = "type a smaller task.min_count" if parts[0].share > MANY else "are the files of one language?"
        said.append(f"Above {MANY:.0%} the bits are mostly those of {UNKNOWN}: {way_out}")
    LOG.warning(". ".join(said))


def named(symbol: str) -> str:
    """Return a symbol in quotes; characters that cannot be seen are escaped, and a single one is named."""
    short = symbol if len(symbol) <= LONGEST else f"{symbol[:LONGEST]}…"
    text = "".join(map(_visible, short))
    if len(symbol) > 1 or text == symbol:
        return f"'{text}'"
    name = CONTROLS.get(symbol) or unicodedata.name(symbol, f"U+{ord(symbol):04X}")
    return f"'{text}' ({name})"


def _visible(character: str) -> str:
    if character.isprintable() and not unicodedata.combining(character):
        return character
    return ascii(character)[1:-1]


def _share(part: Unknown, path: Path) -> str:
    if not part.commonest:
        return f"{part.share:.2%} of {path}"
    symbols = ", ".join(f"{named(symbol)} {number}×" for symbol, number in part.commonest.items())
    return f"{part.share:.2%} of {path}" + (f" ({symbols}, …)" if len(part.commonest) == SHOWN else f" ({symbols})")


def _hint(symbol: str, known: Container[str], train: Path) -> str | None:
    """Return the likely reason why the training text lacks a symbol: its line ends, or another Unicode form."""
    if symbol == "\r":
        return (
            f"A file whose lines end with \\r\\n or \\r is no continuation of {train}, whose lines end with \\n alone"
        )
    if symbol == "\n" and "\r" in known:
        return f"The lines of {train} end with \\r alone"
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, symbol)
        letters = len(symbol) == 1 and all(letter in known for letter in other)
        if other != symbol and (other in known or letters):
            return f"{named(symbol)} is in {train} in another Unicode form ({form}): write all files in the same one"
    if len(symbol) == 1 and unicodedata.combining(symbol):
        return (
            f"{named(symbol)} belongs to a letter in the Unicode form NFD: write all files in the same form as {train}"
        )
    return None
