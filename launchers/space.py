"""A file that says which keys vary, and how, as the overrides of every run."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptt_dist.config import ConfigError
from fptt_dist.config.loader import read_mapping


def read_grid(path: Path) -> list[dict[str, Any]]:
    """The overrides of every run that a file asks for, the last key varying fastest.

    The file's keys are a configuration's dotted keys; a value is one for all runs, or {grid: [0.1, 0.3]}.

    Raises:
        ConfigError: the file cannot be read, or a value is neither.
    """
    layer = read_mapping(path)
    choices = []
    for key, value in layer.values.items():
        if isinstance(value, Mapping):
            values = value.get("grid") if set(value) == {"grid"} else None
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{layer.where[(key,)]}: {key} needs a value, or {{grid: [one, another]}}")
            choices.append([(key, each) for each in values])
        else:
            choices.append([(key, value)])
    runs = [dict(point) for point in itertools.product(*choices)]
    if len(runs) < 2:
        raise ConfigError(f"{path}: nothing varies: write a key with {{grid: [one, another]}}")
    return runs
