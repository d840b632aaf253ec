"""Every key of the schema, for help and for editors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.rules import Config
from fptt_dist.config.schema.section import Choice, Section, choice_of, section_of
from fptt_dist.config.values import allowed, show


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, its type and range in words, its default and its meaning.

    `default` is text that `parse_overrides` accepts, or "required". `variant` is the value of the section's tag that
    the key belongs to, or the key in the tag's place, None for keys that are always there. A name occurs once for each
    variant that has it.
    """

    name: str
    type: str
    default: str
    help: str
    variant: str | None


def describe(prefix: str = "") -> list[Key]:
    """Every key at or below the dotted `prefix`, in the schema's order; all keys without one.

    Raises ConfigError, with the nearest name, when no key is there.
    """
    keys = list(_keys(Config, "", None))
    found = [key for key in keys if not prefix or key.name == prefix or key.name.startswith(f"{prefix}.")]
    if not found:
        sections = {key.name.rpartition(".")[0] for key in keys} - {""}
        names = [*sorted(sections), *dict.fromkeys(key.name for key in keys)]
        raise ConfigError(f"{prefix}: no such key or section{did_you_mean(prefix, names, names)}")
    return found


def key_names(schema: type[Section]) -> list[str]:
    """The dotted names of all keys, each once."""
    return list(dict.fromkeys(key.name for key in _keys(schema, "", None)))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors."""
    schema = Config.model_json_schema()
    for choice in _choices(Config):
        for name, variant in choice.variants.items():
            if name != choice.default:
                # Without its tag, a section is the default variant and no other.
                definition = schema["$defs"][variant.__name__]
                definition["required"] = sorted({choice.key_of(name), *definition.get("required", ())})
    schema["properties"]["extends"] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "path of a configuration to start from, or several, a later one wins",
    }
    return schema


def _choices(model: type[Section]) -> Iterator[Choice]:
    """Every group of variants in `model` and below."""
    for field in model.model_fields.values():
        choice = choice_of(field)
        inner = section_of(field)
        if choice:
            yield choice
        elif inner:
            yield from _choices(inner)


def _keys(model: type[Section], prefix: str, variant: str | None) -> Iterator[Key]:
    """The keys of `model`, whose names start with `prefix`; the tag of variants comes once, before them."""
    for name, field in model.model_fields.items():
        choice = choice_of(field)
        inner = section_of(field)
        if choice:
            tag = f"{prefix}{name}.{choice.tag}"
            yield Key(tag, f"one of {', '.join(choice.names)}", choice.default, field.description or "", variant)
            for value, section in choice.variants.items():
                yield from (key for key in _keys(section, f"{prefix}{name}.", value) if key.name != tag)
        elif inner:
            yield from _keys(inner, f"{prefix}{name}.", variant)
        else:
            default = "required" if field.default is PydanticUndefined else show(field.default)
            yield Key(f"{prefix}{name}", allowed(field), default, field.description or "", variant)
