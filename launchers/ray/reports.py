"""Reports of a sweep's run to Ray Tune: finite numbers, whatever was measured."""

import math
from pathlib import Path
from typing import Any

from fptt_dist.reporting import read_runs

VALUE, TIME = "value", "batch"
"""Names in what a run reports: its validation metric, and the batches it has trained."""
WORST = 1e100
"""The size of the worst value. Schedulers and Optuna subtract, average and multiply values, which must not overflow."""


def report_of(folder: Path, *, higher_is_better: bool, value: float, best: float, **known: float) -> dict[str, Any]:
    """Return the report of the run in `folder`: its newest and its best validation value, and what else is `known`."""
    values = {VALUE: bounded(value, higher_is_better), "best": bounded(best, higher_is_better)}
    return {**values, **known, "bytes_sent": read_runs([folder])[0].bytes_sent}


def bounded(value: float, higher_is_better: bool) -> float:
    """Return the value within ±`WORST`; the worst of these for one that is not finite.

    With an infinity or NaN among the values the quantiles of a scheduler are NaN, and it stops nothing any more.
    """
    if not math.isfinite(value):
        return -WORST if higher_is_better else WORST
    return min(max(value, -WORST), WORST)


def shown(value: float) -> str:
    """Return a reported value for a message."""
    return f"{value:.5g}" if abs(value) < WORST else "not finite"
