"""Objects that `fptt_dist.fit` was given: a configuration has the names of their classes alone."""

from collections.abc import Container

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.schema.root import Sections
from fptt_dist.config.schema.user_class import GIVEN

KEYS = {"task": "task.name", "network": "model.network"}
"""Arguments of `fit`, and the keys that name their objects."""


def objects_of(config: Sections) -> dict[str, str]:
    """Return the arguments that a run's `fit` was given, with the names of their classes."""
    found = {}
    for argument, key in KEYS.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name, None)
        if isinstance(value, str) and value.startswith(GIVEN):
            found[argument] = value.removeprefix(GIVEN)
    return found


def require_objects(config: Sections, given: Container[str] = ()) -> None:
    """Return if the configuration names no object but those whose keys are `given`.

    Raises:
        ConfigError: it is of a run that only the program with the object can train or evaluate.
    """
    for argument, name in objects_of(config).items():
        if KEYS[argument] not in given:
            raise missing_object(argument, name)


def missing_object(argument: str, name: str) -> ConfigError:
    """Return the error for an object of the class `name` that is needed and not given."""
    return ConfigError(
        f"{KEYS[argument]}={GIVEN}{name} is an object of a program, which no file holds: give it again in Python, "
        f"{argument}={name}(…), or type {KEYS[argument]}=PATH.py:{name} for a class in a file"
    )
