"""Quality against communication: gradient averaging and every kind of consensus, four workers, the same sequences.

    python -m benchmarks.convergence --runs runs/convergence data.root=data

Four gloo workers on this node train MNIST by rows (10,000 images, 3 epochs): gradient averaging, and consensus
every H ∈ {1, K, 4 K, 100 K} updates with a shared dual (mean) or a dual per worker (damped, ADMM), on an IID partition
and on one by label; then some of them on permuted MNIST, 7 pixels per step and by rows. Each setting tries the learning
rates 2e-3 and 4e-3, then 1e-3 or 8e-3 beside the better one, with one seed, and repeats the one with the best
validation accuracy with the others. Nothing is chosen on test data. One ρ serves all H. Finished runs are kept: the
same command resumes after an interruption.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fptt_dist.config import load, parse_overrides
from fptt_dist.parallel import Communicator, LaunchEnvironment, communicator
from fptt_dist.training.process.signals import StopFlag
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.trainer import Trainer

WORKERS = 4
PARTS = ["iid", "pmnist", "by_label", "permuted_rows"]
PERMUTED = ("task.permutation=0",)
RATES = ("2e-3", "4e-3")
NEXT = {"2e-3": "1e-3", "4e-3": "8e-3"}
COMMON = [
    "task.examples=10000",
    "task.validation=2000",
    "train.max_epochs=3",
    "logging.tensorboard=false",
    "logging.every_batches=39",
    "checkpoint.every_batches=1000000",
    "device=cpu",
]
KINDS = {
    "shared mean": [],
    "worker damped": ["parallel.dual=local"],
    "worker admm": ["parallel.dual=local", "parallel.dual_update=admm"],
}


@dataclass(frozen=True)
class Setting:
    """One row: its name, the configuration it starts from, and the keys that make it."""

    name: str
    config: str
    partition: str
    keys: tuple[str, ...]

    def folder(self, rate: str, seed: int) -> str:
        """Return the name of its runs."""
        words = self.name.replace(",", "").replace(" ", "-").replace("=", "")
        return f"{self.data}-{self.partition}-{words}-lr{rate}-seed{seed}"

    @property
    def data(self) -> str:
        """Training data, as the table calls them."""
        return Path(self.config).stem + ("_permuted" if set(PERMUTED) <= set(self.keys) else "")


def settings(part: str) -> Iterator[Setting]:
    """Yield the rows of one part."""
    gradient = ("parallel.strategy=data_parallel",)
    if part == "pmnist":
        yield Setting("gradient", "pmnist.yaml", "fixed", gradient)
        for name, every in (("K", 8), ("4K", 32)):
            for kind in ("shared mean", "worker damped"):
                yield synchronizing("pmnist.yaml", "fixed", kind, name, every)
        return
    if part == "permuted_rows":
        yield Setting("gradient", "mnist_rows.yaml", "fixed", (*gradient, *PERMUTED))
        for kind, name, every in (("shared mean", "K", 7), ("worker damped", "K", 7), ("worker damped", "4K", 28)):
            row = synchronizing("mnist_rows.yaml", "fixed", kind, name, every)
            yield replace(row, keys=(*row.keys, *PERMUTED))
        return
    config, windows = "mnist_rows.yaml", 7
    partition = "fixed" if part == "iid" else "by_label"
    yield Setting("gradient", config, partition, gradient)
    if part == "iid":  # how much of a dual's gain is momentum
        for beta in ("0.95", "0.98"):
            keys = (*gradient, f"optimizer.betas=[{beta}, 0.999]")
            yield Setting(f"gradient, Adam beta1={beta}", config, partition, keys)
    for name, factor in (("K", windows), ("4K", 4 * windows), ("100K", 100 * windows), ("1", 1)):
        for kind in KINDS:
            yield synchronizing(config, partition, kind, name, factor)


def synchronizing(config: str, partition: str, kind: str, name: str, every: int) -> Setting:
    """Return consensus of one kind every `every` updates, which the table calls `name`."""
    keys = ("parallel.strategy=consensus", f"parallel.sync_every={every}", *KINDS[kind])
    return Setting(f"{kind}, H={name}", config, partition, keys)


def run(
    everyone: Communicator, setting: Setting, rate: str, seed: int, root: Path, common: list[str]
) -> dict[str, Any]:
    """Train one setting on all workers, unless it is finished; return what rank 0 found."""
    folder = root / setting.folder(rate, seed)
    keys = [*COMMON, *common, *setting.keys, f"data.partition={setting.partition}", f"optimizer.lr={rate}"]
    config = load(setting.config, parse_overrides([*keys, f"seed={seed}", f"run.dir={folder}"]))
    done = everyone.rank0_first(lambda: (folder / "result.json").is_file(), name="finished")
    if not done:
        run_folder = RunDirectory(config)
        everyone.rank0_first(lambda: start(folder, run_folder), name="run folder")
        environment = LaunchEnvironment(everyone.rank, everyone.world, everyone.rank, "the benchmark")
        Trainer(run_folder, environment, torch.device("cpu")).fit(StopFlag())
        everyone.barrier(name="finished")
    return everyone.rank0_first(lambda: collect(folder, setting, rate, seed), name="result")


def start(folder: Path, run_folder: RunDirectory) -> None:
    """Create a fresh folder: an interrupted run starts anew."""
    shutil.rmtree(folder, ignore_errors=True)
    run_folder.open()


def collect(folder: Path, setting: Setting, rate: str, seed: int) -> dict[str, Any]:
    """Return the row of one finished run; its checkpoints are dropped."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    result = json.loads((folder / "result.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [record for record in records if record["kind"] == "train"]
    batches = training[-1]["batch"]
    name = "gradients" if setting.name.startswith("gradient") else "sync"
    costs = [record["collectives"].get(name, {"calls": 0, "bytes": 0}) for record in training]
    row = {
        "setting": setting.name,
        "data": setting.data,
        "partition": setting.partition,
        "rate": rate,
        "seed": seed,
        "validation": result["validation"],
        "test": result["value"],
        "sequences_per_second": result["sequences_per_second"],
        "collectives": sum(cost["calls"] for cost in costs) / batches,
        "bytes": sum(cost["bytes"] for cost in costs) / batches,
        "drift": training[-1].get("drift"),
    }
    print(
        f"{time.strftime('%H:%M:%S')} {folder.name}: validation {result['validation']:.4f}, {result['seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return row


def tune(everyone: Communicator, setting: Setting, root: Path, common: list[str], seeds: int) -> list[dict[str, Any]]:
    """Return the rates tried with seed 0, then the chosen one with every seed, in this order."""
    tried = [run(everyone, setting, rate, 0, root, common) for rate in RATES]
    better = max(tried, key=lambda row: row["validation"])
    tried.append(run(everyone, setting, NEXT[better["rate"]], 0, root, common))
    best = max(tried, key=lambda row: row["validation"])
    repeated = [best, *(run(everyone, setting, best["rate"], seed, root, common) for seed in range(1, seeds))]
    return [{**row, "chosen": False} for row in tried] + [{**row, "chosen": True} for row in repeated]


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown, one line per setting."""
    lines = [
        "| data | partition | setting | chosen rate | test %, mean ± s.d. | each seed | validation % "
        "| collectives per batch | MB per batch | sequences/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    chosen: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["chosen"]:
            chosen.setdefault((row["data"], row["partition"], row["setting"]), []).append(row)
    for (data, partition, name), runs in chosen.items():
        tests = [100.0 * r["test"] for r in runs]
        deviation = statistics.stdev(tests) if len(tests) > 1 else 0.0
        lines.append(
            f"| {data} | {'IID' if partition == 'fixed' else 'by label'} | {name} | {runs[0]['rate']} "
            f"| {statistics.mean(tests):.1f} ± {deviation:.1f} | {' / '.join(f'{t:.1f}' for t in tests)} "
            f"| {100.0 * statistics.mean(r['validation'] for r in runs):.1f} | {runs[0]['collectives']:.3g} "
            f"| {runs[0]['bytes'] / 1e6:.3g} | {statistics.median(r['sequences_per_second'] for r in runs):.0f} |"
        )
    return "\n".join(lines)


def work(rank: int, options: argparse.Namespace, store: str) -> None:
    """Run one of the four workers."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS, timeout=timedelta(minutes=30)
    )
    everyone = communicator(LaunchEnvironment(rank, WORKERS, rank, "the benchmark"), torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for part in options.parts:
        for setting in settings(part):
            rows += tune(everyone, setting, options.runs, options.overrides, options.seeds)
            if rank == 0:
                (options.runs / "convergence.json").write_text(json.dumps(rows, indent=1) + "\n")
    if rank == 0:
        print(table(rows))
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    dist.destroy_process_group()


def main() -> None:
    """Announce the number of runs, then train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that receives every run's values too")
    options = parser.parse_intermixed_args()
    count = sum(1 for part in options.parts for _ in settings(part))
    runs = count * (len(RATES) + 1 + options.seeds - 1)
    print(f"{count} settings, {runs} runs of {WORKERS} workers, 10 to 40 s each", file=sys.stderr)
    options.runs.mkdir(parents=True, exist_ok=True)
    store = options.runs / f"store-{time.time_ns()}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end with this process
    mp.spawn(work, (options, str(store)), nprocs=WORKERS, daemon=True)
    store.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
