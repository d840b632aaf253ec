"""What FPTT's slow variables do: distance to the center, dual, and force."""

from fptt_dist.algorithm.procedures import PROCEDURES
from fptt_dist.reporting.report_figures_lines import lines
from fptt_dist.reporting.report_figures_series import field
from fptt_dist.reporting.report_figures_style import Picture, Styled
from fptt_dist.reporting.report_figures_subject import Subject

SECTION = "FPTT"


def fptt(subject: Subject) -> list[Picture]:
    """‖W − W̄‖ of every group, ‖λ‖ and ‖force‖/‖gradient‖ of those with a force; nothing without such a group."""
    pulled = [each for each in subject.looks if _has_force(each)]
    if not pulled:
        return []
    distance = lines(
        subject.looks,
        field("center_distance"),
        name=f"fptt_center_distance{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: distance of the weights to their center",
        caption="The 2-norm of W − W̄ over all parameters, before the last update of the batch that was recorded. "
        "The center W̄ of a run without FPTT's pull is kept too, but has no effect on its training.",
        quantity=r"distance to the center, $\Vert W-\overline{W}\Vert$",
    )
    dual = lines(
        pulled,
        field("dual_norm"),
        name=f"fptt_dual_norm{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: the dual",
        caption="The 2-norm of the dual λ over all parameters, before the last update of the batch that was recorded.",
        quantity=r"norm of the dual, $\Vert\lambda\Vert$",
    )
    force = lines(
        pulled,
        field("force_ratio"),
        name=f"fptt_force_ratio{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: FPTT's force against the gradient",
        caption="The 2-norm of FPTT's force divided by that of the loss's gradient, at the last update of the batch "
        "that was recorded. At 1 the pull is as strong as the gradient; near 0 it is plain training on windows.",
        quantity=r"$\Vert$force$\Vert$ / $\Vert$gradient$\Vert$",
    )
    return [picture for picture in (distance, dual, force) if picture is not None]


def _has_force(each: Styled) -> bool:
    procedure = PROCEDURES.get(each.group.runs[0].config["algorithm"])
    return procedure is not None and procedure.has_force
