"""The search space of a sweep: from the file's forms to the overrides of each run."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fptt_dist.config import ConfigError
from fptt_dist.config.values import show

if TYPE_CHECKING:
    from optuna import Trial

Overrides = dict[str, Any]
Conditions = dict[str, list[Any]]

FORMS = (
    "a value, {grid: [0.1, 0.5]}, {choice: [7, 14]}, {uniform: [0, 1]}, {loguniform: [1e-3, 1]} or {integers: [1, 9]}"
)


@dataclass(frozen=True)
class GridDomain:
    """Each of the values in turn."""

    values: list[Any]


@dataclass(frozen=True)
class ChoiceDomain:
    """One of the values."""

    values: list[Any]


@dataclass(frozen=True)
class RangeDomain:
    """A number from `low` to `high`; on a logarithmic scale, or whole, both ends included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def inside(self, value: float) -> float:
        """`value` with six digits, as people write it, and not beyond the ends."""
        return min(max(float(f"{value:.6g}"), self.low), self.high)


@dataclass(frozen=True)
class Dimension:
    """One key of a space.

    Attributes:
        key: dotted.
        domain: how it varies; a `GridDomain` of one for a fixed value.
        when: the key is set only where these other keys have one of these values.
    """

    key: str
    domain: GridDomain | ChoiceDomain | RangeDomain
    when: Conditions


class Space:
    """The keys of a sweep. Its points are the overrides of one run each, without those that are fixed for all.

    Args:
        entries: as in a sweep's file: dotted keys with values or forms.
        places: file and line of each key, for messages.

    Attributes:
        dimensions: in the file's order.
        fixed: the keys with one value for all runs.

    Raises:
        ConfigError: an entry that makes no sense, all of them, one per line.
    """

    def __init__(self, entries: Mapping[str, Any], places: Mapping[str, str] | None = None) -> None:
        self.dimensions: list[Dimension] = []
        problems = []
        for above, (key, entry) in enumerate(entries.items()):
            try:
                self.dimensions.append(_dimension(key, entry, list(entries)[:above]))
            except ValueError as error:
                place = (places or {}).get(key)
                problems.append(f"{place}: {error}" if place else f"space.{error}")
        if problems:
            raise ConfigError("\n".join(problems))
        self.fixed: Overrides = {
            each.key: each.domain.values[0]
            for each in self.dimensions
            if isinstance(each.domain, GridDomain) and len(each.domain.values) == 1 and not each.when
        }

    @property
    def varying(self) -> list[str]:
        """The keys that have more than one value."""
        return [
            each.key for each in self.dimensions if isinstance(each.domain, RangeDomain) or len(each.domain.values) > 1
        ]

    def drawn(self) -> list[str]:
        """The keys that a grid search cannot go through."""
        return [each.key for each in self.dimensions if not isinstance(each.domain, GridDomain)]

    def grids(self) -> list[str]:
        """The keys with a list to go through."""
        return [
            each.key for each in self.dimensions if isinstance(each.domain, GridDomain) and len(each.domain.values) > 1
        ]

    def grid(self) -> Iterator[Overrides]:
        """Every combination of the lists, the last key varying fastest."""
        return self._combinations([_lists(each) for each in self.dimensions])

    def draw(self, count: int, seed: int) -> Iterator[Overrides]:
        """`count` random points, each at every combination of the lists."""
        random = np.random.default_rng(seed)
        for _ in range(count):
            # Whether a key is set or not, it takes its draw: the other keys' values do not depend on it.
            drawn = {
                each.key: _draw(each.domain, random)
                for each in self.dimensions
                if not isinstance(each.domain, GridDomain)
            }
            yield from self._combinations(
                [_lists(each) if each.key not in drawn else [drawn[each.key]] for each in self.dimensions]
            )

    def suggest(self, trial: "Trial") -> Overrides:
        """A point of Optuna's choice."""
        return self._point(lambda each: _suggest(each, trial))

    def corners(self, most: int = 1024) -> Iterator[Overrides]:
        """Up to `most` points at the ends of all ranges, with all values of all lists."""
        return itertools.islice(self._combinations([_lists(each) for each in self.dimensions]), most)

    def _combinations(self, values: Sequence[Sequence[Any]]) -> Iterator[Overrides]:
        """Every combination of the values by dimension, without those that conditions make equal."""
        seen: list[Overrides] = []
        for combination in itertools.product(*values):
            picked = {each.key: value for each, value in zip(self.dimensions, combination, strict=True)}
            point = self._point(lambda each, picked=picked: picked[each.key])
            if len(point) + len(self.fixed) == len(picked):
                yield point
            elif point not in seen:
                seen.append(point)
                yield point

    def _point(self, pick: Callable[[Dimension], Any]) -> Overrides:
        point: Overrides = {}
        for each in self.dimensions:
            if all(key in point and point[key] in values for key, values in each.when.items()):
                point[each.key] = pick(each)
        return {key: value for key, value in point.items() if key not in self.fixed}


def _lists(dimension: Dimension) -> list[Any]:
    """All values of a list, or the two ends of a range."""
    domain = dimension.domain
    return [domain.low, domain.high] if isinstance(domain, RangeDomain) else domain.values


def _dimension(key: str, entry: Any, known: list[str]) -> Dimension:
    if not isinstance(entry, Mapping):
        return Dimension(key, GridDomain([entry]), {})
    forms = {name: value for name, value in entry.items() if name != "when"}
    if len(forms) != 1:
        raise ValueError(f"{key} needs {FORMS}")
    name, value = next(iter(forms.items()))
    return Dimension(key, _domain(key, name, value), _conditions(key, entry.get("when", {}), known))


def _domain(key: str, name: str, value: Any) -> GridDomain | ChoiceDomain | RangeDomain:
    match name:
        case "grid" | "choice":
            if not isinstance(value, list) or not value:
                raise ValueError(f"{key}: {name} needs a list of values, such as {{{name}: [0.1, 0.5]}}")
            return GridDomain(value) if name == "grid" else ChoiceDomain(value)
        case "uniform" | "loguniform" | "integers":
            example = {"uniform": "[0, 1]", "loguniform": "[1e-3, 1]", "integers": "[1, 9]"}[name]
            whole = name == "integers"
            kinds, most = (int, 2**63) if whole else ((int, float), 1e307)  # what can be drawn
            if (
                not isinstance(value, list)
                or len(value) != 2
                or not all(isinstance(end, kinds) and not isinstance(end, bool) and abs(end) < most for end in value)
                or not value[0] < value[1]
            ):
                raise ValueError(
                    f"{key}: {name}: {show(value)} is not two {'whole ' if whole else ''}numbers, the lower one first, "
                    f"such as {{{name}: {example}}}"
                )
            if name == "loguniform" and value[0] <= 0:
                raise ValueError(
                    f"{key}: loguniform: {show(value)} must begin above 0, such as {{loguniform: [1e-3, 1]}}"
                )
            return RangeDomain(value[0], value[1], log=name == "loguniform", whole=whole)
        case _:
            raise ValueError(f"{key} needs {FORMS}")


def _conditions(key: str, when: Any, known: list[str]) -> Conditions:
    if not isinstance(when, Mapping):
        raise ValueError(
            f"{key}: when: {show(when)} is not a key with its values, such as {{when: {{task.name: adding}}}}"
        )
    for other in when:
        if other not in known:
            raise ValueError(f"{key}: when: {other} is not in the space above it: write it there, above {key}")
    return {other: values if isinstance(values, list) else [values] for other, values in when.items()}


def _draw(domain: ChoiceDomain | RangeDomain, random: np.random.Generator) -> Any:
    if isinstance(domain, ChoiceDomain):
        return domain.values[int(random.integers(len(domain.values)))]
    if domain.whole:
        return int(random.integers(int(domain.low), int(domain.high), endpoint=True))
    if domain.log:
        return domain.inside(math.exp(random.uniform(math.log(domain.low), math.log(domain.high))))
    return domain.inside(random.uniform(domain.low, domain.high))


def _suggest(dimension: Dimension, trial: "Trial") -> Any:
    match dimension.domain:
        case RangeDomain(low, high, log, whole):
            if whole:
                return trial.suggest_int(dimension.key, int(low), int(high))
            return dimension.domain.inside(trial.suggest_float(dimension.key, low, high, log=log))
        case ChoiceDomain(values) | GridDomain(values):
            if len(values) == 1:
                return values[0]
            return values[trial.suggest_categorical(dimension.key, range(len(values)))]
