"""Differences between two configurations."""

from typing import Any

from fptt_dist.config.rules import Config
from fptt_dist.config.schema.section import KeyPath, Section, choice_of, leaves


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ, defaults included, with the old and the new value.

    A section whose variant differs is there with all keys of both variants; None stands for a key that is absent.
    """
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    replaced = _replaced(old, new, ())
    result: dict[str, tuple[Any, Any]] = {}
    for path in dict.fromkeys([*before, *after]):
        values = before.get(path), after.get(path)
        if values[0] != values[1] or any(path[: len(section)] == section for section in replaced):
            result[".".join(path)] = values
    return result


def _replaced(old: Section, new: Section, path: KeyPath) -> list[KeyPath]:
    """Return the paths of the sections whose variant differs; `old` and `new` are of the same class."""
    found: list[KeyPath] = []
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if choice_of(field) and type(before) is not type(after):
            found.append((*path, name))
        elif isinstance(before, Section):
            found += _replaced(before, after, (*path, name))
    return found
