"""Folders of the runs of a paper's table, built by hand."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fptt_dist.config import dump
from fptt_dist.reporting import PaperRow, PaperTable
from tests.training.helpers import tiny

VERSIONS = {"fptt_dist": "1.2", "python": "3.11.1", "torch": "2.9", "gpu": "GTX 1080", "processor": "x86_64, 4 cores"}
DAY = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()


def make_run(
    folder: Path,
    value: float | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    metric: str = "accuracy",
    curve: list[tuple[int, float]] | None = None,
    losses: list[tuple[int, list[float]]] | None = None,
    day: int = 0,
    **more: Any,
) -> Path:
    """A run that is finished with `value` on the test set and twice that on the validation set; None: not finished.

    Args:
        folder: of the run.
        value: on the test set.
        overrides: of its configuration.
        metric: the metric's name.
        curve: batch and validation value of each validation.
        losses: batch and window losses of each record.
        day: days after 4 March 2026 that it was finished.
        more: of result.json.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(tiny(folder, overrides)))
    lines = [{"kind": "train", "batch": batch, "window_losses": windows} for batch, windows in losses or []]
    for batch, found in curve or []:
        place = {"batch": batch, "sequences": 4 * batch}
        lines.append({"kind": "evaluation", **place, "split": "validation", "metric": metric, "value": found})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if value is not None:
        cost = {"updates": 1200, "seconds": 75.0, "parameters": 103690, "recurrent_parameters": 68096}
        found = {"metric": metric, "value": value, "validation": 2 * value, "versions": VERSIONS}
        (folder / "result.json").write_text(json.dumps({**found, **cost, **more}))
        stamp = DAY + 86400 * day
        os.utime(folder / "result.json", (stamp, stamp))
    return folder


def table_of(*rows: PaperRow, **more: Any) -> PaperTable:
    """A table of these rows."""
    known = {"title": "Table 9", "unit": "test accuracy in %", "notes": [], "command": "do it", "budget": "full"}
    return PaperTable(rows=list(rows), **{**known, **more})
