"""Heat maps of the loss of each window over training."""

import math
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fptt_dist.reporting.plots.canvas import new_figure
from fptt_dist.reporting.plots.series import block_size, mean
from fptt_dist.reporting.plots.style import TEXT, WIDTH, Plot, Style, color_norm, is_wide, number
from fptt_dist.reporting.plots.subject import Subject
from fptt_dist.reporting.runs.groups import Group

COLUMNS = 200  # of a heat map at most
COLOR_MAP = "cividis"
PANEL_HEIGHT = 2.2  # inches
TITLE_CHARACTERS = 36  # of a line above a panel


@dataclass(frozen=True)
class WindowLosses:
    """The losses of a group's windows.

    Attributes:
        edges: (N + 1,) boundaries of the columns, in training sequences.
        losses: (K, N) the mean of ℓ_k over a column's records and the runs; NaN where there is none.
        block: the largest number of records of a run per column.
        seeds: number of runs that have records.
        left_out: number of non-finite losses.
    """

    edges: list[float]
    losses: np.ndarray
    block: int
    seeds: int
    left_out: int


def windows(subject: Subject) -> list[Plot]:
    """Plot a heat map for each group with several windows, on one color scale; an empty list where there is none."""
    found = [(each.style, losses) for each in subject.looks if (losses := window_losses(each.group)) is not None]
    if not found:
        return []
    columns = 1 if len(found) == 1 else 2
    rows = math.ceil(len(found) / columns)
    figure = new_figure(WIDTH, 0.8 + PANEL_HEIGHT * max(rows, 1.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    values = [float(value) for _, losses in found for value in losses.losses[np.isfinite(losses.losses)]]
    log = is_wide(values)
    norm = color_norm(values, log=log)
    flat = list(panels.flat)
    meshes = [_heat_map(axes, style, losses, norm) for axes, (style, losses) in zip(flat, found, strict=False)]
    for axes in flat[len(found) :]:
        axes.set_axis_off()
    for place, axes in enumerate(flat[: len(found)]):
        if place % columns == 0:
            axes.set_ylabel("window k", fontsize=TEXT)
        if place + columns >= len(found):  # no panel below it
            axes.set_xlabel("training sequences", fontsize=TEXT)
            axes.tick_params(labelbottom=True)
    bar = figure.colorbar(meshes[0], ax=flat, pad=0.02, aspect=30 if rows > 2 else 20)
    bar.set_label("window's loss" + (" (logarithmic)" if log else ""), fontsize=TEXT)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if log:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) < 300 * min(values) else (1.0,)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    title = f"{subject.title}: loss of each window"
    figure.suptitle(title)
    return [Plot(f"windows_losses{subject.suffix}", "Windows", title, _caption([each for _, each in found]), figure)]


def window_losses(group: Group) -> WindowLosses | None:
    """Return the losses of a group with several windows, in at most `COLUMNS` columns; None for any other group.

    Records are averaged as in `curve`: consecutive ones make a column, a run's value is its mean over them, and the
    column's value is the mean over the runs.
    """
    records = [[record for record in run.training if record.get("window_losses")] for run in group.runs]
    count = max((len(record["window_losses"]) for run in records for record in run), default=0)
    sequences = {record["batch"]: record["sequences"] for run in records for record in run}
    if count < 2:
        return None
    batches = sorted(sequences)
    size = block_size(len(batches), COLUMNS)
    column = {batch: place // size for place, batch in enumerate(batches)}
    cells: dict[tuple[int, int], list[float]] = {}
    left_out = 0
    for run in records:
        own: dict[tuple[int, int], list[float]] = {}
        for record in run:
            for k, loss in enumerate(record["window_losses"]):
                if math.isfinite(loss):
                    own.setdefault((k, column[record["batch"]]), []).append(loss)
                else:
                    left_out += 1
        for cell, losses in own.items():
            cells.setdefault(cell, []).append(mean(losses))
    if not cells:
        return None
    values = np.full((count, max(column.values()) + 1), math.nan)
    for cell, losses in cells.items():
        values[cell] = mean(losses)
    ends = [float(sequences[batches[min(end, len(batches)) - 1]]) for end in range(size, len(batches) + size, size)]
    step = sequences[batches[1]] - sequences[batches[0]] if len(batches) > 1 else sequences[batches[0]]
    return WindowLosses(
        [max(0.0, sequences[batches[0]] - float(step)), *ends], values, size, sum(map(bool, records)), left_out
    )


def _heat_map(axes: Axes, style: Style, found: WindowLosses, norm: Normalize) -> QuadMesh:
    """Draw one group's panel."""
    count = len(found.losses)
    edges = [k + 0.5 for k in range(count + 1)]
    mesh = axes.pcolormesh(
        found.edges, edges, np.ma.masked_invalid(found.losses), norm=norm, cmap=COLOR_MAP, rasterized=True
    )
    axes.set_title(fill(style.label, TITLE_CHARACTERS), fontsize=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))
    axes.tick_params(labelsize=TEXT - 1)
    return mesh


def _caption(found: list[WindowLosses]) -> str:
    parts = [
        "The loss of each of the K windows of a sequence in the recorded batches, each before its update; "
        "the last window is on top. All panels have the same color scale. Runs with one window have no panel.",
    ]
    if any(each.seeds > 1 for each in found):
        parts.append("With several seeds a color is their mean.")
    block = max(each.block for each in found)
    if block > 1:
        parts.append(f"A column is the mean of up to {block} consecutive records.")
    left_out = sum(each.left_out for each in found)
    if left_out:
        parts.append(f"Values that are not finite are left out: {left_out} of them.")
    return " ".join(parts)
