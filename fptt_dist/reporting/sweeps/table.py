"""The table of a sweep's points."""

from rich.table import Table
from rich.text import Text

from fptt_dist.config.values import show
from fptt_dist.reporting.sweeps.results import Point, SweepResults
from fptt_dist.streams import printable


def sweep_table(results: SweepResults) -> Table:
    """Return one row per point, the best first. The test metric is left out: nothing is selected by it."""
    keys = [key for key in results.varying if key != "seed"]
    sent = any(trial.bytes_sent for trial in results.trials)
    messages = any(trial.message for trial in results.trials)
    table = Table()
    for name in ("#", "trial", "state", f"validation {results.metric}", "batch", "seconds"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right")
    if sent:
        table.add_column("MB sent", justify="right")
    for key in keys:
        table.add_column(key, justify="right")
    table.add_column("")
    if messages:
        table.add_column("message")
    for rank, point in enumerate(results.points, 1):
        cells = [
            str(rank),
            ", ".join(trial.name for trial in point.trials),
            point.state,
            _value(point),
            _batches(point),
            f"{point.cost('seconds'):.1f}",
            *([f"{point.cost('bytes_sent') / 1e6:.2f}"] if sent else []),
            *(show(point.values[key]) if key in point.values else "" for key in keys),
            _marks(results, point),
            *(["\n".join(dict.fromkeys(trial.message for trial in point.trials if trial.message))] if messages else []),
        ]
        table.add_row(*map(Text, map(printable, cells)))
    return table


def _value(point: Point) -> str:
    if point.mean is None:
        return ""
    return f"{point.mean:.5g}" + ("" if point.deviation is None else f" ± {point.deviation:.2g}")


def _batches(point: Point) -> str:
    """Return the progress of the trials in batches, such as "200 of 200"."""
    each = [f"{trial.batch} of {trial.batches}" if trial.batches else str(trial.batch) for trial in point.trials]
    return ", ".join(dict.fromkeys(each))


def _marks(results: SweepResults, point: Point) -> str:
    marks = {"default": any(trial.default for trial in point.trials), "front": point in results.front}
    return ", ".join(name for name, holds in marks.items() if holds)
