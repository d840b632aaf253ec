"""FPTT beside its baselines on one configuration: each tuned over the same small grid on validation, then repeated.

    python benchmarks/compare.py configs/pmnist.yaml --runs runs/pmnist --epochs 3 data.root=data

Every method gets the same learning rates; FPTT gets its α as well. The best setting of each, by the validation metric
of the first seed, is repeated with the other seeds. Nothing is chosen on test data. Finished runs are kept, so the same
command resumes after an interruption. Prints a Markdown table and writes it, with all runs, as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINES = ("bptt", "tbptt_accumulated", "bptt_aux", "tbptt")
METRICS = {"fptt, plain": "euclidean", "fptt, preconditioned": "preconditioned"}


@dataclass(frozen=True)
class Setting:
    """One point of the grid: the method's name in the table, and the keys that make it."""

    method: str
    keys: tuple[str, ...]

    def folder(self, root: Path, seed: int) -> Path:
        """Return the folder of its run with this seed."""
        words = [self.method.replace(", ", "-"), *(f"{name}{value}" for name, value in self.tuned().items())]
        return root / "-".join([*words, f"seed{seed}"])

    def tuned(self) -> dict[str, str]:
        """Return the tuned values by their short names: lr, and alpha for FPTT."""
        pairs = dict(key.split("=") for key in self.keys)
        return {name.rpartition(".")[2]: pairs[name] for name in ("optimizer.lr", "fptt.alpha") if name in pairs}


def grid(rates: list[str], alphas: dict[str, list[str]]) -> Iterator[Setting]:
    """Yield every setting: the baselines with each learning rate, FPTT with each learning rate and α."""
    for method in BASELINES:
        for rate in rates:
            yield Setting(method, (f"algorithm={method}", f"optimizer.lr={rate}"))
    for method, metric in METRICS.items():
        for rate in rates:
            for alpha in alphas[metric]:
                keys = ("algorithm=fptt", f"fptt.metric={metric}", f"optimizer.lr={rate}", f"fptt.alpha={alpha}")
                yield Setting(method, keys)


def run(config: str, setting: Setting, seed: int, root: Path, common: list[str]) -> dict[str, Any]:
    """Train one setting in a process of its own with one thread, unless it is finished; return its result."""
    folder = setting.folder(root, seed)
    if not (folder / "result.json").is_file():
        command = [sys.executable, "-m", "fptt_dist", "train", config, *common, *setting.keys]
        command += [f"seed={seed}", f"run.dir={folder}", "resume=auto", "logging.tensorboard=false"]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    result = json.loads((folder / "result.json").read_text())
    print(
        f"{folder.name}: validation {result['validation']:.4f}, {result['seconds']:.0f} s", file=sys.stderr, flush=True
    )
    return {**result, "tuned": setting.tuned()}


def spread(values: list[float], digits: int) -> str:
    """Return mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table: one row per method, with its chosen setting."""
    accuracy = next(iter(results.values()))[0]["metric"] == "accuracy"
    factor, digits = (100.0, 2) if accuracy else (1.0, 5)
    unit = " %" if accuracy else ""
    lines = [
        f"| method | chosen on validation | test{unit}, mean ± s.d. | each seed | validation{unit} | updates |",
        "|---|---|---|---|---|---|",
    ]
    for method, runs in results.items():
        tests = [factor * r["value"] for r in runs]
        validations = [factor * r["validation"] for r in runs]
        keys = ", ".join(f"{name} {value}" for name, value in runs[0]["tuned"].items())
        lines.append(
            f"| {method} | {keys} | {spread(tests, digits)} | {' / '.join(f'{t:.{digits}f}' for t in tests)} "
            f"| {spread(validations, digits)} | {runs[0]['updates']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Tune, repeat and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", default=["1e-3", "2e-3", "4e-3", "8e-3"])
    parser.add_argument("--alphas", nargs="+", default=["0.01", "0.1", "0.5"], help="α of the plain regularizer")
    parser.add_argument(
        "--fractions", nargs="+", default=["0.25", "0.5", "1.0"], help="α of the preconditioned regularizer"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--methods", nargs="+", default=[*BASELINES, *METRICS], help="rows of the table")
    options = parser.parse_intermixed_args()

    common = [f"train.max_epochs={options.epochs}", *options.overrides]
    alphas = {"euclidean": options.alphas, "preconditioned": options.fractions}
    settings = [setting for setting in grid(options.rates, alphas) if setting.method in options.methods]
    repeats = len(options.methods) * (options.seeds - 1)
    print(f"{len(settings)} runs to tune, then {repeats} more, {options.workers} side by side", file=sys.stderr)

    with ThreadPoolExecutor(options.workers) as pool:
        tuned = list(pool.map(lambda s: run(options.config, s, 0, options.runs, common), settings))
        higher = tuned[0]["metric"] == "accuracy"
        chosen: dict[str, tuple[Setting, dict[str, Any]]] = {}
        for setting, result in zip(settings, tuned, strict=True):
            best = chosen.get(setting.method)
            if best is None or (result["validation"] > best[1]["validation"]) == higher:
                chosen[setting.method] = (setting, result)
        jobs = [(setting, seed) for setting, _ in chosen.values() for seed in range(options.seeds)]
        repeated = list(pool.map(lambda job: run(options.config, job[0], job[1], options.runs, common), jobs))

    results: dict[str, list[dict[str, Any]]] = {method: [] for method in chosen}
    for (setting, _), result in zip(jobs, repeated, strict=True):
        results[setting.method].append(result)
    (options.runs / "comparison.json").write_text(json.dumps({"tuning": tuned, "chosen": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
