"""The paper's figures: convergence on the adding task, and the strength of the regularizer."""

import math
from bisect import bisect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fptt_dist.algorithm.stability import explicit_limit
from fptt_dist.history import History, read_runs
from fptt_dist.reporting.paper.table import PaperRow, PaperTable
from fptt_dist.reporting.plots.canvas import new_figure, save
from fptt_dist.reporting.plots.palette import COLORS, LINES
from fptt_dist.reporting.plots.series import BLOCKS, block_size, last_window, mean
from fptt_dist.reporting.runs.metrics import CHANCE

BEYOND = 2.0  # times the best value, beyond which a value is off the scale
SPLITS = {"value": "test", "validation": "validation"}
Points = list[tuple[float, float]]


def draw_curves(table: PaperTable, path: Path) -> Path | None:
    """Plot training loss and validation error against batches: a row of panels per length, a curve per table row.

    A curve is the mean over the seeds; its band spans their smallest to their largest value.

    Returns:
        The file's path; None, without writing a file, where no run has started.
    """
    return save(curves_figure(table), path)


def draw_alpha(table: PaperTable, path: Path) -> Path | None:
    """Plot test and validation metric against α, with the explicit step's stability limit; see `draw_curves`."""
    return save(alpha_figure(table), path)


def curves_figure(table: PaperTable) -> Figure | None:
    """Return the figure of `draw_curves`; None where no run has started."""
    lengths: dict[int, list[tuple[PaperRow, list[History]]]] = {}
    for row in table.rows:
        runs = _begun(row)
        if runs:
            lengths.setdefault(runs[0].config["task"]["length"], []).append((row, runs))
    if not lengths:
        return None
    figure = new_figure(11, 0.4 + 3.6 * len(lengths))
    panels = figure.subplots(len(lengths), 2, squeeze=False)
    for (length, rows), (left, right) in zip(lengths.items(), panels, strict=True):
        for number, (row, runs) in enumerate(rows):
            style = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number // len(COLORS) % len(LINES)]}
            _curve(left, [_training(run) for run in runs], row.label, style)
            _curve(right, [_validation(run) for run in runs], row.label, style)
        metric = next((each["metric"] for _, runs in rows for run in runs for each in run.evaluations), "metric")
        task, size = rows[0][1][0].config["task"]["name"], rows[0][1][0].config["train"]["batch_size"]
        for axes, name in ((left, "training loss, last window"), (right, f"validation {metric}")):
            if task in CHANCE:
                axes.axhline(CHANCE[task], color="0.4", linewidth=1, linestyle=(0, (1, 2)))
            axes.set_yscale("log")
            axes.set_xlabel(f"batches of {size} sequences")
            axes.set_ylabel(name)
            axes.set_title(f"{task}, {length} steps")
            axes.grid(visible=True, color="0.9")
        right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def alpha_figure(table: PaperTable) -> Figure | None:
    """Return the figure of `draw_alpha`: the α values evenly spaced, values off the scale written above theirs."""
    rows = [(_alpha(runs[0]), row, runs) for row in table.rows if (runs := _begun(row))]
    if not rows:
        return None
    rows.sort(key=lambda each: each[0])
    alphas = [alpha for alpha, _, _ in rows]
    finite = [found for _, row, _ in rows for key in SPLITS for found in _values(row, key) if math.isfinite(found)]
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    low = min(finite, default=0.0)
    high = max((value for value in finite if value <= BEYOND * low), default=1.0)
    margin = 0.08 * (high - low) or 0.05 * high
    axes.set_ylim(low - margin, high + 2.0 * margin)
    for (key, name), color, marker in zip(SPLITS.items(), COLORS, "os", strict=False):
        seeds = [found if _on_scale(found := _values(row, key), high) else [math.nan] for _, row, _ in rows]
        axes.plot([sum(each) / len(each) for each in seeds], color=color, marker=marker, linewidth=2, label=name)
        ends = list(map(min, seeds)), list(map(max, seeds))
        axes.vlines(range(len(rows)), *ends, color=color, linewidth=5, alpha=0.35)
    for place, (_, row, _) in enumerate(rows):
        text = _lost(row, high)
        if text:
            axes.annotate(f"▲\n{text}", (place, high + 1.9 * margin), ha="center", va="top", fontsize=9)
    if table.budget != "smoke":
        known = [(place, float(row.paper)) for place, (_, row, _) in enumerate(rows) if row.paper is not None]
        known = [(place, value) for place, value in known if low - margin <= value <= high + 2.0 * margin]
        if known:
            axes.plot(*zip(*known, strict=True), "x", color="black", markersize=9, label="the paper")
    limit = _limit(next((runs[0].config for alpha, _, runs in rows if alpha > 0), rows[0][2][0].config))
    if limit is not None:
        label = f"limit of the explicit regularizer alone, α = {limit:.3g}"
        axes.axvline(_place(limit, alphas), color="black", linewidth=1, linestyle="--", label=label)
    axes.set_xlim(-0.5, len(rows) - 0.1)
    axes.set_xticks(range(len(rows)), [f"{alpha:g}" for alpha in alphas])
    axes.set_xlabel("α, the strength of the regularizer")
    axes.set_ylabel(next((result["metric"] for _, row, _ in rows for result in row.results), "metric"))
    axes.set_title(table.title)
    axes.grid(visible=True, color="0.9")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _begun(row: PaperRow) -> list[History]:
    """Return the row's runs that have started."""
    return read_runs([run for run in row.runs if (run / "config.yaml").is_file()])


def _training(run: History) -> Points:
    """Return block means of batch and last window's loss, where the label has full weight for every algorithm."""
    points = [(record["batch"], value) for record, value in last_window(run)]
    size = block_size(len(points), BLOCKS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(block[-1][0], mean(value for _, value in block)) for block in blocks]


def _validation(run: History) -> Points:
    return [(each["batch"], each["value"]) for each in run.evaluations if each["split"] == "validation"]


def _curve(axes: Axes, seeds: list[Points], label: str, style: dict[str, Any]) -> None:
    """Plot the mean over the seeds that have reached each batch, and the band from the smallest to the largest."""
    values: dict[float, list[float]] = {}
    for points in seeds:
        for batch, value in points:
            values.setdefault(batch, []).append(value)
    batches = sorted(values)

    def each(of: Callable[[list[float]], float]) -> list[float]:
        return [of(values[batch]) for batch in batches]

    axes.plot(batches, each(lambda found: sum(found) / len(found)), linewidth=2, label=label, **style)
    if any(len(found) > 1 for found in values.values()):
        axes.fill_between(batches, each(min), each(max), color=style["color"], alpha=0.15, linewidth=0)


def _alpha(run: History) -> float:
    return run.config["fptt"]["alpha"] if run.config["algorithm"] == "fptt" else 0.0


def _limit(config: dict[str, Any]) -> float | None:
    """Return the α above which the explicit regularizer alone is unstable; None where no limit is known."""
    optimizer, fptt = config["optimizer"], config["fptt"]
    if (
        optimizer["name"] not in ("sgd", "nt_asgd")
        or fptt["update_rule"] != "gradient"
        or fptt["metric"] != "euclidean"
    ):
        return None
    momentum, nesterov = optimizer.get("momentum", 0.0), optimizer.get("nesterov", False)
    limit = explicit_limit(fptt["beta"], fptt["prox_weight"], fptt["dual_weight"], momentum=momentum, nesterov=nesterov)
    return limit / optimizer["lr"]


def _values(row: PaperRow, key: str) -> list[float]:
    return [float(result[key]) for result in row.results]


def _on_scale(values: list[float], high: float) -> bool:
    return bool(values) and sum(values) / len(values) <= high


def _lost(row: PaperRow, high: float) -> str:
    """Return the text for a row whose test metric is off the scale; "" where it is on it."""
    values = _values(row, "value")
    if not values:
        return row.ours.partition(" (")[0].replace(" ", "\n")
    return "" if _on_scale(values, high) else f"{sum(values) / len(values):.3g}"


def _place(limit: float, alphas: list[float]) -> float:
    """Return the position of a value on the axis of `alphas`: by its logarithm between two of them, else outside."""
    above = bisect(alphas, limit)
    if above == len(alphas):
        return above - 0.4
    if above == 0 or alphas[above - 1] == 0:
        return above - 0.5
    below = alphas[above - 1]
    return above - 1 + math.log(limit / below) / math.log(alphas[above] / below)
