"""One layer of a configuration over another, and their validation."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.messages import messages
from fptt_dist.config.rules import Config
from fptt_dist.config.schema.section import Choice, KeyPath, Section, choice_of, leaves, section_of
from fptt_dist.config.values import show

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Layer:
    """Values not validated yet: `where` says for a path what set it, `notes` what was dropped on the way."""

    values: dict[str, Any]
    where: dict[KeyPath, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def merge(base: Layer, top: Layer, schema: type[Section] = Config) -> Layer:
    """`top` over `base`, key by key; where `top` chooses another variant, the keys of the old one are dropped."""
    notes: list[str] = []
    values = _merged(base.values, top.values, schema, (), notes)
    where = {path: origin for path, origin in {**base.where, **top.where}.items() if _holds(values, path)}
    return Layer(values, where, (*base.notes, *top.notes, *notes))


def validated(layer: Layer, schema: type[S]) -> S:
    """Validate `layer` against a schema; its notes go to the log "fptt_dist".

    Raises ConfigError with all problems, one per line.
    """
    try:
        config = schema.model_validate(layer.values)
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error, layer.where, schema))) from error
    for note in layer.notes:
        logging.getLogger("fptt_dist").warning(note)
    return config


def _merged(
    base: Mapping[str, Any], top: Mapping[str, Any], model: type[Section] | None, path: KeyPath, notes: list[str]
) -> dict[str, Any]:
    """The keys of section `model` at `path`; adds to `notes`."""
    result = dict(base)
    for key, value in top.items():
        here = (*path, key)
        old = base.get(key)
        if not (isinstance(old, Mapping) and isinstance(value, Mapping)):
            result[key] = value
            continue
        known = model.model_fields.get(key) if model else None
        choice = choice_of(known)
        inner = section_of(known)
        if choice:
            before = chosen = _chosen(choice, old, choice.default)
            if choice.tag in value or choice.key_in(value) != choice.tag:
                chosen = _chosen(choice, value, choice.default)
            if chosen != before:
                notes += _dropped(here, before, chosen, old, value)
                old = {}
            inner = _variant(choice, *chosen)
        result[key] = _merged(old, value, inner, here, notes)
    return result


def _chosen(choice: Choice, values: Mapping[str, Any], default: str) -> tuple[str, Any]:
    """Return the key that chooses the variant of a section with these values, and its value."""
    key = choice.key_in(values)
    return key, values.get(key, default)


def _variant(choice: Choice, key: str, value: Any) -> type[Section] | None:
    """Return the variant that a key with this value chooses, if there is one."""
    if key != choice.tag:
        return choice.variants[key]
    return choice.variants.get(choice.name_of(value)) if isinstance(value, str) else None


def _dropped(
    path: KeyPath, before: tuple[str, Any], after: tuple[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
    """Return a note on the keys of `old` that the change of variant drops and `new` does not set again."""
    again = {leaf for leaf, _ in leaves(new)} | {(before[0],), (after[0],)}
    gone = [f"{'.'.join((*path, *leaf))}={show(value)}" for leaf, value in leaves(old) if leaf not in again]
    name = ".".join((*path, after[0]))
    replaced = show(before[1]) if before[0] == after[0] else f"{'.'.join((*path, before[0]))}={show(before[1])}"
    return [f"{name}={show(after[1])} replaces {replaced}: dropped {', '.join(gone)}"] if gone else []


def _holds(values: Any, path: KeyPath) -> bool:
    """Return whether the nested `values` have something at `path`."""
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
