"""Writer of a sweep directory's own files: sweep.json, best.yaml, figures/ and tensorboard/."""

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fptt_dist.algorithm import SCHEMES
from fptt_dist.config import dump, load
from fptt_dist.config.values import show
from fptt_dist.files import write_atomic
from fptt_dist.records import dumps
from fptt_dist.reporting.sweeps.directory import read_sweep
from fptt_dist.reporting.sweeps.figures import draw_sweep
from fptt_dist.reporting.sweeps.results import Point, SweepResults, TrialRow


def write_sweep(path: Path) -> SweepResults:
    """Write sweep.json, best.yaml, figures/ and tensorboard/ of the sweep in `path`, from its trials so far.

    Raises:
        ConfigError: a folder that holds no sweep, or a file of it that cannot be read.
    """
    results = read_sweep(path)
    write_atomic(path / "sweep.json", dumps(_summary(results), indent=1) + "\n")
    if results.best is None:
        (path / "best.yaml").unlink(missing_ok=True)
    else:
        write_atomic(path / "best.yaml", _best(results, results.best))
    draw_sweep(results, path / "figures")
    _write_hparams(results, path / "tensorboard")
    return results


def _summary(results: SweepResults) -> dict[str, Any]:
    return {
        "metric": results.metric,
        "higher_is_better": results.higher_is_better,
        "varying": results.varying,
        "best": results.best.trials[0].index if results.best else None,
        "default": [trial.index for trial in results.trials if trial.default],
        "points": [_point(results, point) for point in results.points],
        "trials": [
            {**{key: value for key, value in asdict(trial).items() if key != "curve"}, "path": trial.name}
            for trial in results.trials
        ],
    }


def _point(results: SweepResults, point: Point) -> dict[str, Any]:
    return {
        "trials": [trial.index for trial in point.trials],
        "values": point.values,
        "state": point.state,
        "mean": point.mean,
        "sd": point.deviation,
        "front": point in results.front,
    }


def _best(results: SweepResults, point: Point) -> str:
    """Return the configuration of the point's first trial, below a comment on its origin."""
    trial = point.trials[0]
    workers = results.asked.get("workers", 1)
    lines = [
        f"the best of the sweep {results.path.resolve().name}: trial {trial.name}, "
        f"validation {results.metric} {show(trial.value)}"
    ]
    if point.deviation is not None:
        lines.append(f"over {len(point.trials)} seeds: {point.mean:.6g} ± {point.deviation:.6g}")
    lines.append(
        "to train it: " + (f"fptt-dist launch --nproc {workers}" if workers > 1 else "fptt-dist train") + " best.yaml"
    )
    config = load(trial.path / "config.yaml", {"run.dir": None, "resume": "never"})
    return "".join(f"# {line}\n" for line in lines) + dump(config)


def _write_hparams(results: SweepResults, folder: Path) -> None:
    """Write TensorBoard's HParams of the trials that have a value, replacing the old ones."""
    metric = f"hparam/validation_{results.metric}"
    rows = _columns({trial.name: _values(trial) for trial in results.trials if trial.value is not None})
    every = {key: value for row in rows.values() for key, value in row.items()}
    # TensorBoard takes the columns of a folder from any one of its runs, so each run names all of them.
    experiment, _, _ = hparams(every, {metric: 0.0})
    with tempfile.TemporaryDirectory(prefix=".report-", dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        for trial in results.trials:
            if trial.value is None:
                continue
            _, start, end = hparams(rows[trial.name], {metric: trial.value})
            with SummaryWriter(str(new / trial.name)) as board:
                assert board.file_writer is not None
                for summary in (experiment, start, end):
                    board.file_writer.add_summary(summary)
                board.add_scalar(metric, trial.value)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)


def _values(trial: TrialRow) -> dict[str, Any]:
    """Return the trial's values of the varying keys, with null replaced by the actual K and H."""
    values = dict(trial.values)
    if None in (values.get("fptt.windows", 0), values.get("parallel.sync_every", 0)):
        config = load(trial.path / "config.yaml")
        updates = config.windows_run if SCHEMES[config.algorithm].update_each_window else 1
        known = {"fptt.windows": config.windows, "parallel.sync_every": updates}
        values |= {key: value for key, value in known.items() if key in values and values[key] is None}
    return values


def _columns(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows with one type per key, for TensorBoard to sort and filter: numbers, without null, or texts."""
    texts = {
        key
        for row in rows.values()
        for key, value in row.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float))
    }
    return {
        name: {
            key: value if isinstance(value, str) else show(value) if key in texts else value
            for key, value in row.items()
            if key in texts or value is not None
        }
        for name, row in rows.items()
    }
