"""Every cell with every algorithm: a line a cell, a column an algorithm, and what the difference comes from."""

import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fptt_dist.reporting.history import read_runs
from fptt_dist.reporting.metrics import HIGHER_IS_BETTER
from fptt_dist.reporting.paper_table import NONE, PaperRow, PaperTable, below, header, line

BELOW = (0.05, 0.01)  # errors of which the batch is told from which a run stays below them
CLEAR = 2.0  # standard errors of a difference that count
POINTS, SHARE = 0.005, 0.1  # of accuracy, and of an error, that a difference comes to at least
MEANINGS = (
    "What helps: the pull, where fptt is clearly better than online and bptt not than fptt; windows, where else online "
    "or fptt is clearly better than bptt; BPTT, where it is clearly better than both; – elsewhere. Clearly: by more "
    "than two standard errors of the difference, and by half a point or a tenth of the error"
)


def grid_table(table: PaperTable) -> str:
    """The table as Markdown, of rows that have a column; otherwise as `paper_table`.

    Raises:
        ConfigError: a file of a run cannot be read.
    """
    columns = list(dict.fromkeys(row.column for row in table.rows))
    lines = [line(["cell", "parameters", *columns, "what helps"]), line(["---"] * (len(columns) + 3))]
    for heading, rows in by_heading(table.rows):
        lines.append(line([f"**{heading}**", *[""] * (len(columns) + 2)]))
        for label, own in rows.items():
            counts = {f"{result['parameters']:,}" for row in own.values() for result in row.results}
            shown = [_shown(own[name]) if name in own else NONE for name in columns]
            lines.append(line([label, ", ".join(sorted(counts)) or NONE, *shown, what_helps(own)]))
    return "\n".join([header(table), *lines, "", *(f"- {each}" for each in [*below(table), f"{MEANINGS}."])]) + "\n"


def by_heading(rows: Sequence[PaperRow]) -> list[tuple[str, dict[str, dict[str, PaperRow]]]]:
    """The rows under each heading, by their labels and columns."""
    found: list[tuple[str, dict[str, dict[str, PaperRow]]]] = []
    for row in rows:
        if row.heading or not found:
            found.append((row.heading, {}))
        found[-1][1].setdefault(row.label, {})[row.column] = row
    return found


def what_helps(rows: dict[str, PaperRow]) -> str:
    """The last column of a cell's line; see `MEANINGS`."""
    bptt, online, fptt = (_values(rows.get(name)) for name in ("bptt", "online", "fptt"))
    if any(len(values) < 2 or not all(map(math.isfinite, values)) for values in (bptt, online, fptt)):
        return NONE
    if _clearly_better(fptt, online) and not _clearly_better(bptt, fptt):
        return "the pull"
    if _clearly_better(online, bptt) or _clearly_better(fptt, bptt):
        return "windows"
    return "BPTT" if _clearly_better(bptt, online) and _clearly_better(bptt, fptt) else NONE


def _values(row: PaperRow | None) -> list[float]:
    """The test metric of each seed, turned so that more is better."""
    if row is None:
        return []
    return [r["value"] if HIGHER_IS_BETTER[r["metric"]] else -r["value"] for r in row.results]


def _clearly_better(one: list[float], other: list[float]) -> bool:
    """Of values of which more is better; those of an error are below 0."""
    error = sum(statistics.variance(values) / len(values) for values in (one, other)) ** 0.5
    least = POINTS if max(*one, *other) > 0 else SHARE * abs(statistics.fmean(other))
    return statistics.fmean(one) - statistics.fmean(other) > max(CLEAR * error, least)


def _shown(row: PaperRow) -> str:
    """Mean ± standard deviation, and of an error also from which batch on it stays small."""
    if not row.results or row.results[0]["metric"] != "mse":
        return row.ours
    reached = [_stays_below(row, limit) for limit in BELOW]
    return "; ".join([row.ours, *(f"< {limit:g} {when}" for limit, when in zip(BELOW, reached, strict=True))])


def _stays_below(row: PaperRow, limit: float) -> str:
    """The median over the seeds of the first batch from which every validation stays below a limit."""
    batches = sorted(
        _from_batch(run.evaluations, limit) for run in read_runs([r for r in row.runs if (r / "result.json").is_file()])
    )
    middle = batches[len(batches) // 2] if batches else float("inf")
    return "not" if middle == float("inf") else f"from {middle:.0f}"


def _from_batch(evaluations: list[dict[str, Any]], limit: float) -> float:
    records = [(each["batch"], each["value"] < limit) for each in evaluations if each["split"] == "validation"]
    last = [list(group) for _, group in groupby(records, key=lambda record: record[1])][-1:]
    return float(last[0][0][0]) if last and last[0][0][1] else float("inf")
