"""Runs made up for the tests of the report's figures."""

from pathlib import Path
from typing import Any

import numpy as np

from fptt_dist.reporting import History
from fptt_dist.reporting.plots.convergence import convergence
from fptt_dist.reporting.plots.figures import pictures
from fptt_dist.reporting.plots.fptt import fptt
from fptt_dist.reporting.plots.speed import speed
from fptt_dist.reporting.plots.style import Plot, styled
from fptt_dist.reporting.plots.subject import subjects
from fptt_dist.reporting.plots.windows import windows
from fptt_dist.reporting.plots.workers import consensus
from fptt_dist.reporting.runs.groups import group_runs

BATCH = 64
SECTIONS = {"convergence": convergence, "windows": windows, "fptt": fptt, "consensus": consensus, "speed": speed}


def drawn(runs: list[History], *sections: str) -> dict[str, Plot]:
    """The pictures of some sections, or of all, by their names."""
    groups = group_runs(runs)
    subject = subjects(styled(groups))
    some = [picture for name in sections for each in subject for picture in SECTIONS[name](each)]
    found = some if sections else pictures(groups)
    assert len({picture.name for picture in found}) == len(found)
    return {picture.name: picture for picture in found}


def made(
    name: str = "run",
    *,
    algorithm: str = "fptt",
    task: dict[str, Any] | None = None,
    metric: str = "mse",
    windows: int = 3,
    records: int = 20,
    evaluations: int = 5,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    alpha: float = 0.5,
) -> History:
    """A run with random positive numbers, as a folder would say it."""
    random = np.random.default_rng([seed, windows, records, len(name)])
    config = {
        "algorithm": algorithm,
        "task": task or {"name": "adding", "length": 12},
        "fptt": {"alpha": alpha, "windows": windows},
        "seed": seed,
        "device": device,
    }
    training = []
    for batch in range(1, records + 1):
        losses = random.uniform(0.1, 0.2, windows).tolist()
        fields = ("regularizer_ratio", "center_distance", "dual_norm", "sequences_per_second", "memory_bytes")
        record = {**_position(batch, windows, seed), "window_losses": losses, "loss": sum(losses) / windows}
        record |= {field: random.uniform(1.0, 2.0) for field in fields}
        record |= {f"window_{metric}": [], "data_wait": random.uniform(0.0, 0.3)}
        if workers > 1:
            record |= {"bytes_sent": int(random.integers(1, 1000)), "blocked_share": random.uniform(0.1, 0.5)}
            record |= {"drift": random.uniform(0.0, 0.1)}
        training.append({"kind": "train", **record})
    found = [
        {"kind": "evaluation", **_position(4 * number, windows, seed), "split": split, "metric": metric, "value": value}
        for number in range(1, evaluations + 1)
        for split, value in (("validation", random.uniform(0.1, 0.2)), ("test", 77.0))
    ]
    return History(Path(name), config, training, found, {"workers": workers})


def _position(batch: int, updates: int, seed: int) -> dict[str, Any]:
    """Where training is; seeds take different times."""
    return {
        "batch": batch,
        "sequences": batch * BATCH,
        "updates": batch * updates,
        "seconds": batch * (1.0 + 0.25 * seed),
    }
