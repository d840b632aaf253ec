"""What several processes cost and how far they go apart."""

from fptt_dist.reporting.report_figures_lines import lines
from fptt_dist.reporting.report_figures_series import bytes_so_far, field
from fptt_dist.reporting.report_figures_style import Picture
from fptt_dist.reporting.report_figures_subject import Subject

SECTION = "Consensus"


def consensus(subject: Subject) -> list[Picture]:
    """Drift, bytes sent and time blocked, of the groups with several processes."""
    drift = lines(
        subject.looks,
        field("drift"),
        name=f"consensus_drift{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: drift between processes",
        caption="The largest distance of a process's weights to the mean of all, relative to the mean's norm, at the "
        "last agreement before each record; 0 before the first. Strategies that average gradients have none.",
        quantity="drift, largest share of the mean's norm",
        from_zero=True,
    )
    sent = lines(
        subject.looks,
        bytes_so_far,
        name=f"consensus_bytes{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: bytes sent",
        caption="What rank 0 has handed to collectives since the beginning of the run, all starts of it together.",
        quantity="sent by rank 0",
        in_bytes=True,
        log=False,
        from_zero=True,
    )
    blocked = lines(
        subject.looks,
        field("blocked_share"),
        name=f"consensus_blocked{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: time blocked by collectives",
        caption="Share of the training time that rank 0 was blocked by collectives, since the record before. "
        "On a GPU it is the host's time.",
        quantity="blocked, share of the training time",
        log=False,
        from_zero=True,
    )
    return [picture for picture in (drift, sent, blocked) if picture is not None]
