"""The tables of a report: one row per group of runs, and the comparison of FPTT with the other algorithms."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fptt_dist.history import History
from fptt_dist.records import read_record
from fptt_dist.reporting.paper.table import NOT_FINITE
from fptt_dist.reporting.runs.groups import Group, differences
from fptt_dist.reporting.runs.metrics import higher_is_better
from fptt_dist.reporting.sweeps.directory import TRIAL
from fptt_dist.tasks.data.unknown import named

NONE = "–"
COLUMNS = (
    *("group", "runs", "metric", "test", "validation", "updates", "sequences", "seconds", "sequences/s"),
    *("peak memory, MiB", "parameters, recurrent / all"),
)


def results_of(group: Group) -> list[dict[str, Any]]:
    """Return result.json of the finished runs."""
    return [run.result for run in group.runs if run.result is not None]


def group_row(group: Group, *, tested: bool = True) -> list[str]:
    """Return the cells of `COLUMNS`: mean ± standard deviation (number of runs) over the finished runs, costs as means.

    Args:
        group: the runs.
        tested: whether the test value is shown; not for runs among which one is to be selected.
    """
    results = results_of(group)
    if not results:
        return [group.label, state_of_group(group), metric_of(group), *[NONE] * (len(COLUMNS) - 3)]
    return [
        group.label,
        state_of_group(group),
        metric_of(group),
        spread([result["value"] for result in results]) if tested else NONE,
        spread([result["validation"] for result in results]),
        _each(results, "updates"),
        _each(results, "sequences"),
        _mean(results, "seconds", "{:,.1f}"),
        _mean(results, "sequences_per_second", "{:,.0f}"),
        _mean(results, "peak_memory_bytes", "{:,.0f}", 2**20),
        " / ".join(_each(results, key) for key in ("recurrent_parameters", "parameters")),
    ]


RUN_COLUMNS = ("run", "group", "seed", "state", "test", "validation", "best batch", "seconds", "workers")


def run_row(run: History, label: str, *, tested: bool = True) -> list[str]:
    """Return the cells of `RUN_COLUMNS` for a single run; see `group_row`."""
    known = run.result or {}
    return [
        str(run.path),
        label,
        str(run.config.get("seed", NONE)),
        state_of(run),
        _value(known.get("value")) if tested else NONE,
        _value(known.get("validation")),
        f"{known['best_batch']:,}" if "best_batch" in known else NONE,
        f"{known['seconds']:,.1f}" if "seconds" in known else NONE,
        str(known.get("workers", NONE)),
    ]


METRIC_COLUMNS = ("group", "metric", "test", "validation")


def metric_rows(groups: list[Group], *, tested: list[Group]) -> list[list[str]]:
    """Return the cells of `METRIC_COLUMNS` for every metric of each group that has several; `tested` as `group_row`'s.

    The monitored one, which chose the checkpoint, is marked.
    """
    rows = []
    for group in groups:
        found = [result for result in results_of(group) if len(result.get("metrics", {}).get("test", {})) > 1]
        for name in found[0]["metrics"]["test"] if found else ():
            cells = {
                split: spread([result["metrics"][split][name] for result in found]) for split in ("test", "validation")
            }
            shown = f"{name} (monitored)" if name == found[0]["metric"] else name
            rows.append([group.label, shown, cells["test"] if group in tested else NONE, cells["validation"]])
    return rows


UNKNOWN_COLUMNS = ("unknown tokens of", "train", "validation", "test", "commonest in the test text")


def unknown_rows(groups: list[Group]) -> list[list[str]]:
    """Return the cells of `UNKNOWN_COLUMNS` for each group on a text: shares of tokens read as "<unk>", and symbols."""
    known = {group.label: parts for group in groups for r in results_of(group) if (parts := r.get("unknown_tokens"))}
    return [
        [
            label,
            *(f"{parts[split]['share']:.2%}" for split in ("train", "validation", "test")),
            ", ".join(f"{named(symbol)} {n:,}×" for symbol, n in parts["test"]["commonest"].items()) or NONE,
        ]
        for label, parts in known.items()
    ]


def state_of_group(group: Group) -> str:
    """Return the number of finished runs, and the states of the others."""
    finished = len(results_of(group))
    others = dict.fromkeys(state_of(run) for run in group.runs if run.result is None)
    if len(group.runs) == 1 or not others:
        return "; ".join(others) or f"{finished} finished"
    return "; ".join([f"{finished} of {len(group.runs)} finished", *others])


def state_of(run: History) -> str:
    """Return "finished", or the run's progress and its best validation value so far."""
    if run.result is not None:
        return "finished"
    batch = max((record["batch"] for record in [*run.training, *run.evaluations]), default=0)
    broken, trial = _note(run, NOT_FINITE), _note(run, TRIAL).get("state")
    if broken:
        batch = broken.get("batch") or batch
    words = "not finite" if broken else trial if trial in ("stopped", "failed") else "not finished"
    batches = run.config.get("train", {}).get("max_batches")
    far = f"{words}, batch {batch:,}" + (f" of {batches:,}" if isinstance(batches, int) else "")
    best = [record for record in run.evaluations if record["split"] == "validation" and record.get("best")]
    return far + (f", validation {_value(best[-1]['value'])} so far" if best else "")


def metric_of(group: Group) -> str:
    """Return the metric's name; a dash before the first evaluation."""
    known = (record for run in group.runs for record in (run.result or {}, *run.evaluations[:1]))
    return next((record["metric"] for record in known if "metric" in record), NONE)


def spread(values: Iterable[float]) -> str:
    """Return "mean ± standard deviation (number)"; no deviation for a single value or a non-finite mean."""
    values = [float(value) for value in values]
    mean = sum(values) / len(values)
    apart = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and math.isfinite(mean) else ""
    return f"{mean:.5g}{apart} ({len(values)})"


@dataclass(frozen=True)
class Comparison:
    """FPTT beside another algorithm, all else equal.

    Attributes:
        fptt: the label of FPTT's group.
        other: the label of the other one.
        words: the comparison of their test values.
    """

    fptt: str
    other: str
    words: str


def comparisons(groups: list[Group]) -> list[Comparison]:
    """Compare every FPTT group with each group of another algorithm that differs only in what FPTT adds.

    The test values are compared seed by seed: a group is called better only where each of its seeds is better than each
    of the other's.
    """
    finished = [group for group in groups if results_of(group)]
    ours = [group for group in finished if _algorithm(group) == "fptt"]
    others = [group for group in finished if _algorithm(group) != "fptt"]
    return [
        Comparison(one.label, other.label, _words(one, other)) for one in ours for other in others if _alike(one, other)
    ]


def _alike(one: Group, other: Group) -> bool:
    """Return whether they differ only in the algorithm and in FPTT's own keys; only BPTT has no windows."""
    if metric_of(one) != metric_of(other):
        return False
    keys = {key for key, _ in differences([one, other])}
    windows = {"fptt.windows", "fptt.window_length"}
    counted = set() if _algorithm(other).startswith("bptt") else windows
    return all(key == "algorithm" or (key.startswith("fptt.") and key not in counted) for key in keys)


def _words(one: Group, other: Group) -> str:
    metric = metric_of(one)
    sign = -1.0 if higher_is_better(results_of(one)[0]) else 1.0
    losses = [[sign * float(result["value"]) for result in results_of(group)] for group in (one, other)]
    means = f"test {metric} {' and '.join(spread(sign * loss for loss in each) for each in losses)}"
    if min(map(len, losses)) < 2:
        return f"{means}: too few seeds to tell a difference from chance."
    for better, worse, mine, theirs in ((one, other, *losses), (other, one, *losses[::-1])):
        if max(mine) < min(theirs):
            chance = math.comb(len(mine) + len(theirs), len(mine)) / 2
            return (
                f"{means}: every seed of {better.label} is better than every seed of {worse.label} (by chance alone "
                f"in 1 of {chance:.3g} cases)."
            )
    return f"{means}: the values of the seeds overlap, so these runs show no sure difference."


def _algorithm(group: Group) -> str:
    return str(group.runs[0].config["algorithm"])


def _note(run: History, name: str) -> dict[str, Any]:
    """Return the content of a small JSON file of the run; {} where it is missing or unreadable."""
    return read_record(run.path / name) or {}


def _value(value: float | None) -> str:
    return NONE if value is None else f"{value:.5g}"


def _each(results: list[dict[str, Any]], key: str) -> str:
    """Return the number that all runs share, or the smallest and the largest."""
    values = sorted({result[key] for result in results if key in result})
    return "–".join(f"{value:,}" for value in dict.fromkeys([*values[:1], *values[-1:]])) or NONE


def _mean(results: list[dict[str, Any]], key: str, form: str, unit: float = 1.0) -> str:
    values = [result[key] / unit for result in results if key in result]
    show: Callable[[float], str] = form.format
    return show(statistics.fmean(values)) if values else NONE
