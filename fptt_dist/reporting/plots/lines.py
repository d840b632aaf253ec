"""A plot of one quantity over training: a line and a band for each group."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from fptt_dist.reporting.plots.series import Curve, Measure, curve
from fptt_dist.reporting.plots.style import (
    Plot,
    Styled,
    bytes_unit,
    is_wide,
    legend,
    log_scale,
    name_axes,
    panel,
    plain_numbers,
    seconds_unit,
)
from fptt_dist.reporting.runs.groups import repeats_a_seed

ALONG = {"sequences": "training sequences", "updates": "parameter updates", "seconds": "training time"}
FAR = 10.0  # a first value this many times smaller than all later ones is off the scale
REPEATED = "Some runs of a group have the same seed: they are repetitions, not further evidence."
MEAN_OF_TARGETS = "always predicting the mean"


def lines(
    looks: Sequence[Styled],
    measure: Measure,
    *,
    name: str,
    section: str,
    title: str,
    caption: str,
    quantity: str,
    along: str = "sequences",
    log: bool | None = None,
    in_bytes: bool = False,
    from_zero: bool = False,
    reference: float | None = None,
) -> Plot | None:
    """Plot a quantity of these groups against sequences, updates or seconds.

    Args:
        looks: the groups; those without a finite value are left out.
        measure: the quantity to read from a run.
        name: see `Plot`, like the next ones.
        section: see `Plot`.
        title: see `Plot`; also above the axes.
        caption: its beginning; how seeds and blocks are drawn is added.
        quantity: the vertical axis's label, without the unit of bytes.
        along: the records' field of the horizontal axis.
        log: whether the vertical axis is logarithmic, if all values are positive; None: where they are far apart.
        in_bytes: whether the values are bytes, to be shown in a larger unit.
        from_zero: whether a linear vertical axis begins at 0.
        reference: the value of always predicting the targets' mean, drawn as a line.

    Returns:
        The plot; None where there is nothing to draw.
    """
    drawn = [(each.style, found) for each in looks if (found := curve(each.group, measure, along)) is not None]
    if not drawn:
        return None
    figure, axes = panel([style.label for style, _ in drawn] + [MEAN_OF_TARGETS] * (reference is not None))
    width, unit = seconds_unit(max(max(found.x) for _, found in drawn)) if along == "seconds" else (1.0, "")
    height, of_bytes = bytes_unit(max(max(found.high) for _, found in drawn)) if in_bytes else (1.0, "")
    for style, found in drawn:
        x, y, low, high = (
            [value / size for value in values]
            for values, size in zip((found.x, found.mean, found.low, found.high), (width, *[height] * 3), strict=True)
        )
        if found.seeds > 1:
            axes.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0)
        style.plot(axes, x, y)
    if reference is not None:
        axes.axhline(reference, color="0.4", linewidth=1.2, linestyle=(0, (1, 2)), label=MEAN_OF_TARGETS)
    axes.set_title(title)
    name_axes(axes, ALONG[along] + (f" ({unit})" if unit else ""), quantity + (f" ({of_bytes})" if of_bytes else ""))
    axes.set_xlim(left=0)
    plain_numbers(axes)
    curves = [found for _, found in drawn]
    repeated = any(repeats_a_seed(each.group) for each in looks)
    notes = [*_notes(curves), *[REPEATED] * repeated, *_vertical(curves, axes, log=log, from_zero=from_zero)]
    legend(figure, axes)
    return Plot(name, section, title, " ".join([caption, *notes]), figure)


def _vertical(curves: list[Curve], axes: Axes, *, log: bool | None, from_zero: bool) -> list[str]:
    """Set the vertical axis's scale and return the notes on it for the caption."""
    lowest = min(min(found.low) for found in curves)
    if lowest > 0 and (log or (log is None and is_wide(value for found in curves for value in found.mean))):
        # The first value may be off: the slow weights start equal to the weights.
        later = [value for found in curves for value in found.low[1:]]
        off = log is None and bool(later) and lowest < min(later) / FAR
        if off:
            axes.set_ylim(bottom=min(later) / 1.5)
        log_scale(axes)
        return ["A first value far below all later ones is off the scale."] if off else []
    if from_zero:
        axes.set_ylim(bottom=0)
    return []


def _notes(curves: list[Curve]) -> list[str]:
    """Return the notes on these curves for the caption."""
    several = [found.seeds > 1 for found in curves]
    notes = ["One run in each group, so there is no band."]
    if any(several):
        notes = ["Line: mean over the seeds; band: from their smallest to their largest value"]
        notes[0] += "." if all(several) else " (none where there is one run)."
    if any(found.uneven for found in curves):
        notes.append(
            "Where a run has no value (it has not come so far, or it is not finite), the mean is over the others."
        )
    block = max(found.block for found in curves)
    if block > 1:
        notes.append(f"Each point is the mean of up to {block} consecutive records.")
    left_out = sum(found.left_out for found in curves)
    if left_out:
        notes.append(f"Values that are not finite are left out: {left_out} of them.")
    return notes
