"""Two workers beside one on this node: weak scaling (the batch per worker stays) and strong (the global batch does).

    python -m benchmarks.scaling --json results/scaling.json

LSTM-128, T = 784, K = 28 windows, FPTT with Adam; gloo workers of one thread each. Each round times one worker alone,
while the others wait at a barrier, then every row, in an order of its own, and takes ratios to that one worker; the
table shows medians over the rounds (smallest–largest). The time of a worker in a collective includes its wait
for the others. "no synchronization" is the limit of the node itself: its cores share memory and caches.
"""

import argparse
import json
import multiprocessing as mp
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.communication_worker import ALONE, CPU, NEVER, RandomImages, consensus
from benchmarks.links import loopback
from fptt_dist.algorithm import SCHEMES
from fptt_dist.config import load
from fptt_dist.parallel import Communicator, Engine, LaunchEnvironment, communicator
from fptt_dist.parallel.comm.process_group import process_group
from fptt_dist.tasks import Batch, TaskShape, rank_slice
from fptt_dist.training.run_dir import versions
from fptt_dist.training.setup import factory
from fptt_dist.training.setup.engine import build_engine
from fptt_dist.training.window_loop import WindowLoop

ONE = "one worker"
DDP = "gradient, reduce=ddp"
SCALINGS = ("weak", "strong")


@dataclass(frozen=True)
class Size:
    """Sizes that all rows have in common."""

    length: int
    windows: int
    hidden: int
    batch: int
    workers: int
    batches: int

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the strategies, as keys of the configuration."""
        gradient = {"parallel.strategy": "data_parallel"}
        return {
            ALONE: consensus(NEVER),
            "gradient": gradient,
            DDP: {**gradient, "parallel.reduce": "ddp"},
            f"consensus, sync_every={self.windows} (once per batch)": consensus(self.windows),
            "consensus, sync_every=1": consensus(1),
        }


@dataclass
class Subject:
    """One row, built as a run builds it, with this worker's share of a batch."""

    engine: Engine
    loop: WindowLoop
    batch: Batch
    sequences: int = field(default=0)

    def train(self, batches: int) -> None:
        """Train as `Trainer` does for each batch, without its records."""
        for _ in range(batches):
            self.loop.run(self.batch)
            self.engine.after_batch()
            assert self.engine.control.all_finite()
            self.engine.control.should_stop()

    def blocked(self) -> float:
        """Return the seconds that this worker has been blocked in collectives so far."""
        return sum(cost.seconds for cost in self.engine.traffic().values())


def subject(size: Size, keys: dict[str, Any], batch: int, place: LaunchEnvironment, everyone: Communicator) -> Subject:
    """Build the model, optimizer, strategy and loop of a row, for a global batch of `batch`."""
    task = RandomImages(size.length)
    common = {"task.pixels_per_step": task.inputs, "fptt.windows": size.windows, "model.hidden": size.hidden}
    config = load("mnist_rows", {**common, "algorithm": "fptt", "train.batch_size": batch, "device": "cpu", **keys})
    engine = build_engine(config, place, everyone)
    network = factory.build_model(config, TaskShape.of(task))
    engine.prepare(network)
    optimizer = factory.build_optimizer(config, engine.placement.parameters())
    engine.attach(optimizer)
    loop = WindowLoop(
        engine.placement.module, task, engine, optimizer, SCHEMES[config.algorithm], windows=config.windows
    )
    return Subject(engine, loop, task.train_batch(0, 0, batch, rank_slice(batch, place.rank, place.world)), batch)


def timed(subject: Subject, batches: int) -> dict[str, float]:
    """Return seconds per batch, and those of them in collectives."""
    blocked, began = subject.blocked(), time.perf_counter()
    subject.train(batches)
    seconds = time.perf_counter() - began
    return {"seconds": seconds / batches, "blocked": (subject.blocked() - blocked) / batches}


def work(rank: int, size: Size, rounds: int, port: int, pipe: Connection) -> None:
    """Run one worker: a list of timings per round goes through `pipe`."""
    home = loopback(size.workers, port)[rank]
    home.enter()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    place = LaunchEnvironment(rank, size.workers, rank, local_world=size.workers, master=home.master)
    with tempfile.TemporaryDirectory() as evidence, process_group(place, CPU, Path(evidence)):
        everyone = communicator(place, CPU)
        alone = LaunchEnvironment()
        single = subject(size, {"parallel.strategy": "single"}, size.batch, alone, communicator(alone, CPU))
        batches = {"weak": size.batch * size.workers, "strong": size.batch}
        cells = {
            (scaling, name): subject(size, keys, batches[scaling], place, everyone)
            for scaling in SCALINGS
            for name, keys in size.rows().items()
        }
        single.train(1)
        for cell in cells.values():
            cell.train(1)
        for number in range(rounds):
            found = []
            everyone.barrier(name="round")
            if rank == 0:
                found.append(_row("", ONE, single, timed(single, size.batches)))
            order = random.Random(number)
            for (scaling, name), cell in order.sample(list(cells.items()), len(cells)):
                dist.barrier()
                found.append(_row(scaling, name, cell, timed(cell, size.batches)))
            pipe.send(found)


def _row(scaling: str, name: str, cell: Subject, times: dict[str, float]) -> dict[str, Any]:
    return {"scaling": scaling, "name": name, "sequences": cell.sequences, "updates": cell.loop.updates, **times}


def merged(ranks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge a round: the slowest worker's seconds, and the mean of the time blocked in collectives."""
    one, rows = ranks[0][0], [ranks[0][1:], *ranks[1:]]
    found = [one]
    for same in zip(*rows, strict=True):
        mean = sum(row["blocked"] for row in same) / len(same)
        found.append({**same[0], "seconds": max(row["seconds"] for row in same), "blocked": mean})
    return found


def run(size: Size, rounds: int) -> list[list[dict[str, Any]]]:
    """Start the workers, and return their timings."""
    context = mp.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes, processes, found = [], [], []
    try:
        for rank in range(size.workers):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(rank, size, rounds, port, there), daemon=True)
            process.start()
            there.close()  # so that a worker that dies is noticed at once
            pipes.append(here)
            processes.append(process)
        for number in range(rounds):
            found.append(merged([pipe.recv() for pipe in pipes]))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for process in processes:
            process.join(30.0)
    except EOFError:
        raise SystemExit("a worker died") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def table(rounds: list[list[dict[str, Any]]], size: Size) -> str:
    """Return one row per scaling and strategy."""
    lines = [
        "| scaling | strategy | batch | updates per batch | sequences/s, × one worker | efficiency | in collectives |",
        "|---|---|---|---|---|---|---|",
    ]
    one = [_speed(each[0]) for each in rounds]
    for scaling in SCALINGS:
        for name in size.rows():
            rows = [next(r for r in each if (r["scaling"], r["name"]) == (scaling, name)) for each in rounds]
            ratios = [_speed(row) / alone for row, alone in zip(rows, one, strict=True)]
            blocked = [row["blocked"] / row["seconds"] for row in rows]
            shares = "not separable" if name == DDP else _spread([100 * b for b in blocked], 1, " %")
            lines.append(
                f"| {scaling} | {name} | {rows[0]['sequences']} | {rows[0]['updates']} | {_spread(ratios, 2)} "
                f"| {statistics.median(ratios) / size.workers:.0%} | {shares} |"
            )
    return "\n".join(lines)


def _speed(row: dict[str, Any]) -> float:
    return row["sequences"] / row["seconds"]


def _spread(values: list[float], digits: int, unit: str = "") -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f}{unit} ({least:.{digits}f}–{most:.{digits}f})"


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=784, help="T, a divisor of 784")
    parser.add_argument("--windows", type=int, default=28, help="K")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128, help="of one worker alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=2, help="timed at a time")
    parser.add_argument("--json", type=Path, help="what was timed")
    options = parser.parse_args()
    if options.workers < 2 or options.batch % options.workers or 784 % options.length:
        parser.error("--workers must be at least 2, --batch a multiple of it, and --length a divisor of 784")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers go too
    os.environ["OMP_NUM_THREADS"] = "1"
    fields = ("length", "windows", "hidden", "batch", "workers", "batches")
    size = Size(**{name: getattr(options, name) for name in fields})
    rounds = run(size, options.rounds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        known = {name: getattr(options, name) for name in fields}
        text = json.dumps({**known, "rounds": rounds, "load": os.getloadavg()[0], "versions": versions()}, indent=1)
        options.json.write_text(text + "\n")
    print(f"LSTM-{size.hidden}, T = {size.length}, K = {size.windows}, {size.workers} workers of one thread\n")
    print(table(rounds, size))
    print("\nDDP waits inside torch's backward pass: its time in collectives cannot be separated.")
    print(", ".join(f"{name} {value}" for name, value in versions().items()))


if __name__ == "__main__":
    main()
