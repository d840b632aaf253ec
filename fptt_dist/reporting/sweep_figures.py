"""The pictures of a sweep."""

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from fptt_dist.config.values import show
from fptt_dist.reporting.palette import COLOURS
from fptt_dist.reporting.sweep_heatmap import heatmap_figure
from fptt_dist.reporting.sweep_parallel import parallel_figure
from fptt_dist.reporting.sweep_results import Point, SweepResults, TrialRow
from fptt_dist.reporting.sweep_scale import finite, is_log, new_figure, save, title

SHOWN = 3  # points with a colour of their own


def draw_sweep(results: SweepResults, folder: Path) -> list[Path]:
    """Draw heatmap.png, parallel.png and curves.png in `folder`, as far as there is something to draw.

    Returns:
        Those that were drawn; an old one of the others is removed.
    """
    pictures = [draw(results, folder) for draw in (draw_heatmap, draw_parallel, draw_curves)]
    return [picture for picture in pictures if picture is not None]


def draw_heatmap(results: SweepResults, folder: Path) -> Path | None:
    """See `heatmap_figure`."""
    return save(heatmap_figure(results), folder / "heatmap.png")


def draw_parallel(results: SweepResults, folder: Path) -> Path | None:
    """See `parallel_figure`."""
    return save(parallel_figure(results), folder / "parallel.png")


def draw_curves(results: SweepResults, folder: Path) -> Path | None:
    """See `curves_figure`."""
    return save(curves_figure(results), folder / "curves.png")


def curves_figure(results: SweepResults) -> Figure | None:
    """The validation metric against training sequences, a line a trial; None before the first validation."""
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
            colour, label = COLOURS[rank], _label(point, names)
        else:
            colour, label = ("black", _label(point, names)) if default else ("0.75", f"the other {_others(points)}")
        for trial in point.trials:
            line = _line(trial)
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    color=colour,
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
    entries.sort(key=lambda entry: -entry[0].get_zorder())  # the grey ones last
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, fontsize=8, loc="outside lower center")
    return figure


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key; the whole key where two end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def _line(trial: TrialRow) -> list[tuple[int, float]]:
    """The curve without what cannot be drawn."""
    return [(sequences, value) for sequences, value in trial.curve if finite(value)]


def _label(point: Point, names: dict[str, str]) -> str:
    values = " ".join(f"{names[key]}={show(value)}" for key, value in point.values.items())
    extra = [*(["default"] if any(trial.default for trial in point.trials) else [])]
    extra += [] if point.finished else [point.state]
    return values + (f" ({', '.join(extra)})" if extra else "")


def _others(points: list[Point]) -> int:
    """The points without a colour of their own."""
    return sum(not any(trial.default for trial in point.trials) for point in points[SHOWN:])
