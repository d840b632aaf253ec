"""Folders of sweeps, built by hand: for states that a tiny run does not reach by itself."""

import json
import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fptt_dist.config import dump
from fptt_dist.reporting import SWEEP, TRIAL
from tests.training.helpers import tiny

BATCHES = 60


def make_sweep(path: Path, varying: list[str], **asked: Any) -> Path:
    """A sweep without any trial yet."""
    path.mkdir(parents=True, exist_ok=True)
    known = {"config": {}, "space": {}, "search": {"name": "grid"}, "scheduler": {"name": "none"}, "workers": 1}
    values = {**known, "metric": "mse", "higher_is_better": False, "varying": varying, **asked}
    writer = YAML(typ="safe", pure=True)
    writer.dump(values, path / SWEEP)
    return path


def note(sweep: Path, index: int, overrides: dict[str, Any] | None = None, **more: Any) -> Path:
    """A trial that has not started."""
    folder = sweep / f"{index:03d}"
    folder.mkdir()
    text = json.dumps({"index": index, "overrides": overrides or {}, "default": False, **more})
    (folder / TRIAL).write_text(text)
    return folder


def run(
    sweep: Path,
    index: int,
    overrides: dict[str, Any] | None = None,
    values: tuple[float, ...] = (),
    *,
    finished: bool = True,
    seconds: float = 6.0,
    sent: int = 0,
    higher: bool = False,
    metric: str = "mse",
    **more: Any,
) -> Path:
    """A trial with a validation every ten batches; `more` of trial.json."""
    folder = note(sweep, index, overrides, **more)
    (folder / "config.yaml").write_text(dump(tiny(folder, overrides, batches=BATCHES)))
    best, best_batch, lines = math.nan, 0, []
    for batch, value in zip(range(10, BATCHES + 1, 10), values, strict=False):
        improved = math.isnan(best) or (value > best if higher else value < best)
        best, best_batch = (value, batch) if improved else (best, best_batch)
        place = {"batch": batch, "updates": 3 * batch, "sequences": 4 * batch, "seconds": seconds * batch / BATCHES}
        lines.append({"kind": "train", **place, "bytes_sent": sent})
        more_of_it = {"split": "validation", "metric": metric, "value": value, "best": improved}
        lines.append({"kind": "evaluation", **place, **more_of_it})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        cost = {"updates": 3 * BATCHES, "batches": BATCHES, "sequences": 4 * BATCHES, "seconds": seconds}
        found = {"value": best * 1.5, "validation": best, "best_batch": best_batch}
        (folder / "result.json").write_text(json.dumps({**found, **cost}))
    return folder
