"""The common style of the report's figures: group styles, axes, legends and number formats."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fptt_dist.reporting.plots.canvas import new_figure
from fptt_dist.reporting.plots.palette import COLORS, LINES
from fptt_dist.reporting.runs.groups import Group

MARKERS = "os^DvPX<>h"
MARKED = 10  # approximate number of markers on a line
WIDTH, HEIGHT = 8.0, 4.5  # inches, without the legend
LINE_OF_LEGEND = 0.24  # inches
LEGEND_CHARACTERS = 96  # that fit into the figure's width
TEXT = 11  # points
SPAN = 30.0  # ratio of the largest to the smallest value above which an axis is logarithmic
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: of its file, without suffix; unique in the report.
        section: "Convergence", "Windows", "FPTT", "Consensus" or "Speed".
        title: a few words.
        caption: the content, how to read it, and the units, in a few sentences.
        figure: 8 inches wide.
    """

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Style:
    """The style of a group, the same in every figure."""

    color: str
    line: str
    marker: str
    label: str

    def plot(self, axes: Axes, x: list[float], y: list[float], **more: Any) -> None:
        """Draw a line with about ten markers."""
        axes.plot(
            x,
            y,
            color=self.color,
            linestyle=self.line,
            marker=self.marker,
            markersize=5,
            markevery=max(1, math.ceil(len(x) / MARKED)),
            linewidth=1.8,
            label=self.label,
            **more,
        )


@dataclass(frozen=True)
class Styled:
    """A group with its style."""

    group: Group
    style: Style


def styled(groups: list[Group]) -> list[Styled]:
    """Return every group with its own style: colors vary first, then lines; markers cycle independently."""
    return [
        Styled(
            group,
            Style(
                color=COLORS[number % len(COLORS)],
                line=LINES[number // len(COLORS) % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                label=plain_text(group.label),
            ),
        )
        for number, group in enumerate(groups)
    ]


def panel(labels: list[str]) -> tuple[Figure, Axes]:
    """Return a figure of one panel, with room for the legend of these labels, which `legend` draws below it."""
    _, rows = _arrangement(labels)
    figure = new_figure(WIDTH, HEIGHT + LINE_OF_LEGEND * rows)
    axes = figure.add_subplot()
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=TEXT)
    return figure, axes


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Set the axes' labels, with units."""
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend of all lines below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    columns, _ = _arrangement(labels)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT - 1,
        frameon=False,
        handlelength=3,
        borderpad=0.2,
    )


def _arrangement(labels: list[str]) -> tuple[int, int]:
    """Return the numbers of columns and rows of a legend."""
    columns = max(1, min(4, len(labels), LEGEND_CHARACTERS // (max(map(len, labels), default=1) + 7)))
    return columns, math.ceil(len(labels) / columns)


def is_wide(values: Iterable[float]) -> bool:
    """Return whether the values call for a logarithmic axis."""
    found = list(values)
    return bool(found) and min(found) > 0 and max(found) > SPAN * min(found)


def color_norm(values: list[float], *, log: bool) -> Normalize:
    """Return the norm of a color scale of these values, which has a width even where all are equal."""
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 1.1, high * 1.1) if log else (low - 0.1, high + 0.1)
    return (LogNorm if log else Normalize)(low, high)


def log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers; to be called after everything is drawn."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    if decades < 0.8:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def plain_numbers(axes: Axes) -> None:
    """Format both axes with numbers such as 0.5, 200 and 20k, without an offset or a factor."""
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number(value: float) -> str:
    """Return the value as short text: 0.05, 200, 2.5k, 1M."""
    for size, letter in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def plain_text(text: str) -> str:
    """Return the text with its dollar signs escaped, which matplotlib would read as math."""
    return text.replace("$", r"\$")


def seconds_unit(most: float) -> tuple[float, str]:
    """Return the size in seconds and the name of the unit for durations up to `most`."""
    if most >= 3 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if most >= 600 else (1.0, "s")


def bytes_unit(most: float) -> tuple[float, str]:
    """Return the size in bytes and the name of the unit for amounts up to `most`."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024.0**power:
            return 1024.0**power, name
    return 1.0, "bytes"
