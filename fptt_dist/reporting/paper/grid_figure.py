"""The plot of every cell with every algorithm: a panel per task, a line per cell, a marker per algorithm."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fptt_dist.reporting.paper.grid import by_heading
from fptt_dist.reporting.paper.table import PaperRow, PaperTable
from fptt_dist.reporting.plots.canvas import new_figure, save
from fptt_dist.reporting.plots.palette import COLORS
from fptt_dist.reporting.runs.metrics import LOG_METRICS, higher_is_better

MARKS = "soDv^"


def draw_grid(table: PaperTable, path: Path) -> Path | None:
    """Plot mean and standard deviation of the test metric, the best cells on top.

    Returns:
        The file's path; None, without writing a file, where no run is finished.
    """
    return save(grid_figure(table), path)


def grid_figure(table: PaperTable) -> Figure | None:
    """Return the figure of `draw_grid`; None where no run is finished."""
    panels = [(heading, _finished(rows)) for heading, rows in by_heading(table.rows)]
    panels = [(heading, rows) for heading, rows in panels if rows]
    if not panels:
        return None
    wide = min(len(panels), 2)
    deep = -(-len(panels) // wide)
    heights = [max(len(rows) for _, rows in panels[first : first + wide]) for first in range(0, len(panels), wide)]
    figure = new_figure(6 * wide, 1.0 + sum(0.7 + 0.28 * height for height in heights))
    grid = figure.subplots(deep, wide, squeeze=False, height_ratios=[height + 2 for height in heights])
    columns = list(dict.fromkeys(row.column for row in table.rows))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (heading, rows) in zip(grid.flat, panels, strict=False):
        _panel(axes, rows, columns)
        axes.set_title(heading)
    handles = {text: mark for axes in grid.flat for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(columns), frameon=False)
    return figure


def _finished(rows: dict[str, dict[str, PaperRow]]) -> dict[str, dict[str, PaperRow]]:
    found = {label: {name: row for name, row in own.items() if row.results} for label, own in rows.items()}
    return {label: own for label, own in found.items() if own}


def _panel(axes: Axes, rows: dict[str, dict[str, PaperRow]], columns: list[str]) -> None:
    known = next(row.results[0] for own in rows.values() for row in own.values())
    metric = known["metric"]
    best, sign = (max, 1) if higher_is_better(known) else (min, -1)
    order = sorted(rows, key=lambda label: sign * best(map(_mean, rows[label].values())))
    for number, column in enumerate(columns):
        places = [(place, rows[label][column]) for place, label in enumerate(order) if column in rows[label]]
        if places:
            axes.errorbar(
                [_mean(row) for _, row in places],
                [place + 0.18 * (len(columns) / 2 - number - 0.5) for place, _ in places],
                xerr=[_spread(row) for _, row in places],
                fmt=MARKS[number % len(MARKS)],
                color=COLORS[number % len(COLORS)],
                markersize=5,
                capsize=2,
                label=column,
            )
    if metric in LOG_METRICS:
        axes.set_xscale("log")
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"test {metric}")
    axes.grid(visible=True, color="0.9")


def _mean(row: PaperRow) -> float:
    return statistics.fmean(result["value"] for result in row.results)


def _spread(row: PaperRow) -> float:
    return statistics.stdev(result["value"] for result in row.results) if len(row.results) > 1 else 0.0
