"""The figures of a report."""

from fptt_dist.reporting.plots.convergence import convergence
from fptt_dist.reporting.plots.fptt import fptt
from fptt_dist.reporting.plots.speed import speed
from fptt_dist.reporting.plots.style import Plot, styled
from fptt_dist.reporting.plots.subject import subjects
from fptt_dist.reporting.plots.windows import windows
from fptt_dist.reporting.plots.workers import consensus
from fptt_dist.reporting.runs.groups import Group

__all__ = ["Plot", "pictures"]


def pictures(groups: list[Group]) -> list[Plot]:
    """Return the figures for which there is data, section by section.

    A group has the same color, line and marker in all of them. Runs of different tasks or metrics never share a figure.
    """
    found = subjects(styled(groups))
    sections = (convergence, windows, fptt, consensus, speed)
    return [picture for draw in sections for subject in found for picture in draw(subject)]
