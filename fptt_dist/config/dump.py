"""A configuration as text that `load` reads back."""

from collections.abc import Iterator, Mapping
from typing import Any

from fptt_dist.config.rules import Config
from fptt_dist.config.values import show


def dump(config: Config) -> str:
    """YAML 1.2 text with every value of `config`, defaults included."""
    return "".join(_lines(config.model_dump(), ""))


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """The lines of one section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{show(key)}:\n"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{show(key)}: {show(value)}\n"
