"""The base class of every section, and the mark of a section that exists in several variants."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

KeyPath = tuple[str, ...]
"""The parts of a dotted key: ("optimizer", "lr") is `optimizer.lr`."""


class Section(BaseModel):
    """A group of keys: frozen, without unknown keys, without conversions between types, without inf and nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


@dataclass(frozen=True)
class Variants:
    """Marks a type `A | B | …` of sections as variants told apart by the key `tag`; the first one is the default.

    Each variant has `tag: Literal["its value"] = "its value"`. Works for a single variant too. A variant may have
    `tag: str = Field(default=NAME, pattern=…)` instead: it is known by NAME, and chosen by what the pattern matches.
    One variant may have the required key `instead` in place of the tag: it is known by, and chosen where there is, that
    key.
    """

    tag: str
    instead: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A tagged union in which a missing tag means the first variant."""
        choice = self.of(source)

        def choose(value: Any) -> str:
            values = value if isinstance(value, Mapping) else vars(value) if isinstance(value, Section) else {}
            key = choice.key_in(values)
            found = values.get(key, choice.default)
            if key == self.instead:
                return key
            return choice.name_of(found) if isinstance(found, str) else repr(found)

        choices = {name: handler.generate_schema(variant) for name, variant in choice.variants.items()}
        return core_schema.tagged_union_schema(choices, discriminator=choose)

    def of(self, union: Any) -> "Choice":
        """The choice among the variants of the type `union`, in their order."""
        members = get_args(union) if get_origin(union) in (Union, UnionType) else (union,)
        tags = ((member.model_fields.get(self.tag), member) for member in members)
        return Choice(
            self.tag, {self.instead if tag is None else tag.default: member for tag, member in tags}, self.instead
        )


@dataclass(frozen=True)
class Choice:
    """Variants of a field: the key that chooses among them, and the variants by its value, the default first.

    `instead` is the key, and the name, of the variant that has it in place of the tag; "" where there is none.
    """

    tag: str
    variants: dict[str, type[Section]]
    instead: str = ""

    @property
    def default(self) -> str:
        """Value of the tag when nobody gave one."""
        return next(iter(self.variants))

    @property
    def names(self) -> list[str]:
        """Values of the tag."""
        return [name for name in self.variants if name != self.instead]

    def key_in(self, values: Mapping[str, Any]) -> str:
        """The key that chooses the variant of a section with these values."""
        return self.instead if self.instead in values else self.tag

    def key_of(self, name: str) -> str:
        """The key that chooses the variant of this name."""
        return self.instead if name == self.instead else self.tag

    def name_of(self, value: str) -> str:
        """The variant's name for a tag's value; another text where it chooses none."""
        if value == self.instead:
            return repr(value)  # no value of the tag
        if value in self.variants:
            return value
        for name, variant in self.variants.items():
            if name == self.instead:
                continue
            patterns = [getattr(mark, "pattern", None) for mark in variant.model_fields[self.tag].metadata]
            if any(pattern and re.search(pattern, value) for pattern in patterns):
                return name
        return value


def choice_of(field: FieldInfo | None) -> Choice | None:
    """The variants of `field`, or None when it has none."""
    if field is None:
        return None
    marks = (mark for mark in field.metadata if isinstance(mark, Variants))
    return next((mark.of(field.annotation) for mark in marks), None)


def section_of(field: FieldInfo | None) -> type[Section] | None:
    """The section a field without variants holds, or None when it holds a value."""
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def explicit(section: Section) -> dict[str, Any]:
    """The keys of `section` that somebody set, nested; tags of other than the default variants are always there."""
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        if isinstance(value, Section):
            choice = choice_of(field)
            key = choice.key_in(vars(value)) if choice else ""
            tag = {key: getattr(value, key)} if choice else {}
            is_default = choice is not None and tag == {choice.tag: choice.default}
            value = {**({} if is_default else tag), **explicit(value)}
        values[name] = value
    return values


def leaves(values: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of a nested mapping with its path; an empty mapping counts as a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@dataclass(frozen=True)
class Conflict:
    """Values that are allowed one by one but not together.

    `text` names the keys, their values and what to type; `keys` are the dotted keys at fault.
    """

    text: str
    keys: tuple[str, ...]


def refuse(conflicts: Sequence[Conflict]) -> None:
    """Raise one pydantic error of type "conflict" that holds all `conflicts`; do nothing when there are none."""
    if conflicts:
        text = "; ".join(conflict.text for conflict in conflicts)
        raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": tuple(conflicts)})
