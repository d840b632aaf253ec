"""The table of every cell with every algorithm: a row per cell, a column per algorithm, and the cause of the gain."""

import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fptt_dist.history import read_evaluations
from fptt_dist.reporting.paper.table import NONE, PaperRow, PaperTable, below, header, line
from fptt_dist.reporting.runs.metrics import higher_is_better

BELOW = (0.05, 0.01)  # errors for which the batch is reported from which a run stays below them
CLEAR = 2.0  # standard errors from which a difference counts
POINTS, SHARE = 0.005, 0.1  # the smallest difference that counts: of accuracy, and as a share of an error
MEANINGS = (
    "What helps: the regularizer, where fptt is clearly better than tbptt and bptt is not clearly better than fptt; "
    "otherwise windows, where tbptt or fptt is clearly better than bptt; BPTT, where it is clearly better than both; "
    "– elsewhere. Clearly: by more than two standard errors of the difference, and by half a point or a tenth of the "
    "error"
)


def grid_table(table: PaperTable) -> str:
    """Return the table of rows that have a column as Markdown; otherwise as `paper_table`.

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
    """Return the rows under each heading, by their labels and columns."""
    found: list[tuple[str, dict[str, dict[str, PaperRow]]]] = []
    for row in rows:
        if row.heading or not found:
            found.append((row.heading, {}))
        found[-1][1].setdefault(row.label, {})[row.column] = row
    return found


def what_helps(rows: dict[str, PaperRow]) -> str:
    """Return the last column of a cell's row; see `MEANINGS`."""
    bptt, tbptt, fptt = (_values(rows.get(name)) for name in ("bptt", "tbptt", "fptt"))
    if any(len(values) < 2 or not all(map(math.isfinite, values)) for values in (bptt, tbptt, fptt)):
        return NONE
    if _clearly_better(fptt, tbptt) and not _clearly_better(bptt, fptt):
        return "the regularizer"
    if _clearly_better(tbptt, bptt) or _clearly_better(fptt, bptt):
        return "windows"
    return "BPTT" if _clearly_better(bptt, tbptt) and _clearly_better(bptt, fptt) else NONE


def _values(row: PaperRow | None) -> list[float]:
    """Return the test metric of each seed, negated where lower is better."""
    if row is None:
        return []
    return [r["value"] if higher_is_better(r) else -r["value"] for r in row.results]


def _clearly_better(one: list[float], other: list[float]) -> bool:
    """Return whether `one` is clearly better than `other`; higher is better, negated errors are below 0."""
    error = sum(statistics.variance(values) / len(values) for values in (one, other)) ** 0.5
    least = POINTS if max(*one, *other) > 0 else SHARE * abs(statistics.fmean(other))
    return statistics.fmean(one) - statistics.fmean(other) > max(CLEAR * error, least)


def _shown(row: PaperRow) -> str:
    """Return mean ± standard deviation, and for an error also the batch from which it stays small."""
    if not row.results or row.results[0]["metric"] != "mse":
        return row.ours
    reached = [_stays_below(row, limit) for limit in BELOW]
    return "; ".join([row.ours, *(f"< {limit:g} {when}" for limit, when in zip(BELOW, reached, strict=True))])


def _stays_below(row: PaperRow, limit: float) -> str:
    """Return the median over the seeds of the first batch from which every validation stays below a limit."""
    batches = sorted(_from_batch(read_evaluations(run), limit) for run in row.finished)
    middle = batches[len(batches) // 2] if batches else float("inf")
    return "not" if middle == float("inf") else f"from {middle:.0f}"


def _from_batch(evaluations: list[dict[str, Any]], limit: float) -> float:
    records = [(each["batch"], each["value"] < limit) for each in evaluations if each["split"] == "validation"]
    last = [list(group) for _, group in groupby(records, key=lambda record: record[1])][-1:]
    return float(last[0][0][0]) if last and last[0][0][1] else float("inf")
