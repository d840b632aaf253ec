"""Single keys set over a configuration: from the command line, a sweep, a job array or a test."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.merge import Layer, merge, validated
from fptt_dist.config.loading.yaml import parse
from fptt_dist.config.rules import Config
from fptt_dist.config.schema.section import KeyPath, explicit, leaves
from fptt_dist.config.values import show


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with the dotted keys of `overrides` set; their order does not matter.

    A value may be a whole section, which is merged in. Choosing another variant of a section drops the keys that
    were set for the old one; the log "fptt_dist" tells which. Raises ConfigError with all problems, one per line.
    """
    return validated(merge(Layer(explicit(config)), override_layer(overrides)), Config)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """The overrides that words like `optimizer.lr=1e-3` ask for; the value is YAML 1.2.

    Raises ConfigError for a word without "=", without a key or a value, or with a key that another word has.
    """
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {word}: not of the form key=value, such as optimizer.lr=1e-3")
        if not text.strip() or text.lstrip().startswith("#"):
            raise ConfigError(f"override {word}: the value is empty; type {key}=null for none")
        if key in overrides:
            raise ConfigError(f"override {word}: {key} is given twice, first as {show(overrides[key])}")
        overrides[key] = _value(word, text)
    return overrides


def override_layer(overrides: Mapping[str, Any], kind: str = "override") -> Layer:
    """The nested values of `overrides`; each knows the override it comes from, a key of a mapping by its name alone.

    Raises ConfigError for a key that is not text and for overrides that set one key twice.
    """
    values: dict[str, Any] = {}
    where: dict[KeyPath, str] = {}
    for key, value in overrides.items():
        origin = f"override {key}={show(value)}" if kind == "override" else f"{kind} {key}"
        for path, leaf in leaves({key: value}):
            if not all(isinstance(part, str) for part in path):
                raise ConfigError(f"{origin}: its keys must be text")
            value = str(leaf) if kind == "key" and isinstance(leaf, PurePath) else leaf
            _insert(values, (*key.split("."), *path[1:]), value, origin, where)
    return Layer(values, where)


def _value(word: str, text: str) -> Any:
    """The YAML value `text` of the override `word`."""
    return parse(text, lambda _: f"override {word}")[0]


def _insert(values: dict[str, Any], path: KeyPath, leaf: Any, origin: str, where: dict[KeyPath, str]) -> None:
    """Set `leaf` at `path` of the nested `values` and note its origin; ConfigError when something else is there."""
    for size, part in enumerate(path, start=1):
        here = path[:size]
        inner = {} if size < len(path) or leaf == {} else leaf
        if part in values and not (inner == {} and isinstance(values[part], dict)):
            raise ConfigError(f"{'.'.join(here)} is given twice: {where[here]} and {origin}")
        where[here] = origin
        values = values.setdefault(part, inner)
