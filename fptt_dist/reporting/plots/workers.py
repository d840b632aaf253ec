"""Plots of the workers' drift and of the cost of communication."""

from fptt_dist.reporting.plots.lines import lines
from fptt_dist.reporting.plots.series import bytes_so_far, field
from fptt_dist.reporting.plots.style import Plot
from fptt_dist.reporting.plots.subject import Subject

SECTION = "Consensus"


def consensus(subject: Subject) -> list[Plot]:
    """Plot drift, bytes sent and time blocked of the groups with several workers."""
    drift = lines(
        subject.looks,
        field("drift"),
        name=f"consensus_drift{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: drift between workers",
        caption="The largest distance of a worker's weights to the mean over all workers, relative to the mean's norm, "
        "at the last sync before each record; 0 before the first. Strategies that average gradients have none.",
        quantity="drift, largest share of the mean's norm",
        from_zero=True,
    )
    sent = lines(
        subject.looks,
        bytes_so_far,
        name=f"consensus_bytes{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: bytes sent",
        caption="Payload that rank 0 has passed to collectives since the run began, summed over all its starts.",
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
        caption="Share of the training time that rank 0 was blocked by collectives, since the previous record. "
        "On a GPU it is the host's time.",
        quantity="blocked, share of the training time",
        log=False,
        from_zero=True,
    )
    return [plot for plot in (drift, sent, blocked) if plot is not None]
