"""Memory of a worker by strategy and size of the model: measured where asked, predicted where nothing is sharded.

    python -m benchmarks.memory_sharded                                                   # predicted
    python -m benchmarks.memory_sharded --measure 1M,10M --json results/memory.json       # measured too, two workers
    python -m benchmarks.memory_sharded --show --json results/memory.json                 # the tables of what is there

Each point is measured by fresh gloo workers of one thread: the rise of the high-water mark of a worker's resident
memory over what it had before the model was built, when a small model has been trained the same way (so that libraries
are loaded); the larger of the workers. A table shows the median of the repeats (smallest–largest).
"""

import argparse
import ctypes
import gc
import json
import logging
import math
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fptt_dist.config import Config, load
from fptt_dist.parallel import LaunchEnvironment
from fptt_dist.training.run_dir import RunDirectory, versions
from fptt_dist.training.tools import memory_model as memory
from fptt_dist.training.tools.dry_run import dry_run, memory_inputs
from fptt_dist.training.trainer import Trainer

SIZES = {"1M": (288, 2), "10M": (912, 2), "30M": (1580, 2), "100M": (2240, 3), "1B": (4768, 6)}  # hidden, layers
TABLE = ("1M", "10M", "100M", "1B")
STRATEGIES = (*memory.STRATEGIES, "fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3")
CPU = torch.device("cpu")
BATCHES, MIB = 3, 2**20
KEYS: dict[str, Any] = {
    "task.length": 6,
    "task.examples": 64,
    "task.validation": 2,
    "task.test": 2,
    "fptt.windows": 2,
    "train.batch_size": 2,
    "train.max_batches": 10,
    "device": "cpu",
}


def shapes(hidden: int, layers: int) -> list[tuple[int, ...]]:
    """Return the shapes of all parameters: a stack of LSTMs with 2 inputs, and an output layer of one unit."""
    found: list[tuple[int, ...]] = []
    for layer in range(layers):
        found += [(4 * hidden, hidden if layer else 2), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    return [*found, (1, hidden), (1,)]


def configuration(strategy: str, hidden: int, layers: int, folder: str) -> Config:
    """Return the configuration of a run of `strategy`, one of `STRATEGIES`."""
    name, _, stage = strategy.partition(" ")
    keys = {"parallel": {"strategy": name, **({"zero_stage": int(stage)} if stage else {})}}
    return load("add_task.yaml", {**KEYS, **keys, "model.hidden": hidden, "model.layers": layers, "run.dir": folder})


def _train(config: Config, environment: LaunchEnvironment) -> Trainer:
    """Train a few batches of K windows as the trainer does; the last is measured for logging."""
    trainer = Trainer(RunDirectory(config), environment, CPU)
    for number in range(BATCHES):
        batch = trainer.task.train_batch(0, 2 * number, 2, trainer.share)
        with trainer.engine.placement.collective_errors():
            trainer.loop.run(batch, measure=number == BATCHES - 1)
        trainer.engine.after_batch()
        assert trainer.engine.control.all_finite()
    return trainer


def _status(name: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _settle() -> None:
    """Free unused memory, and reset the high-water mark."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def work(strategy: str, size: tuple[int, int], rank: int, world: int, folder: str, pipe: Connection) -> None:
    """Run one worker of a point and send its values."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    logging.getLogger("fptt_dist").setLevel(logging.ERROR)
    if world > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    environment = LaunchEnvironment(rank, world, rank, local_world=world)
    warm = _train(configuration(strategy, 16, size[1], folder), environment)
    del warm
    _settle()
    before = _status("VmRSS")
    trainer = _train(configuration(strategy, *size, folder), environment)
    rise = _status("VmHWM") - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = _status("VmRSS") - before
    tried = dry_run(trainer)
    pipe.send({"rise": rise, "held": held, "activations": tried.memory["activations of one graph"]})


def measure(strategy: str, size: tuple[int, int], world: int) -> dict[str, int]:
    """Measure one repeat of one point: the maximum over its workers."""
    context = mp.get_context("spawn")
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(world):
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(strategy, size, rank, world, folder, there), daemon=True)
                process.start()
                there.close()
                pipes.append(here)
                processes.append(process)
            found = [pipe.recv() for pipe in pipes]
        except EOFError:
            raise SystemExit(f"{strategy}, {size}: a worker died") from None
        finally:
            for process in processes:
                process.join(10.0)
                process.kill()
                process.join()
    return {name: max(each[name] for each in found) for name in found[0]}


def predicted(strategy: str, size: tuple[int, int]) -> memory.Prediction:
    """Return the prediction of a run on CPUs, where nothing is sharded."""
    config = configuration(strategy, *size, "unused")
    return memory.predict(memory_inputs(config, shapes(*size), CPU), strategy)


def _size(size: float) -> str:
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"


def predicted_table() -> str:
    """Return held and at most, by size and strategy."""
    lines = ["| model | strategy | held | at most |", "|---|---|---|---|"]
    for name in TABLE:
        hidden, layers = SIZES[name]
        count = sum(map(math.prod, shapes(hidden, layers)))
        for strategy in memory.STRATEGIES:
            found = predicted(strategy, SIZES[name])
            cells = f"{_size(found.resident)} | {_size(found.peak())}"
            lines.append(f"| {layers} × {hidden}, {count:,} | {strategy} | {cells} |")
    return "\n".join(lines)


def measured_table(points: dict[str, Any]) -> str:
    """Return measured beside predicted values, if any, with the activations that the dry run counts."""
    lines = [
        "| model | strategy | at most, predicted | measured | | held, predicted | measured | activations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points.values():
        size = tuple(point["size"])
        rises, held = ([each[name] for each in point["repeats"]] for name in ("rise", "held"))
        activations = point["repeats"][0]["activations"]
        middle = statistics.median(rises)
        most, ratio, resident = "–", "–", "–"
        if point["strategy"] in memory.STRATEGIES:
            found = predicted(point["strategy"], size)
            peak = found.peak(activations)
            most, ratio, resident = _size(peak), f"{middle / peak:.2f}", _size(found.resident)
        lines.append(
            f"| {size[1]} × {size[0]} | {point['strategy']} | {most} | {_size(middle)} "
            f"({_size(min(rises))}–{_size(max(rises))}) | {ratio} | {resident} "
            f"| {_size(statistics.median(held))} | {_size(activations)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", default="", help=f"sizes, of {','.join(SIZES)}")
    parser.add_argument("--only", default="", help="measure strategies whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="what was measured, kept and added to")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a tensor leaves goes back to the system at once
    points: dict[str, Any] = {}
    if options.json and options.json.exists():
        points = json.loads(options.json.read_text())["points"]
    for name in [] if options.show else [name for name in options.measure.split(",") if name]:
        for strategy in [each for each in STRATEGIES if options.only in each]:
            world = 1 if strategy == "single" else 2
            fresh = {"strategy": strategy, "size": SIZES[name], "world": world, "repeats": []}
            point = points.setdefault(f"{name}, {strategy}", fresh)
            while len(point["repeats"]) < options.repeats:
                began = time.monotonic()
                point["repeats"].append(measure(strategy, SIZES[name], world))
                print(f"{name}, {strategy}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps({"points": points, "versions": versions()}, indent=1) + "\n")
    print("Predicted, MiB per worker, without activations, on CPUs, for any number of workers\n")
    print(predicted_table())
    if points:
        print("\nMeasured, MiB per worker, two workers (single: one)\n")
        print(measured_table(points))


if __name__ == "__main__":
    main()
