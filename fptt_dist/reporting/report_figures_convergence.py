"""Is it learnt, and after how much training: the validation metric and the training loss."""

from fptt_dist.reporting.metrics import LOG_METRICS
from fptt_dist.reporting.palette import CHANCE
from fptt_dist.reporting.report_figures_lines import ALONG, lines
from fptt_dist.reporting.report_figures_series import field, last_window, validation
from fptt_dist.reporting.report_figures_style import Picture
from fptt_dist.reporting.report_figures_subject import Subject

SECTION = "Convergence"
WHY = {
    "sequences": "Equal sequences mean equal data.",
    "updates": "FPTT and online training update K times a batch, the others once: equal updates are not equal data.",
    "seconds": "Time of training alone, without evaluations and saving; it holds for the machine of the runs.",
}
LAST = (
    "Loss of the last window of the batch that was recorded, before its update: "
    "there the label has its whole weight for every algorithm."
)
EACH = "Loss of the batch that was recorded, the mean over its windows, each before its update."


def convergence(subject: Subject) -> list[Picture]:
    """The validation metric against sequences, updates and seconds, and the training loss against sequences."""
    found = [_validation(subject, along) for along in ALONG] if subject.metric is not None else []
    return [picture for picture in [*found, _training(subject)] if picture is not None]


def _validation(subject: Subject, along: str) -> Picture | None:
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


def _training(subject: Subject) -> Picture | None:
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
