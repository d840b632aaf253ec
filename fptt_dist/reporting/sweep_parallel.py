"""Parallel coordinates: an axis for each key and for the metric, a line for each trial."""

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fptt_dist.reporting.sweep_results import SweepResults
from fptt_dist.reporting.sweep_scale import Scale, colours, drawn, finite, is_log, new_figure, scale, title

CROWD = 60  # trials, beyond which lines are thin


def parallel_figure(results: SweepResults) -> Figure | None:
    """One line a trial, coloured by the metric; the best point's are thick. None where nothing has a value."""
    shown = [trial for point in reversed(drawn(results)) for trial in point.trials if finite(trial.value)]
    if not shown:
        return None
    found = [trial.value for trial in shown if trial.value is not None]
    metric = Scale(f"validation {results.metric}", sorted(set(found)), numeric=True, log=is_log(results, found))
    scales = [scale(key, (trial.values.get(key) for trial in shown)) for key in results.varying] + [metric]
    best = results.best.trials if results.best else []
    norm, name = colours(results, found)
    thin = 0.7 if len(shown) > CROWD else 1.3
    lines = LineCollection(
        [
            [(x, each.height(value)) for x, (each, value) in enumerate(zip(scales, values, strict=True))]
            for values in ([*(trial.values.get(key) for key in results.varying), trial.value] for trial in shown)
        ],
        linewidths=[3.5 if trial in best else thin for trial in shown],
        linestyles=["solid" if trial.state == "finished" else "dotted" for trial in shown],
        norm=norm,
        cmap=name,
        array=found,
    )
    figure = new_figure(max(7.0, 1.7 * len(scales)), 5)
    axes = figure.add_subplot()
    axes.add_collection(lines)
    for x, each in enumerate(scales):
        axes.axvline(x, color="0.3", linewidth=1, zorder=2.5)
        for height, label in each.marks():
            axes.plot([x - 0.015, x + 0.015], [height, height], color="0.3", linewidth=1, zorder=2.6)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            axes.text(x + 0.03, height, label, fontsize=8, va="center", bbox=box, zorder=3)
    axes.set_xlim(-0.1, len(scales) - 1 + 0.35)
    axes.set_ylim(-0.15 if any(each.numeric and None in each.values for each in scales) else -0.04, 1.04)
    axes.set_xticks(range(len(scales)), [each.name for each in scales])
    if len(scales) > 5:
        axes.tick_params("x", rotation=20)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    notes = ["the better, the darker"]
    if best:
        notes.append("thick: the best")
    if any(trial.state != "finished" for trial in shown):
        notes.append("dotted: not trained to the end")
    axes.set_title(f"{title(results)}\n{'; '.join(notes)}")
    return figure
