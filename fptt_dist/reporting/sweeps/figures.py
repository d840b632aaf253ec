"""The figures of a sweep."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from fptt_dist.config.values import show
from fptt_dist.reporting.plots.canvas import new_figure, save
from fptt_dist.reporting.plots.palette import COLORS
from fptt_dist.reporting.runs.groups import short_names
from fptt_dist.reporting.sweeps.heatmap import heatmap_figure
from fptt_dist.reporting.sweeps.results import Point, SweepResults, TrialRow
from fptt_dist.reporting.sweeps.scale import is_log, title

SHOWN = 3  # points that have their own color


def draw_sweep(results: SweepResults, folder: Path) -> list[Path]:
    """Write heatmap.png and curves.png to `folder`, each where there is something to draw.

    Returns:
        The files that were written; old files of the others are deleted.
    """
    files = [draw(results, folder) for draw in (draw_heatmap, draw_curves)]
    return [file for file in files if file is not None]


def draw_heatmap(results: SweepResults, folder: Path) -> Path | None:
    """Write the plot of `heatmap_figure` to `folder`."""
    return save(heatmap_figure(results), folder / "heatmap.png")


def draw_curves(results: SweepResults, folder: Path) -> Path | None:
    """Write the plot of `curves_figure` to `folder`."""
    return save(curves_figure(results), folder / "curves.png")


def curves_figure(results: SweepResults) -> Figure | None:
    """Plot the validation metric against training sequences, one line per trial; None before the first validation."""
    points = [point for point in results.points if any(_line(trial) for trial in point.trials)]
    if not points:
        return None
    names = short_names(results.varying)
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    legend: dict[str, None] = {}
    for rank, point in reversed(list(enumerate(points))):  # the best on top
        default = any(trial.default for trial in point.trials)
        if rank < SHOWN:
            color, label = COLORS[rank], _label(point, names)
        else:
            color, label = ("black", _label(point, names)) if default else ("0.75", f"the other {_others(points)}")
        for trial in point.trials:
            line = _line(trial)
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    color=color,
                    linestyle="--" if default else "-",
                    linewidth=2 if rank < SHOWN or default else 0.7,
                    marker="o" if len(line) == 1 else None,
                    markersize=4,
                    zorder=2 if rank >= SHOWN and not default else 3,
                    label="_" if label in legend else label,
                )
                legend[label] = None
    if is_log(results, (value for point in points for trial in point.trials for _, value in _line(trial))):
        axes.set_yscale("log")
    axes.set_xlabel("training sequences")
    axes.set_ylabel(f"validation {results.metric}")
    axes.set_title(title(results))
    axes.grid(visible=True, which="both", color="0.93")
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))[::-1]  # the best first,
    entries.sort(key=lambda entry: -entry[0].get_zorder())  # the gray ones last
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, fontsize=8, loc="outside lower center")
    return figure


def _line(trial: TrialRow) -> list[tuple[int, float]]:
    """Return the trial's curve without non-finite values."""
    return [(sequences, value) for sequences, value in trial.curve if math.isfinite(value)]


def _label(point: Point, names: dict[str, str]) -> str:
    values = " ".join(f"{names[key]}={show(value)}" for key, value in point.values.items())
    extra = [*(["default"] if any(trial.default for trial in point.trials) else [])]
    extra += [] if point.finished else [point.state]
    return values + (f" ({', '.join(extra)})" if extra else "")


def _others(points: list[Point]) -> int:
    """Return the number of points without their own color."""
    return sum(not any(trial.default for trial in point.trials) for point in points[SHOWN:])
