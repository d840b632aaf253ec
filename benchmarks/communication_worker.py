"""One worker of the communication benchmark: builds the components of a run, and times them."""

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.links import Place
from fptt_dist.algorithm import SCHEMES
from fptt_dist.algorithm.losses import TerminalLoss
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.config import load
from fptt_dist.parallel import Communicator, Engine, LaunchEnvironment, communicator
from fptt_dist.parallel.comm.process_group import process_group
from fptt_dist.tasks import Batch, Split, Task, TaskShape, rank_slice
from fptt_dist.training.setup import factory
from fptt_dist.training.setup.engine import build_engine
from fptt_dist.training.window_loop import WindowLoop

K = 28
BATCH = 128
NEVER = 10**6
CPU = torch.device("cpu")
SWEEP = (4, 65_536, 331_000, 993_000, 8_000_000)  # bytes of the collectives timed by themselves

MODELS = {
    "LSTM-128": {"model.hidden": 128},
    "LSTM 2 × 1350": {"model.hidden": 1350, "model.layers": 2},  # 22 M parameters
}


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        name: in the table.
        keys: of the configuration.
        every: H; None for settings without a sync interval.
    """

    name: str
    keys: dict[str, Any]
    every: int | None = None

    @property
    def batches(self) -> int:
        """Number of batches timed at a time: the fewest that hold a whole number of sync intervals."""
        return -(-(self.every or 1) // K)


def overlap(every: int) -> int:
    """Return τ for H: a quarter of the interval, at most of a sequence, so that the mean is not stale when applied."""
    return min(max(1, every // 4), K // 4)


def consensus(every: int, delay: int = 0) -> dict[str, Any]:
    keys = {
        "algorithm": "fptt",
        "parallel.strategy": "consensus",
        "parallel.sync_every": every,
        "parallel.sync_delay": delay,
    }
    return {**keys, "parallel.control_interval": NEVER}


ALONE = "no synchronization"
GRADIENT = "FPTT gradient"
SETTINGS = [
    Setting(ALONE, consensus(NEVER)),
    Setting("BPTT, data parallel", {"algorithm": "bptt", "parallel.strategy": "data_parallel"}),
    Setting(GRADIENT, {"algorithm": "fptt", "parallel.strategy": "data_parallel"}),
    *(Setting(f"consensus H = {h}", consensus(h), h) for h in (1, 7, 28, 280)),
    *(Setting(f"consensus H = {h}, overlapped τ = {overlap(h)}", consensus(h, overlap(h)), h) for h in (7, 28, 280)),
]


@dataclass(frozen=True)
class Group:
    """Cells that are compared with each other, hence timed side by side by the same workers.

    Attributes:
        model: a key of MODELS.
        length: T, steps of a sequence.
        world: number of workers.
        rate: of the links in Mbit/s; None: loopback.
        latencies: injected, in ms.
        settings: names of the rows.
        sweep: bytes of the collectives timed by themselves.
    """

    model: str
    length: int
    world: int
    rate: int | None
    latencies: tuple[float, ...]
    settings: tuple[str, ...]
    sweep: tuple[int, ...] = SWEEP

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        link = "loopback" if self.rate is None else f"{self.rate} Mbit/s"
        return f"{self.model}, T = {self.length}, {self.world} processes, {link}"

    @property
    def large(self) -> bool:
        """True if only one setting fits into memory at a time."""
        return self.model != "LSTM-128"

    @property
    def cells(self) -> int:
        """Number of cells of one round."""
        return len(self.settings) * len(self.latencies)


class RandomImages(Task):
    """28 × 28 random numbers and a random label per sequence, read in T steps: no data on disk."""

    name = "random images"
    outputs = 10
    train_examples = 10**9
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, length: int) -> None:
        self.length = length
        self.inputs = 784 // length
        self.loss = TerminalLoss(UniformEstimate(self.outputs))

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        generator = torch.Generator().manual_seed(cursor)
        inputs = torch.randn(self.length, size, self.inputs, generator=generator)
        return Batch(inputs, torch.randint(self.outputs, (size,), generator=generator)).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        raise NotImplementedError

    def score(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        raise NotImplementedError


@dataclass
class Subject:
    """One setting, built as a run builds it."""

    engine: Engine
    loop: WindowLoop
    batch: Batch
    parameters: int
    plan: dict[str, float] = field(default_factory=dict)

    def train(self, batches: int) -> None:
        """Train as `Trainer` does for each batch, without its records."""
        for _ in range(batches):
            self.loop.run(self.batch)
            self.engine.after_batch()
            assert self.engine.control.all_finite()
            self.engine.control.should_stop()

    def inject(self, seconds: float) -> None:
        """Add so much to each collective."""
        for each in self.engine.communicators():
            each.latency = seconds


def build_subject(group: Group, setting: Setting, environment: LaunchEnvironment, everyone: Communicator) -> Subject:
    """Build the model, optimizer, strategy and loop of a setting."""
    keys = {"task.pixels_per_step": 784 // group.length, "fptt.windows": K, "train.batch_size": BATCH, "device": "cpu"}
    config = load("mnist_rows", {**keys, **MODELS[group.model], **setting.keys})
    task = RandomImages(group.length)
    engine = build_engine(config, environment, everyone)
    network = factory.build_model(config, TaskShape.of(task))
    engine.prepare(network)
    optimizer = factory.build_optimizer(config, engine.placement.parameters())
    engine.attach(optimizer)
    # syncs fall into the middle of the timed interval, so that an overlapped one starts and completes within it
    engine.control.updates = (setting.every or 0) // 2 if setting.every != 1 else 0
    loop = WindowLoop(
        engine.placement.module, task, engine, optimizer, SCHEMES[config.algorithm], windows=config.windows
    )
    batch = task.train_batch(0, 0, BATCH, rank_slice(BATCH, environment.rank, environment.world))
    plan = engine.comm_estimate(loop.updates)
    sent = {"collectives": plan.collectives, "bytes": plan.bytes, "each": plan.each}
    return Subject(engine, loop, batch, network.parameter_counts()["total"], sent)


def work(rank: int, place: Place, group: Group, rounds: list[int], pipe: Connection) -> None:
    """Time `rounds` of a group; after each its timings go through `pipe`."""
    place.enter()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    environment = LaunchEnvironment(rank, group.world, rank, local_world=group.world, master=place.master)
    with tempfile.TemporaryDirectory() as evidence, process_group(environment, CPU, Path(evidence)):
        everyone = communicator(environment, CPU)
        bench = Bench(group, environment, everyone)
        for number in rounds:
            pipe.send(bench.round(number))


class Bench:
    """All settings of a group in this worker."""

    def __init__(self, group: Group, environment: LaunchEnvironment, everyone: Communicator) -> None:
        self.group = group
        self.environment = environment
        self.everyone = everyone
        self.settings = {setting.name: setting for setting in SETTINGS if setting.name in group.settings}
        self._kept: dict[str, Subject] = {}

    def round(self, number: int) -> dict[str, Any]:
        """Time each cell once, in a random order with the latencies of a setting together, then collectives."""
        order = random.Random(number)
        measured, sent = [], {}
        for name in order.sample(list(self.settings), len(self.settings)):
            with self._subject(name) as subject:
                sent[name] = {**subject.plan, "parameters": subject.parameters}
                measured += [
                    {"setting": name, "latency": latency, **self._cell(name, subject, latency / 1e3)}
                    for latency in order.sample(self.group.latencies, len(self.group.latencies))
                ]
        collectives = {str(size): self._collective(size) for size in self.group.sweep}
        slept = {str(latency): _slept(latency / 1e3) for latency in self.group.latencies}
        return {"cells": measured, "sent": sent, "collectives": collectives, "slept": slept, "link": self._link_speed()}

    def _cell(self, name: str, subject: Subject, latency: float) -> dict[str, float]:
        batches = self.settings[name].batches
        subject.inject(latency)
        before = subject.engine.traffic().values()
        calls, blocked = sum(t.calls for t in before), sum(t.seconds for t in before)
        dist.barrier()
        cpu, began = time.process_time(), time.perf_counter()
        subject.train(batches)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        subject.inject(0.0)
        after = subject.engine.traffic().values()
        calls, blocked = sum(t.calls for t in after) - calls, sum(t.seconds for t in after) - blocked
        return {
            "seconds": seconds / batches,
            "cpu": cpu / batches,
            "blocked": blocked / batches,
            "calls": calls / batches,
        }

    @contextmanager
    def _subject(self, name: str) -> Iterator[Subject]:
        """Yield the setting's subject, warmed up; the smaller ones are kept."""
        found = self._kept.get(name)
        if found is None:
            found = build_subject(self.group, self.settings[name], self.environment, self.everyone)
            if not self.group.large:
                found.train(self.settings[name].batches)
                self._kept[name] = found
        yield found
        if self.group.large:
            found.engine.sync.wait()
            del found
            gc.collect()

    def _collective(self, size: int) -> list[float]:
        """Return the seconds of a few all-reduces of `size` bytes with nothing else to do."""
        buffer = torch.zeros(size // 4)
        own = communicator(self.environment, CPU)
        slow = self.group.rate is not None and size * 8 / (self.group.rate * 1e6) > 0.3
        seconds = []
        for _ in range(1 if slow else 10):
            dist.barrier()
            began = time.perf_counter()
            own.all_reduce(buffer, name="sweep")
            seconds.append(time.perf_counter() - began)
        return seconds

    def _link_speed(self) -> float | None:
        """Return Mbit/s from rank 0 to rank 1, of a buffer of about a second; None on the loopback interface."""
        if self.group.rate is None:
            return None
        buffer = torch.zeros(self.group.rate * 125_000 // 4)
        dist.barrier()
        began = time.perf_counter()
        if self.environment.rank == 0:
            dist.send(buffer, 1)
        elif self.environment.rank == 1:
            dist.recv(buffer, 0)
        seconds = time.perf_counter() - began
        return buffer.numel() * 32 / seconds / 1e6 if self.environment.rank == 1 else 0.0


def _slept(seconds: float) -> float:
    """Return the real duration of `time.sleep`, in seconds: the median of a few."""
    found = []
    for _ in range(9):
        began = time.perf_counter()
        time.sleep(seconds)
        found.append(time.perf_counter() - began)
    return statistics.median(found)
