"""Objects that `fptt_dist.fit` was given: a configuration has the names of their classes alone."""

from collections.abc import Container

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.schema.root import Sections
from fptt_dist.config.schema.user_class import GIVEN

ARGUMENTS = {"task.name": "task", "model.layer": "network"}
"""Keys that may name an object, and the arguments of `fit`."""


def objects_of(config: Sections) -> dict[str, str]:
    """Return the keys of a configuration that name an object, with the name of its class."""
    found = {}
    for key in ARGUMENTS:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name, None)
        if isinstance(value, str) and value.startswith(GIVEN):
            found[key] = value.removeprefix(GIVEN)
    return found


def require_objects(config: Sections, given: Container[str] = ()) -> None:
    """Return if the configuration names no object but those whose keys are `given`.

    Raises:
        ConfigError: it is of a run that only the program with the object can train or evaluate.
    """
    for key, name in objects_of(config).items():
        if key not in given:
            raise missing_object(key, name)


def missing_object(key: str, name: str) -> ConfigError:
    """Return the error for an object of the class `name` that is needed and not given."""
    return ConfigError(
        f"{key}={GIVEN}{name} is an object of a program, which no file holds: give it again in Python, "
        f"{ARGUMENTS[key]}={name}(…)"
    )
