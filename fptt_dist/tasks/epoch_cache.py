"""A cache of what a task draws for a whole epoch."""

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


class EpochCache(Generic[Arguments, Value]):
    """A pure function, of which the two newest results are kept; a pickled one begins empty.

    Args:
        function: of hashable arguments, such as the epoch.
    """

    def __init__(self, function: Callable[Arguments, Value]) -> None:
        self._function = function
        self._kept = lru_cache(maxsize=2)(function)

    def __call__(self, *arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        """Return what the function returns."""
        return self._kept(*arguments, **named)

    def __reduce__(self) -> tuple[type, tuple[Callable[Arguments, Value]]]:
        return EpochCache, (self._function,)
