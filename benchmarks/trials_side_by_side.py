"""Sequences per second of a node with 1, 2, 4, 8 runs of a sweep side by side, sharing its GPU.

    python benchmarks/trials_side_by_side.py configs/mnist_rows.yaml --runs runs/side_by_side data.root=data

Small recurrent networks leave a large GPU idle: each run gets 1/n of one (of the cores, without a GPU). Only the time
in which all n runs train is counted, not their starts. Prints a Markdown table and writes it as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch


def train(config: str, count: int, folder: Path, words: list[str]) -> None:
    """Train `count` runs with different seeds, all at once, unless they are finished."""
    if (folder / "sweep.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(
        json.dumps({"config": os.path.abspath(config), "space": {"seed": {"grid": list(range(max(count, 2)))}}})
    )
    share = {"cpus": len(os.sched_getaffinity(0)) / count}
    if torch.cuda.is_available():
        share = {"cpus": len(os.sched_getaffinity(0)) / 8, "gpus": 1 / count}
    resources = [f"sweep.{key}={value}" for key, value in share.items()]
    command = [sys.executable, "-m", "fptt_dist", "sweep", str(file), f"run.dir={folder}", *resources, *words]
    subprocess.run(
        [*command, f"sweep.max_concurrent={count}", "logging.every_batches=10"], check=True, stdout=subprocess.DEVNULL
    )


def speed(folder: Path, count: int) -> float:
    """Return sequences per second of the first `count` runs together, while all of them trained."""
    curves = []
    for index in range(count):
        lines = (folder / f"{index:03d}" / "metrics.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
        curves.append(([record["time"] for record in records], [record["sequences"] for record in records]))
    begin, end = max(times[0] for times, _ in curves), min(times[-1] for times, _ in curves)
    if begin >= end:
        sys.exit(f"{folder}: the runs did not train at the same time: give them more batches")
    return sum(float(np.diff(np.interp([begin, end], *curve))[0]) for curve in curves) / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; what is finished there is kept")
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of runs side by side")
    arguments, words = parser.parse_known_args()
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{len(os.sched_getaffinity(0))} cores"
    counts = [int(count) for count in arguments.counts.split(",")]
    rows = {}
    for count in counts:
        train(arguments.config, count, arguments.runs / str(count), words)
        rows[count] = speed(arguments.runs / str(count), count)
    first = rows[counts[0]]
    print(
        f"{place}, torch {torch.__version__}\n\n| runs side by side | sequences/s together | relative |\n|---|---|---|"
    )
    for count, rate in rows.items():
        print(f"| {count} | {rate:,.0f} | {rate / first:.2f} |")
    (arguments.runs / "table.json").write_text(json.dumps({"machine": place, "sequences_per_second": rows}, indent=1))


if __name__ == "__main__":
    main()
