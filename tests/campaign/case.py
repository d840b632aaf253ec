"""A case of the campaign: what is done is drawn from the seed alone, before anything runs."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One trial.

    Attributes:
        name: unique in a campaign.
        values: everything that was drawn, as JSON values.
        check: does it, given the values, a new folder for it, and the folder that all cases share; what it returns is
            noted beside a pass.

    Raises of `check`:
        AssertionError: the program did something else than what is right.
    """

    name: str
    values: dict[str, Any]
    check: Callable[[dict[str, Any], Path, Path], str] = field(compare=False)

    def __str__(self) -> str:
        drawn = (f"{name}={_short(value)}" for name, value in self.values.items() if value is not None)
        return f"{self.name}: {', '.join(drawn)}"


def drawer(seed: int, name: str) -> random.Random:
    """The random numbers of one case: those of no other change with the number of cases, or with their order."""
    return random.Random(f"{seed} {name}")


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
