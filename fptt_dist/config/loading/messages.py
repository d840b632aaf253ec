"""Messages of a validation's problems: the key, its value, what is allowed, and where it is set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fptt_dist.config.describe import key_names
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.schema.paths import REMOTE_PATH
from fptt_dist.config.schema.section import Choice, KeyPath, Section, choice_of, leaves, section_of
from fptt_dist.config.values import allowed, show

_LONGEST_VALUE = 80
_MOST = 50  # problems that are told one by one


def messages(error: ValidationError, where: Mapping[KeyPath, str], schema: type[Section]) -> list[str]:
    """Return a line for each problem, up to `_MOST`; `where` says for a key's path what set it."""
    problems = error.errors(include_url=False)
    more = [f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
    return [line for problem in problems[:_MOST] for line in _lines(problem, where, schema)] + more


@dataclass(frozen=True)
class _Place:
    """Where a location of pydantic leads: the key's `path` without tags, its field and the section it stands in.

    `index` is "[i]" within a list. `owner` is None inside what is no section. `choice` and `variant` tell of which
    variants `owner` is one, and which.
    """

    path: KeyPath
    index: str
    owner: type[Section] | None
    field: FieldInfo | None
    choice: Choice | None
    variant: str


def _place(location: Sequence[Any], schema: type[Section]) -> _Place:
    """Follow `location` through the schema; pydantic puts the tag's value after the name of a field with variants."""
    place = _Place((), "", None, None, None, "")
    section: type[Section] | None = schema
    choice: Choice | None = None
    variant = ""
    parts = iter(location)
    for part in parts:
        if isinstance(part, int):
            place = _Place(place.path, f"[{part}]", place.owner, place.field, place.choice, place.variant)
            continue
        field = section.model_fields.get(part) if section else None
        place = _Place((*place.path, part), "", section, field, choice, variant)
        choice = choice_of(field)
        section = section_of(field)
        if choice:
            variant = next(parts, "")
            section = choice.variants.get(variant)
    return place


def _lines(problem: Any, where: Mapping[KeyPath, str], schema: type[Section]) -> list[str]:
    """The messages for one problem of pydantic's list."""
    if problem["type"] == "conflict":
        return [_conflict(conflict.text, conflict.keys, where) for conflict in problem["ctx"]["conflicts"]]
    place = _place(problem["loc"], schema)
    path, blamed = place.path, place.path
    choice = choice_of(place.field)
    given = problem["input"]
    if place.field is None:
        text = _unknown_key(place, given, schema)
    elif problem["type"] == "union_tag_invalid" and choice:
        path = blamed = (*path, choice.tag)
        text = _refused(given[choice.tag], f"one of {', '.join(choice.names)}", choice.names)
    elif problem["type"] == "missing":
        text = f"must be set; allowed: {allowed(place.field)}"
        if place.choice:
            blamed = (*path[:-1], place.choice.key_of(place.variant))
    elif problem["type"] == REMOTE_PATH:
        text = problem["msg"]
    elif choice:
        text = _refused(given, f"a section of keys, such as {'.'.join(path)}.{choice.tag}={choice.default}")
    elif section_of(place.field):
        text = _refused(given, "a section of keys")
    else:
        finite = ", finite" if problem["type"] == "finite_number" else ""
        annotation = place.field.annotation
        names = get_args(annotation) if get_origin(annotation) is Literal else ()
        text = _refused(given, allowed(place.field) + finite, names)
    return [f"{'.'.join(path)}{place.index}: {text}{_origin(blamed, where)}"]


def _refused(value: Any, permitted: str, names: Sequence[str] = ()) -> str:
    """Return the message for a value that is not allowed; `names` are the only allowed ones, if they can be listed."""
    shown = show(value)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[:_LONGEST_VALUE]}…"
    return f"{shown} is not allowed; allowed: {permitted}{did_you_mean(str(value), names)}"


def _unknown_key(place: _Place, given: Any, schema: type[Section]) -> str:
    """Return the message for a key that the section does not have; `given`: its value, which may be a section."""
    *section, name = place.path
    dotted = ".".join(section)
    if place.choice:
        choice, instead = place.choice, f"{dotted}.{place.choice.instead}"
        is_instead = place.variant == choice.instead
        if is_instead and name == choice.tag:
            return f"{show(given)} does not go with {instead}, which takes its place: leave one of them out"
        others = [other for other, model in choice.variants.items() if name in model.model_fields]
        if others:
            if is_instead:
                return f"unknown key with {instead}; it goes with {dotted}.{choice.tag}"
            names = [instead if other == choice.instead else other for other in others]
            return f"unknown key with {dotted}.{choice.tag}={place.variant}; it belongs to {', '.join(names)}"
    if "." in name:
        return "unknown key; in a file, sections are written one inside another, without dots"
    known = key_names(schema)
    meant = did_you_mean(name, place.owner.model_fields if place.owner else (), known, dotted)
    if not meant and isinstance(given, Mapping):  # a section: what is in it tells
        for path, _ in leaves(given):
            full = ".".join((*place.path, *map(str, path)))
            meant = meant or did_you_mean(full, [key for key in known if key.endswith(f".{path[-1]}")])
    return f"unknown key{meant}"


def _origin(path: KeyPath, where: Mapping[KeyPath, str]) -> str:
    """Return the place where the key at `path`, or else the nearest section around it, was set."""
    found = next((where[path[:size]] for size in range(len(path), -1, -1) if path[:size] in where), "")
    return f" ({found})" if found else ""


def _conflict(text: str, keys: Sequence[str], where: Mapping[KeyPath, str]) -> str:
    """Return a conflict's text and the places where its keys were set."""
    origins = dict.fromkeys(where[path] for key in keys if (path := tuple(key.split("."))) in where)
    return f"{text} ({', '.join(origins)})" if origins else text
