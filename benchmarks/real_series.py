"""Real series of one's own files: BPTT, truncated BPTT and FPTT, each tuned alike, beside plain baselines.

    python -m benchmarks.real_series --out results/real_series                        # sktime is installed
    python -m benchmarks.real_series --out results/real_series --sktime PATH          # or unpacked in a folder
    python -m benchmarks.real_series --out results/real_series --table                # print what is there

JapaneseVowels (270 + 370 series of 7 to 29 steps, 9 speakers) and BasicMotions (40 + 40 series of 100 steps, 4 classes)
come from the sktime package, the yearly sunspot numbers from statsmodels; they are written as .npz files and trained as
anyone's are, by `task.name=arrays`. Learning rate and α are chosen by the validation examples of seeds 100 and 101; the
best are repeated with seeds 0 to 7, which the table shows. Each result is a JSON file: those that exist are skipped, so
that the same command resumes. `--table` trains nothing and prints Markdown.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_series_baselines import classifiers, forecasters
from fptt_dist.config import Config, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.config.schema.tasks import ArraysTask
from fptt_dist.training.run import train
from fptt_dist.training.setup.task_factory import build_task

METHODS = ("bptt", "tbptt", "fptt")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ALPHAS = (0.05, 0.2, 0.5)
HIDDEN = (64, 256)  # of the runs with and without bucketing; the others have 64
SEARCH, SEEDS = (100, 101), tuple(range(8))
LOG_LOSS = str(Path(__file__).with_name("log_loss.py").resolve())
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Quantiles of Student's t distribution for two-sided 95 % intervals, by degrees of freedom."""


@dataclass(frozen=True)
class DataSet:
    """A data set, and the settings that all methods have on it.

    Attributes:
        name: of its files.
        title: in the table.
        metric: what the table shows; accuracy in %.
        monitor: what checkpoints and settings are chosen by, on validation examples.
        keys: of the configuration.
    """

    name: str
    title: str
    metric: str
    monitor: str
    keys: dict[str, Any]

    @property
    def factor(self) -> float:
        """Factor of the table's numbers: 100 for %."""
        return 100.0 if self.metric == "accuracy" else 1.0


CLASSES = {"task.target": "class", "task.metrics": ["accuracy", f"{LOG_LOSS}:LogLoss"], "task.monitor": "LogLoss"}
SETS = (
    DataSet(
        "japanese_vowels",
        "JapaneseVowels",
        "accuracy",
        "LogLoss",
        {
            **CLASSES,
            "task.length": 29,
            "task.validation_share": 0.2,
            "fptt.windows": 5,
            "train.batch_size": 24,
            "train.max_epochs": 30,
        },
    ),
    DataSet(
        "basic_motions",
        "BasicMotions",
        "accuracy",
        "LogLoss",
        {
            **CLASSES,
            "task.length": 100,
            "task.validation_share": 0.3,
            "fptt.windows": 10,
            "train.batch_size": 7,
            "train.max_epochs": 60,
        },
    ),
    DataSet(
        "sunspots",
        "sunspots",
        "rmse",
        "rmse",
        {
            "task.target": "forecast",
            "task.metrics": ["rmse", "mae"],
            "task.length": 24,
            "task.validation_share": 0.15,
            "fptt.windows": 4,
            "train.batch_size": 16,
            "train.max_epochs": 30,
        },
    ),
)


@dataclass(frozen=True)
class Run:
    """One run: its method and settings."""

    data: str
    method: str
    rate: float
    alpha: float | None
    seed: int
    hidden: int = 64
    bucketing: bool = True
    repeat: int | None = None

    @property
    def name(self) -> str:
        """Name of its result."""
        words = [self.data, self.method, f"lr{self.rate:g}"]
        words += [] if self.alpha is None else [f"alpha{self.alpha:g}"]
        if self.repeat is not None:
            words += [f"hidden{self.hidden}", "bucketing" if self.bucketing else "shuffled", f"repeat{self.repeat}"]
        return "-".join([*words, f"seed{self.seed}"])


def read_ts(path: Path) -> tuple[NDArray, NDArray, NDArray]:
    """Read a .ts file: one series a line, channels separated by colons, the class last.

    Returns:
        Inputs (sum of the lengths, C), lengths (N,) and classes (N,), text.
    """
    series, classes = [], []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and line[0] not in "#@":
                *channels, label = line.strip().split(":")
                series.append(np.array([channel.split(",") for channel in channels], np.float32).T)
                classes.append(label)
    return np.concatenate(series), np.array([len(each) for each in series]), np.array(classes)


def write_data(folder: Path, sktime: Path | None) -> None:
    """Write the data sets as .npz files, one for training and one for the test.

    Args:
        folder: receives them.
        sktime: folder of the package or of its unpacked wheel; None: the installed one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, title in (("japanese_vowels", "JapaneseVowels"), ("basic_motions", "BasicMotions")):
        for part, suffix in (("train", "TRAIN"), ("test", "TEST")):
            if (folder / f"{name}-{part}.npz").is_file():
                continue
            file = sktime_folder(sktime) / "datasets" / "data" / title / f"{title}_{suffix}.ts"
            inputs, lengths, targets = read_ts(file)
            np.savez(folder / f"{name}-{part}.npz", inputs=inputs, lengths=lengths, targets=targets)
    years, numbers = sunspots()
    context = next(each for each in SETS if each.name == "sunspots").keys["task.length"]
    for part, first, last in (("train", 1700, 1920), ("test", 1921 - context, 1955)):
        np.savez(folder / f"sunspots-{part}.npz", inputs=numbers[None, (years >= first) & (years <= last), None])


def sktime_folder(path: Path | None) -> Path:
    """Return the folder of the package."""
    if path is not None:
        return path / "sktime" if (path / "sktime").is_dir() else path
    spec = find_spec("sktime")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "sktime is not installed: type pip download --no-deps sktime==1.2.0, unzip the wheel, and add --sktime PATH"
        )
    return Path(spec.submodule_search_locations[0])


def sunspots() -> tuple[NDArray, NDArray]:
    """Return the years and their mean sunspot numbers, from statsmodels."""
    from statsmodels.datasets import sunspots as module

    table: Any = module.load_pandas().data
    return table["YEAR"].to_numpy(dtype="int64"), table["SUNACTIVITY"].to_numpy(dtype="float32")


def configuration(data: DataSet, run: Run, folder: Path, runs: Path) -> Config:
    """Return the configuration of a run, whose own folder is in `runs`; `folder` has the .npz files."""
    keys = {
        **data.keys,
        "task.split_seed": run.seed,
        "task.bucketing": run.bucketing,
        "model.hidden": run.hidden,
        "optimizer.lr": run.rate,
        "algorithm": run.method,
        "seed": run.seed,
        "checkpoint.every_batches": 10**6,
        "logging.every_batches": 10**6,
        "logging.tensorboard": False,
        "device": "cpu",
        "run.dir": str(runs / run.name),
    }
    if run.method == "fptt":
        keys |= {"fptt.metric": "preconditioned", "fptt.alpha": run.alpha}
    if run.repeat is not None:
        keys["evaluate.every_batches"] = 10**6  # its seconds count
    train_file, test_file = (str(folder / f"{data.name}-{part}.npz") for part in ("train", "test"))
    task = ArraysTask(train=train_file, test=test_file, length=data.keys["task.length"])
    return apply_overrides(Config(task=task, train=TrainSection(max_epochs=1)), keys)


def grid(data: DataSet) -> Iterator[Run]:
    """Yield the runs of the search: all methods have the same rates, FPTT each with several α."""
    for method in METHODS:
        for rate in RATES:
            for alpha in ALPHAS if method == "fptt" else (None,):
                for seed in SEARCH:
                    yield Run(data.name, method, rate, alpha, seed)


def chosen(data: DataSet, method: str, found: dict[str, dict[str, Any]]) -> Run | None:
    """Return the setting with the best mean validation value over the search seeds; None while some are missing."""
    values: dict[tuple[float, float | None], list[float]] = {}
    for run in grid(data):
        if run.method == method:
            if run.name not in found:
                return None
            values.setdefault((run.rate, run.alpha), []).append(found[run.name]["validation"][data.monitor])
    rate, alpha = min(values, key=lambda setting: statistics.mean(values[setting]))
    return Run(data.name, method, rate, alpha, 0)


def repeated(best: Run) -> list[Run]:
    """Return the runs of the table with these settings."""
    return [Run(best.data, best.method, best.rate, best.alpha, seed) for seed in SEEDS]


def train_one(data: DataSet, run: Run, folder: Path) -> dict[str, Any]:
    """Train one run and return what the table needs of it."""
    with tempfile.TemporaryDirectory() as runs:
        began = time.process_time()
        result = train(configuration(data, run, folder / "data", Path(runs)))
        cpu_seconds = time.process_time() - began
    return {
        "run": run.name,
        "validation": result.metrics["validation"],
        "test": result.metrics["test"],
        "updates": result.updates,
        "batches": result.batches,
        "sequences": result.sequences,
        "best_batch": result.best_batch,
        "parameters": result.parameters,
        "seconds": result.seconds,
        "cpu_seconds": cpu_seconds,
        "versions": result.versions,
    }


def keep(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write a result; a file that exists is complete."""
    partial = folder / f"{name}.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(folder / f"{name}.json")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results that are there, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def measure(data: DataSet, folder: Path) -> None:
    """Do what is missing of one data set: baselines, search, then the chosen settings."""
    file = folder / f"{data.name}-baselines.json"
    if not file.is_file():
        parts = [dict(np.load(folder / "data" / f"{data.name}-{part}.npz")) for part in ("train", "test")]
        found = forecasters(*sunspots()) if data.metric == "rmse" else classifiers(*parts, seeds=len(SEEDS))
        keep(folder, file.stem, found)
    for run in grid(data):
        ensure(data, run, folder)
    for method in METHODS:
        best = chosen(data, method, results(folder))
        assert best is not None
        for run in repeated(best):
            ensure(data, run, folder)
    if data.name == "japanese_vowels":
        padding(data, folder)


def ensure(data: DataSet, run: Run, folder: Path) -> None:
    """Train a run unless its result is there."""
    if (folder / f"{run.name}.json").is_file():
        return
    began = time.perf_counter()
    result = train_one(data, run, folder)
    keep(folder, run.name, result)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in result["validation"].items())
    print(f"{time.strftime('%H:%M:%S')} {run.name}: {shown}, {time.perf_counter() - began:.1f} s", file=sys.stderr)


def speed_runs(hidden: int, *, bucketing: bool) -> list[Run]:
    """Return the runs whose speed is compared."""
    name, repeats = SETS[0].name, range(3)
    return [Run(name, "tbptt", 1e-3, None, 0, hidden, bucketing, repeat) for repeat in repeats]


def padding(data: DataSet, folder: Path) -> None:
    """Train with and without bucketing in turns, and write the share of steps that are padding in an epoch."""
    for hidden in HIDDEN:
        for pair in zip(speed_runs(hidden, bucketing=True), speed_runs(hidden, bucketing=False), strict=True):
            for run in pair:
                ensure(data, run, folder)
    if (folder / f"{data.name}-padding.json").is_file():
        return
    shares = {}
    for bucketing in (True, False):
        config = configuration(data, speed_runs(HIDDEN[0], bucketing=bucketing)[0], folder / "data", folder)
        task = build_task(config)
        size, real, all_steps = config.train.batch_size, 0, 0
        for cursor in range(0, task.train_examples // size * size, size):
            batch = task.train_batch(0, cursor, size, slice(0, size))
            assert batch.lengths is not None
            real += int(batch.lengths.sum())
            all_steps += batch.inputs.shape[0] * size
        shares["bucketing" if bucketing else "shuffled"] = 1 - real / all_steps
    keep(folder, f"{data.name}-padding", shares)


def interval(values: list[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % t-interval of 2 to 8 values."""
    return statistics.mean(values), T_95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def verdict(mean: float, half: float, *, higher_is_better: bool) -> str:
    """Return the meaning of a difference's interval: on par only where all of it is within ±1."""
    if max(abs(mean - half), abs(mean + half)) <= 1:
        return "on par"
    if mean - half <= 0 <= mean + half:
        return "not decided"
    return "better" if (mean > 0) == higher_is_better else "worse"


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return Markdown of what is there: values, paired differences, padding; a row needs all of its seeds."""
    lines = [
        "| data | method | chosen | test, mean ± 95 % | smallest–largest | validation | updates |",
        "|---|---|---|---|---|---|---|",
    ]
    differences = ["| data | difference of the test values | mean ± 95 % | verdict |", "|---|---|---|---|"]
    for data in SETS:
        head = f"{data.title}, {'accuracy in %' if data.metric == 'accuracy' else 'RMSE'}"
        tests: dict[str, list[float]] = {}
        for method in METHODS:
            best = chosen(data, method, found)
            runs = [] if best is None else [found[run.name] for run in repeated(best) if run.name in found]
            if best is None or len(runs) < len(SEEDS):
                continue
            tests[method] = [data.factor * run["test"][data.metric] for run in runs]
            mean, half = interval(tests[method])
            alpha = "" if best.alpha is None else f", α {best.alpha:g}"
            validation = statistics.mean(data.factor * run["validation"][data.metric] for run in runs)
            lines.append(
                f"| {head} | `{method}` | lr {best.rate:g}{alpha} | {mean:.2f} ± {half:.2f} | {min(tests[method]):.2f}–"
                f"{max(tests[method]):.2f} | {validation:.2f} | {runs[0]['updates']:,} |"
            )
        for name, values in found.get(f"{data.name}-baselines", {}).items():
            scaled = [data.factor * value for value in values]
            shown, spread = f"{scaled[0]:.2f}", ""
            if len(scaled) > 1:
                mean, half = interval(scaled)
                shown, spread = f"{mean:.2f} ± {half:.2f}", f"{min(scaled):.2f}–{max(scaled):.2f}"
            lines.append(f"| {head} | {name} | | {shown} | {spread} | | |")
        for one, other in (("fptt", "tbptt"), ("fptt", "bptt"), ("tbptt", "bptt")):
            if one in tests and other in tests:
                mean, half = interval([a - b for a, b in zip(tests[one], tests[other], strict=True)])
                meaning = verdict(mean, half, higher_is_better=data.metric == "accuracy")
                differences.append(f"| {data.title} | `{one}` − `{other}` | {mean:+.2f} ± {half:.2f} | {meaning} |")
    return "\n".join([*lines, "", *differences, *_padding_lines(found)])


def _padding_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    shares = found.get(f"{SETS[0].name}-padding")
    names = [run.name for hidden in HIDDEN for each in (True, False) for run in speed_runs(hidden, bucketing=each)]
    if shares is None or any(name not in found for name in names):
        return
    yield from (
        "",
        "| task.bucketing | padding | hidden units | sequences per CPU second, median of 3 | ratio |",
        "|---|---|---|---|---|",
    )
    for hidden in HIDDEN:
        medians = {
            bucketing: statistics.median(
                found[run.name]["sequences"] / found[run.name]["cpu_seconds"]
                for run in speed_runs(hidden, bucketing=bucketing)
            )
            for bucketing in (False, True)
        }
        for bucketing, speed in medians.items():
            share = 100 * shares["bucketing" if bucketing else "shuffled"]
            ratio = speed / medians[False]
            yield f"| {str(bucketing).lower()} | {share:.1f} % | {hidden} | {speed:,.0f} | {ratio:.2f} |"


def versions() -> str:
    """Return the versions of what is installed."""
    names = ("torch", "numpy", "scikit-learn", "statsmodels")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sktime", type=Path, help="folder of the package, or of its unpacked wheel")
    parser.add_argument("--sets", nargs="+", default=[each.name for each in SETS], choices=[each.name for each in SETS])
    parser.add_argument("--table", action="store_true", help="print only")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        write_data(options.out / "data", options.sktime)
        for data in SETS:
            if data.name in options.sets:
                measure(data, options.out)
    print(f"{table(results(options.out))}\n\n{versions()}")


if __name__ == "__main__":
    main()
