"""Convergence plots: the validation metric and the training loss over training."""

from fptt_dist.reporting.plots.lines import ALONG, lines
from fptt_dist.reporting.plots.series import field, last_window, validation
from fptt_dist.reporting.plots.style import Plot
from fptt_dist.reporting.plots.subject import Subject
from fptt_dist.reporting.runs.metrics import CHANCE, LOG_METRICS

SECTION = "Convergence"
WHY = {
    "sequences": "Equal sequences mean equal data.",
    "updates": "FPTT and tbptt update K times per batch, the others once: equal updates are not equal data.",
    "seconds": "Training time alone, without evaluation and saving; it depends on the hardware of the runs.",
}
LAST = (
    "Loss of the last window of the recorded batch, before its update: "
    "there the label has its full weight for every algorithm."
)
EACH = "Loss of the recorded batch: the mean over its windows, each before its update."


def convergence(subject: Subject) -> list[Plot]:
    """Plot the validation metric against sequences, updates and seconds, and the training loss against sequences."""
    found = [_validation(subject, along) for along in ALONG] if subject.metric is not None else []
    return [picture for picture in [*found, _training(subject)] if picture is not None]


def _validation(subject: Subject, along: str) -> Plot | None:
    metric = subject.metric or ""
    words = metric.replace("_", " ")
    return lines(
        subject.looks,
        validation(metric),
        name=f"convergence_{along}{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: validation {words} by {ALONG[along]}",
        caption=f"Validation {words} against {ALONG[along]}. {subject.direction} {WHY[along]}".replace("  ", " "),
        quantity=f"validation {subject.measured}",
        along=along,
        log=metric in LOG_METRICS,
        reference=CHANCE.get(subject.name) if metric == "mse" else None,
    )


def _training(subject: Subject) -> Plot | None:
    window = "" if subject.per_step else ", last window"
    return lines(
        subject.looks,
        field("loss") if subject.per_step else last_window,
        name=f"convergence_training{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: training loss{window}",
        caption=f"{EACH if subject.per_step else LAST} Lower is better.",
        quantity=f"training loss{window}",
        reference=CHANCE.get(subject.name),
    )
