"""Boxes, arrows and colors of the figures in the documentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

# Okabe & Ito's colors, which color-blind readers can distinguish; edges in full strength, fills lightened.
EQUAL, OWN, SENT, SHARD, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#202020", "#6B6B6B"
WIDTH = 800  # units of a figure's width: points at full size


def picture(height: float) -> tuple[Figure, Axes]:
    """Return an empty white figure of WIDTH × `height` units with the origin at the top left."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def thin(color: str) -> tuple[float, float, float]:
    """Return a light tint of the color on which black text is legible."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (0.8 + 0.2 * red, 0.8 + 0.2 * green, 0.8 + 0.2 * blue)


def text(
    axes: Axes, x: float, y: float, words: str, *, size: float = 16, color: str = INK, align: str = "center",
    bold: bool = False,
) -> None:  # fmt: skip
    """Draw words with the middle of their capitals at the height y."""
    weight = "bold" if bold else "normal"
    lines = words.split("\n")
    for number, line in enumerate(lines):
        below = 0.36 * size + 1.25 * size * (number - (len(lines) - 1) / 2)  # a bar over a letter must not move it down
        axes.text(x, y + below, line, size=size, color=color, ha=align, va="baseline", weight=weight)


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    words: str,
    color: str,
    *,
    size: float = 16,
    dashed: bool = False,
) -> None:
    """Draw a rounded box with words in it, its top left corner at (x, y)."""
    look = {"facecolor": thin(color), "edgecolor": color, "linewidth": 2, "linestyle": "--" if dashed else "-"}
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=6", **look))
    text(axes, x + width / 2, y + height / 2, words, size=size)


def frame(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """Draw a thin gray frame around a group of boxes."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=GREY, linewidth=1.2))


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = INK,
    *,
    both: bool = False,
    width: float = 2.2,
) -> None:
    """Draw an arrow with one head or two."""
    look = {"linewidth": width, "color": color, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="<|-|>" if both else "-|>", mutation_scale=16, **look))


def legend(axes: Axes, y: float, entries: Sequence[tuple[str, str, float]]) -> None:
    """Draw the legend of the colors in one line: (color, words, x) for each entry."""
    for color, words, x in entries:
        patch = Rectangle((x, y - 8), 20, 16, facecolor=thin(color), edgecolor=color, linewidth=2)
        axes.add_patch(patch)
        text(axes, x + 28, y, words, size=14, align="left")


def save(figure: Figure, path: Path) -> Path:
    """Write an SVG that needs no font and is the same at every run."""
    FigureCanvasSVG(figure)
    settings: dict[Any, Any] = {
        "svg.fonttype": "path",
        "svg.hashsalt": "fptt-dist",
        "font.family": "DejaVu Sans",
        "path.simplify": False,
    }
    with mpl.rc_context(settings):
        path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path
