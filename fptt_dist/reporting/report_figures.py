"""The pictures of a report."""

from fptt_dist.reporting.groups import Group
from fptt_dist.reporting.report_figures_convergence import convergence
from fptt_dist.reporting.report_figures_fptt import fptt
from fptt_dist.reporting.report_figures_speed import speed
from fptt_dist.reporting.report_figures_style import Picture, styled
from fptt_dist.reporting.report_figures_subject import subjects
from fptt_dist.reporting.report_figures_windows import windows
from fptt_dist.reporting.report_figures_workers import consensus

__all__ = ["Picture", "pictures"]


def pictures(groups: list[Group]) -> list[Picture]:
    """The pictures that there is data for, section by section.

    A group has the same colour, line and marker in all of them. Runs of different tasks, or of different metrics, never
    share a picture.
    """
    found = subjects(styled(groups))
    sections = (convergence, windows, fptt, consensus, speed)
    return [picture for draw in sections for subject in found for picture in draw(subject)]
