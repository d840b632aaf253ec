"""Groups of runs that differ only in their seeds, and the keys by which the groups differ."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fptt_dist.algorithm.schemes import SCHEMES
from fptt_dist.config import Config, ConfigError, short_name
from fptt_dist.config.loading.merge import Layer, validated
from fptt_dist.config.schema.section import leaves
from fptt_dist.config.values import show
from fptt_dist.history import History

WORKERS = "workers"
"""The key of the number of workers, which no configuration has."""
UNCOUNTED = (
    "seed",
    "device",
    "resume",
    "run",
    "logging",
    "checkpoint",
    "data.root",
    "data.workers",
    "parallel.launcher",
    "parallel.timeout_seconds",
    "parallel.control_interval",
)
"""The seed, and the keys and sections that do not change what is learned."""
# The keys of `fptt` that apply to the baselines too.
WINDOW_KEYS = ("fptt.windows", "fptt.window_length", "fptt.window_remainder")
SYMBOLS = {"fptt.alpha": "α", "fptt.beta": "β", "fptt.windows": "K", "task.length": "T", "parallel.sync_every": "H"}
DERIVED = {"fptt.windows": "√T", "parallel.sync_every": "K"}  # what null stands for
NAMES = (
    "task.name",
    "task.dataset",
    "model.layer",
    "model.network",
    "optimizer.name",
    "parallel.strategy",
)  # shown without their keys
SHOWN = 4  # differences in a label, beyond which only those are there that tell it from the others
LONGEST = 24  # characters of a value in a label

Values = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of the same configuration.

    They differ only in what does not count: `UNCOUNTED` and, for a baseline, the keys of FPTT's regularizer.

    Attributes:
        label: the algorithm and the keys by which the groups differ, e.g. "fptt α=0.5 K=10"; no other group has it.
        runs: in order of their seeds.
    """

    label: str
    runs: list[History]


def group_runs(runs: list[History]) -> list[Group]:
    """Return the groups of the runs, in the order of each group's first run.

    A run whose number of workers is not recorded yet joins a group of its configuration.
    """
    found: list[tuple[Values, list[History]]] = []
    for run in sorted(runs, key=lambda run: _workers(run) is None):  # those that have recorded it first
        values, workers = _counted(run), _workers(run)
        for known, members in found:
            same = {key: value for key, value in known.items() if key != WORKERS} == values
            if same and (workers is None or known[WORKERS] == workers):
                members.append(run)
                break
        else:
            found.append(({**values, WORKERS: workers}, [run]))
    place = {id(run): number for number, run in reversed(list(enumerate(runs)))}
    found.sort(key=lambda each: min(place[id(run)] for run in each[1]))
    labels = _labels([values for values, _ in found])
    return [
        Group(label, sorted(members, key=lambda run: (_seed(run), place[id(run)])))
        for label, (_, members) in zip(labels, found, strict=True)
    ]


def repeats_a_seed(group: Group) -> bool:
    """Return whether two of its runs have the same seed: repetitions, which say nothing about the seeds' spread."""
    return len({_seed(run) for run in group.runs}) < len(group.runs)


def differences(groups: list[Group]) -> list[tuple[str, list[Any]]]:
    """Return the dotted keys by which the groups differ, with the value in each group; None where a group lacks it.

    `workers`, the number of workers, is among them although it is no configuration key. A key that some groups lack and
    that is equal in the others is left out: another key says which variant they have.
    """
    values = [_values(group) for group in groups]
    differing = _differing(values)
    telling = {key: differing[key] for key in _telling(values)}
    distinct = {show([column[number] for column in telling.values()]) for number in range(len(values))}
    return list((telling if len(distinct) == len(values) else differing).items())


def short_names(keys: list[str]) -> dict[str, str]:
    """Return the last component of each key; the full key where two end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def _values(group: Group) -> Values:
    numbers = [_workers(run) for run in group.runs]
    return {**_counted(group.runs[0]), WORKERS: next((number for number in numbers if number is not None), None)}


def _counted(run: History) -> Values:
    """Return the dotted keys that count, defaults included, with their values."""
    values: Mapping[str, Any] = run.config
    with suppress(ConfigError):  # a configuration of another version stays as it is
        config = validated(Layer(dict(run.config)), Config)
        values = config.model_dump()
        if config.fptt.window_length is not None:
            values["fptt"]["windows"] = config.windows
    flat = {".".join(path): list(value) if isinstance(value, tuple) else value for path, value in leaves(values)}
    return {key: value for key, value in flat.items() if not _uncounted(key, run.config["algorithm"])}


def _uncounted(key: str, algorithm: str) -> bool:
    if any(key == each or key.startswith(f"{each}.") for each in UNCOUNTED):
        return True
    procedure = SCHEMES.get(algorithm)
    if procedure is None or procedure.has_regularizer or not key.startswith("fptt."):
        return False
    return procedure.name == "bptt" or key not in WINDOW_KEYS


def _workers(run: History) -> int | None:
    """Return the number of workers: from the result, or 1 if no record has `bytes_sent`; None while it is unknown."""
    if run.result is not None and "workers" in run.result:
        return run.result["workers"]
    return 1 if run.training and not any("bytes_sent" in record for record in run.training) else None


def _seed(run: History) -> int:
    return run.config.get("seed", 0)


def _differing(groups: list[Values]) -> dict[str, list[Any]]:
    """Return the keys whose values differ, with the value in each group."""
    keys = dict.fromkeys(key for values in groups for key in values)
    columns = {key: [values.get(key) for values in groups] for key in keys}
    return {key: column for key, column in columns.items() if any(value != column[0] for value in column)}


def _telling(groups: list[Values]) -> list[str]:
    """Return the keys whose values differ among the groups that have them."""
    return [key for key in _differing(groups) if len({show(each[key]) for each in groups if key in each}) > 1]


def _labels(groups: list[Values]) -> list[str]:
    """Return a unique label for each group."""
    differing = _differing(groups)
    keys = [key for key in _telling(groups) if key != "algorithm"]
    if len(keys) > SHOWN:
        keys = _needed(groups, keys)
    labels = _written(groups, keys)
    if _repeat(labels):
        labels = _written(groups, [key for key in differing if key != "algorithm"], longest=None)
    seen: dict[str, int] = {}
    for number, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[number] = f"{label} ({seen[label]})"
    return labels


def _needed(groups: list[Values], keys: list[str]) -> list[str]:
    """Return a minimal subset of `keys`, in their order, that distinguishes all groups."""
    weight = {key: number for number, key in enumerate([*SYMBOLS, *NAMES, WORKERS, "optimizer.lr"])}
    kept = sorted(keys, key=lambda key: weight.get(key, len(weight)))
    for key in reversed(kept[:]):  # the least informative ones first
        without = [each for each in kept if each != key]
        if not _repeat(_written(groups, without)):
            kept = without
    return [key for key in keys if key in kept]


def _repeat(labels: list[str]) -> bool:
    return len(set(labels)) < len(labels)


def _written(groups: list[Values], keys: Iterable[str], longest: int | None = LONGEST) -> list[str]:
    names = {**short_names(list(keys)), **SYMBOLS}
    labels: list[str] = []
    for values in groups:
        pairs = [_pair(names, key, values[key], longest) for key in keys if key in values]
        labels.append(" ".join([show(values["algorithm"]), *pairs]))
    return labels


def _pair(names: dict[str, str], key: str, value: Any, longest: int | None) -> str:
    text = DERIVED[key] if value is None and key in DERIVED else show(value)
    if longest is not None:
        text = show(short_name(value)) if key in NAMES and isinstance(value, str) else text
        text = f"{value:.6g}" if isinstance(value, float) else text
        text = text if len(text) <= longest else text[: longest - 1] + "…"
    if key == WORKERS:
        return "? workers" if value is None else f"{text} worker{'' if value == 1 else 's'}"
    return text if key in NAMES else f"{names[key]}={text}"
