"""Plots of FPTT's state: the distance to the slow weights, the dual, and the regularizer's gradient."""

from fptt_dist.algorithm.schemes import SCHEMES
from fptt_dist.reporting.plots.lines import lines
from fptt_dist.reporting.plots.series import field
from fptt_dist.reporting.plots.style import Plot, Styled
from fptt_dist.reporting.plots.subject import Subject

SECTION = "FPTT"


def fptt(subject: Subject) -> list[Plot]:
    """Plot ‖W − W̄‖ of every group, ‖λ‖ and ‖regularizer gradient‖/‖loss gradient‖ of those with a regularizer.

    Returns:
        An empty list where no group has a regularizer.
    """
    regularized = [each for each in subject.looks if _has_regularizer(each)]
    if not regularized:
        return []
    distance = lines(
        subject.looks,
        field("center_distance"),
        name=f"fptt_center_distance{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: distance of the weights to the slow weights",
        caption="The 2-norm of W − W̄ over all parameters, before the last update of the recorded batch. "
        "A run without the regularizer also keeps slow weights W̄, but they have no effect on its training.",
        quantity=r"distance to the slow weights, $\Vert W-\overline{W}\Vert$",
    )
    dual = lines(
        regularized,
        field("dual_norm"),
        name=f"fptt_dual_norm{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: the dual",
        caption="The 2-norm of the dual λ over all parameters, before the last update of the recorded batch.",
        quantity=r"norm of the dual, $\Vert\lambda\Vert$",
    )
    ratio = lines(
        regularized,
        field("regularizer_ratio"),
        name=f"fptt_regularizer_ratio{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: the regularizer's gradient against the loss's",
        caption="The 2-norm of the regularizer's gradient divided by that of the loss's gradient, at the last update "
        "of the recorded batch. At 1 both are equally strong; near 0 it is plain training on windows.",
        quantity=r"$\Vert$regularizer gradient$\Vert$ / $\Vert$loss gradient$\Vert$",
    )
    return [plot for plot in (distance, dual, ratio) if plot is not None]


def _has_regularizer(each: Styled) -> bool:
    procedure = SCHEMES.get(each.group.runs[0].config["algorithm"])
    return procedure is not None and procedure.has_regularizer
