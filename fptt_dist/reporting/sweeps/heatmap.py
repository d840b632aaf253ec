"""The heat map of a sweep's metric over two keys, or a scatter plot where there are too many values for cells."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fptt_dist.reporting.plots.canvas import new_figure
from fptt_dist.reporting.sweeps.results import Point, SweepResults
from fptt_dist.reporting.sweeps.scale import Scale, colors, scale, title

PREFERRED = ("fptt.alpha", "fptt.windows")
CELLS = 12  # values of a key above which there is a scatter plot


def heatmap_figure(results: SweepResults) -> Figure | None:
    """Plot the metric over two keys; None where fewer than two vary or no point has a value.

    A cell shows the best point (a mean over its seeds) of those that differ in other keys.
    """
    keys = [key for key in results.varying if key != "seed"]
    pair = PREFERRED if set(PREFERRED) <= set(keys) else keys[:2]
    means = [point.mean for point in results.points if point.mean is not None and point.measured]
    if len(pair) < 2 or not means:
        return None
    across, up = (scale(key, (point.values.get(key) for point in results.points)) for key in pair)
    norm, name = colors(results, means)
    mappable = ScalarMappable(norm, colormaps[name])
    if max(len(across.values), len(up.values)) > CELLS:
        figure = new_figure(8, 5)
        _dots(figure.add_subplot(), results, across, up, mappable)
    else:
        figure = new_figure(max(6.0, 2.8 + 0.75 * len(across.values)), max(4.0, 1.6 + 0.5 * len(up.values)))
        _cells(figure.add_subplot(), results, across, up, mappable)
    axes = figure.axes[0]
    axes.set_xlabel(across.name)
    axes.set_ylabel(up.name)
    figure.colorbar(mappable, ax=axes, label=f"validation {results.metric} (the better, the darker)")
    return figure


def _cells(axes: Axes, results: SweepResults, across: Scale, up: Scale, mappable: ScalarMappable) -> None:
    cells: dict[tuple[int, int], Point] = {}
    for point in sorted(results.points, key=lambda point: not _shown(point)):  # each kind best first
        place = across.index(point.values.get(across.name)), up.index(point.values.get(up.name))
        cells.setdefault(place, point)
    cut = False
    for x in range(len(across.values)):
        for y in range(len(up.values)):
            point = cells.get((x, y))
            corner = (x - 0.5, y - 0.5)
            if point is None or point.mean is None or not _shown(point):
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.8", hatch="///", linewidth=0.5))
                if point is not None:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                    text = point.state if point.mean is None or point.measured else str(point.mean)
                    axes.text(x, y, text, ha="center", va="center", fontsize=7, color="0.3", bbox=box)
                continue
            color = mappable.to_rgba(np.array([point.mean]))[0]
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", linewidth=0.5))
            dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 0.5
            text = f"{point.mean:.3g}" + ("" if point.finished else "*")
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            cut = cut or not point.finished
    axes.set_xlim(-0.5, len(across.values) - 0.5)
    axes.set_ylim(-0.5, len(up.values) - 0.5)
    axes.set_xticks(range(len(across.values)), across.labels)
    axes.set_yticks(range(len(up.values)), up.labels)
    if max(map(len, across.labels)) > 8:
        axes.tick_params("x", rotation=30)
    axes.tick_params(length=0)
    axes.set_title(title(results) + ("\n* not trained to the end" if cut else ""))


def _dots(axes: Axes, results: SweepResults, across: Scale, up: Scale, mappable: ScalarMappable) -> None:
    hidden = 0
    groups: dict[str, list[Point]] = {"finished": [], "not trained to the end": [], "no value": []}
    for point in reversed(results.points):  # the best on top
        if point.measured:
            groups["finished" if point.finished else "not trained to the end"].append(point)
        else:
            groups["no value"].append(point)
    for (label, points), marker in zip(groups.items(), "o^x", strict=True):
        places = [(_place(across, point), _place(up, point), point) for point in points]
        seen = [(x, y, point) for x, y, point in places if x is not None and y is not None]
        hidden += len(points) - len(seen)
        if not seen:
            continue
        xs, ys, shown = zip(*seen, strict=True)
        if label == "no value":
            axes.scatter(xs, ys, marker=marker, color="0.5", s=30, label=label, zorder=2)
        else:
            faces = mappable.to_rgba(np.array([point.mean for point in shown]))
            axes.scatter(xs, ys, marker=marker, c=faces, edgecolors="0.2", linewidths=0.5, s=50, label=label, zorder=3)
    for which, each in (("x", across), ("y", up)):
        if not each.numeric:
            axis = axes.xaxis if which == "x" else axes.yaxis
            axis.set_ticks(range(len(each.values)), each.labels)
        elif each.log:
            axes.set(**{f"{which}scale": "log"})
    axes.grid(visible=True, color="0.9", zorder=0)
    axes.set_axisbelow(True)
    if len(axes.collections) > 1 or not groups["finished"]:
        axes.legend(fontsize=8)
    axes.set_title(title(results) + (f"\n{hidden} left out, with a key unset" if hidden else ""))


def _shown(point: Point) -> bool:
    """Return whether the point's value is meaningful: a failed run may have recorded one before it failed."""
    return point.measured and point.state != "failed"


def _place(each: Scale, point: Point) -> float | None:
    value = point.values.get(each.name)
    return value if each.numeric else each.index(value)
