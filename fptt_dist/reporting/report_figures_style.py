"""What the report's figures have in common: a style for each group, axes, legends, and how numbers are written."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fptt_dist.reporting.groups import Group
from fptt_dist.reporting.palette import COLOURS, LINES
from fptt_dist.reporting.sweep_scale import SPAN, new_figure

MARKERS = "os^DvPX<>h"
MARKED = 10  # markers of a line, about
WIDTH, HEIGHT = 8.0, 4.5  # inches, without the legend
LINE_OF_LEGEND = 0.24  # inches
LEGEND_CHARACTERS = 96  # that fit into the figure's width
TEXT = 11  # points
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its file, without suffix; no other picture has it.
        section: "Convergence", "Windows", "FPTT", "Consensus" or "Speed".
        title: a few words.
        caption: what is seen, how to read it, and units, in some sentences.
        figure: 8 inches wide.
    """

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Style:
    """How a group looks, in every picture."""

    colour: str
    line: str
    marker: str
    label: str

    def plot(self, axes: Axes, x: list[float], y: list[float], **more: Any) -> None:
        """Draw a line with about ten markers."""
        axes.plot(
            x,
            y,
            color=self.colour,
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
    """A group and how it looks."""

    group: Group
    style: Style


def styled(groups: list[Group]) -> list[Styled]:
    """Every group with a style of its own: colours first, then lines; markers go round with both."""
    return [
        Styled(
            group,
            Style(
                colour=COLOURS[number % len(COLOURS)],
                line=LINES[number // len(COLOURS) % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                label=plain_text(group.label),
            ),
        )
        for number, group in enumerate(groups)
    ]


def panel(labels: list[str]) -> tuple[Figure, Axes]:
    """A figure of one panel, higher by the legend of these labels, which `legend` draws below it."""
    _, rows = _arrangement(labels)
    figure = new_figure(WIDTH, HEIGHT + LINE_OF_LEGEND * rows)
    axes = figure.add_subplot()
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=TEXT)
    return figure, axes


def name_axes(axes: Axes, x: str, y: str) -> None:
    """The axes' labels, with units."""
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def legend(figure: Figure, axes: Axes) -> None:
    """All lines' labels below the axes."""
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
    """Columns and rows of a legend."""
    columns = max(1, min(4, len(labels), LEGEND_CHARACTERS // (max(map(len, labels), default=1) + 7)))
    return columns, math.ceil(len(labels) / columns)


def is_wide(values: Iterable[float]) -> bool:
    """Whether the values are better placed by their logarithms."""
    found = list(values)
    return bool(found) and min(found) > 0 and max(found) > SPAN * min(found)


def log_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers on it; to be called once everything is drawn."""
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
    """Numbers such as 0.5, 200 and 20k on both axes, without a factor beside the axis."""
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number(value: float) -> str:
    """As short text: 0.05, 200, 2.5k, 1M."""
    for size, letter in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def plain_text(text: str) -> str:
    """With every dollar sign as itself, where matplotlib would begin an equation."""
    return text.replace("$", r"\$")


def seconds_unit(most: float) -> tuple[float, str]:
    """The seconds of the unit in which durations up to `most` are shown, and its name."""
    if most >= 3 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if most >= 600 else (1.0, "s")


def bytes_unit(most: float) -> tuple[float, str]:
    """The bytes of the unit in which amounts up to `most` are shown, and its name."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024.0**power:
            return 1024.0**power, name
    return 1.0, "bytes"
