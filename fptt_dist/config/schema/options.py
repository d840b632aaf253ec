"""Keyword arguments of a class of the user's: plain values that a configuration file can hold."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fptt_dist.config.schema.section import Conflict
from fptt_dist.config.values import show


def option_conflicts(section: str, options: Mapping[str, Any], taken: Mapping[str, str]) -> Iterator[Conflict]:
    """Yield the problems with the options of a section: names no argument can have, and values no file could hold.

    Args:
        section: name of the section that has `options`.
        options: keyword arguments by name.
        taken: names of arguments that are given anyway, with what to say of each.
    """
    for name, value in options.items():
        key = f"{section}.options.{name}"
        if name in taken:
            yield Conflict(f"{key}: {taken[name]}", (key,))
        elif not name.isidentifier():
            text = f"{section}.options: {show(name)} is no name of a keyword argument: write letters, digits and _"
            yield Conflict(text, (f"{section}.options",))
        elif not _is_plain(value):
            text = (
                f"{key}={show(value)} is not allowed; allowed: text, a finite number (64 bits), true, false, "
                "null, or lists and mappings of them"
            )
            yield Conflict(text, (key,))


def _is_plain(value: Any) -> bool:
    """Return whether a configuration file can hold the value."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or type(value) in (str, bool) or (type(value) is float and math.isfinite(value))
