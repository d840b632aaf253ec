"""Output of a run in progress: a progress line, metrics.jsonl, TensorBoard."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fptt_dist.config import short_name
from fptt_dist.files import write_error
from fptt_dist.parallel import Communicator, Engine
from fptt_dist.parallel.comm.communicator import Traffic
from fptt_dist.records import dumps
from fptt_dist.training.logging import tensorboard as board
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import RunDirectory

SCALARS = {  # TensorBoard's tags of the fields of a training record
    "loss": "Loss/train",
    "gradient_norm": "Loss/gradient_norm",
    "regularizer_ratio": "FPTT/regularizer_over_gradient",
    "center_distance": "FPTT/center_distance",
    "dual_norm": "FPTT/dual_norm",
    "alpha": "FPTT/alpha",
    "lr": "FPTT/lr",
    "drift": "Consensus/drift",
    "bytes_sent": "Consensus/bytes_sent",
    "blocked_share": "Consensus/blocked_share",
    "sequences_per_second": "Speed/sequences_per_second",
    "data_wait": "Speed/data_wait",
    "memory_bytes": "Speed/memory_bytes",
}

LONG_WAIT = 0.2  # share of the time spent waiting for data from which the progress line says so


def mean_and_largest(
    everyone: Communicator, share: float, own: Tensor, values: list[Tensor]
) -> tuple[Tensor, list[float]]:
    """Return a mean and maxima over the workers, by one all-reduce.

    Args:
        everyone: all workers.
        share: this worker's share of the batch.
        own: this worker's means over its sequences (N,).
        values: of this worker, 0-dim, of which the largest are wanted.

    Returns:
        The means over all sequences (N,), and the largest of each of `values`.
    """
    largest = own.new_zeros(len(values), everyone.world)  # a column per worker: a sum is enough
    for row, value in zip(largest, values, strict=True):
        row[everyone.rank] = value
    own = own * (share * everyone.world)
    both = everyone.all_reduce(torch.cat([own, largest.flatten()]), name="metrics")
    means, largest = both[: len(own)] / everyone.world, both[len(own) :].view_as(largest)
    return means, [float(row.max()) for row in largest]


def peak_memory_bytes(device: torch.device) -> int:
    """Return the high-water mark of the GPU's allocator, or of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TrafficMeter:
    """Cost of this worker's collectives between two records.

    Args:
        engine: whose collectives.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._before = engine.traffic()
        self._seconds = 0.0

    def since_last(self, seconds: float) -> dict[str, Any]:
        """Return calls, bytes sent and seconds blocked by collective, and their sums; {} for one worker.

        Args:
            seconds: of training so far, which `blocked_share` is relative to.
        """
        if self.engine.world == 1:
            return {}
        now, nothing = self.engine.traffic(), Traffic()
        costs = {}
        for name, total in now.items():
            before = self._before.get(name, nothing)
            cost = {field: value - getattr(before, field) for field, value in asdict(total).items()}
            if cost["calls"]:
                costs[name] = cost
        elapsed = max(seconds - self._seconds, 1e-9)
        self._before, self._seconds = now, seconds
        blocked = sum(cost["seconds"] for cost in costs.values())
        return {
            "collectives": costs,
            "bytes_sent": sum(cost["bytes"] for cost in costs.values()),
            "blocked_seconds": blocked,
            "blocked_share": blocked / elapsed,
        }


class MetricsLogger:
    """Writes on rank 0 and is silent elsewhere. The progress line shows on a terminal only.

    Args:
        folder: the run's.
        active: whether this is rank 0.
        total_batches: batches of the run.
        ended: whether the run was over before this start, so that the record of the test set is written again.
        first_batch: batches already trained, when resuming.
        workers: number of workers.
    """

    def __init__(
        self, folder: RunDirectory, *, active: bool, total_batches: int, ended: bool, first_batch: int = 0, workers: int
    ) -> None:
        self.folder = folder
        self.active = active
        self.total_batches = total_batches
        self.ended = ended
        self.first_batch = first_batch
        self.workers = workers
        self._text = ""
        self._laid_out = False

    def __enter__(self) -> Self:
        if not self.active:
            return self
        self.folder.cut_metrics(self.first_batch, ended=self.ended)
        self._file = self.folder.metrics.open("a", buffering=1)
        self._board = None
        self._quiet = ExitStack()
        if self.folder.config.logging.tensorboard:
            self._quiet.enter_context(board.without_traceback())
            with self._write_errors():
                self._board = SummaryWriter(str(self.folder.tensorboard), purge_step=self.first_batch + 1)
                board.begin(self._board, self.folder.config, self.workers)
                self._board.flush()  # a run in progress shows up at once
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches  {task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self._progress.start()
        name = f"{short_name(self.folder.config.task.name)} {self.folder.config.algorithm}"
        self._bar = self._progress.add_task(name, total=self.total_batches, completed=self.first_batch, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._progress.stop()
            with self._quiet:
                with suppress(OSError) if kind is not None else nullcontext():  # it still has what could not be written
                    self._file.close()
                with suppress(OSError) if kind is not None else self._write_errors():
                    if self._board is not None:
                        self._board.close()

    def batch(self, batch: int) -> None:
        """Show that a batch is done."""
        if self.active:
            self._progress.update(self._bar, completed=batch, text=self._text)

    def training(self, record: dict[str, Any]) -> None:
        """Write a training record: "batch", "epoch", "loss", "window_losses", … as plain numbers."""
        if not self._writes:
            return
        self._write({"kind": "train", **record})
        self._text = f"loss {record['loss']:.4g}  {record['sequences_per_second']:.0f} sequences/s"
        if record["data_wait"] > LONG_WAIT:
            self._text += f"  {record['data_wait']:.0%} waiting for data"
        if self._board is not None:
            with self._write_errors():
                self._draw_training(self._board, record)

    def _draw_training(self, writer: SummaryWriter, record: dict[str, Any]) -> None:
        window_metrics = {field: record[field] for field in record if field.startswith("window_")}
        del window_metrics["window_losses"]
        if not self._laid_out:
            board.lay_out(writer, self.workers, window_metrics=any(window_metrics.values()))
            self._laid_out = True
        for field, tag in SCALARS.items():
            if field in record:
                writer.add_scalar(tag, record[field], record["batch"])
        for k, loss in enumerate(record["window_losses"], 1):
            writer.add_scalar(f"Windows/loss_{k:03d}", loss, record["batch"])
        for field, values in window_metrics.items():
            for k, value in enumerate(values, 1):
                writer.add_scalar(f"Windows/{field[7:]}_{k:03d}", value, record["batch"])

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write an evaluation: "batch", "split", "metric", "value", "metrics", "weights", …"""
        if not self._writes:
            return
        self._write({"kind": "evaluation", **record})
        self._progress.console.print(
            f"batch {record['batch']}: {record['split']} {record['metric']} {record['value']:.5g}"
            + (" (best so far)" if record.get("best") else ""),
            highlight=False,
        )
        if self._board is not None:
            with self._write_errors():
                self._draw_evaluation(self._board, record)

    def _draw_evaluation(self, writer: SummaryWriter, record: dict[str, Any]) -> None:
        writer.add_scalar(f"Loss/{record['split']}_{record['metric']}", record["value"], record["batch"])
        if len(record["metrics"]) > 1:
            for name, value in record["metrics"].items():
                writer.add_scalar(f"{record['split']}/{name}", value, record["batch"])
        if record.get("best"):
            writer.add_scalar(board.BEST_VALIDATION, record["value"], record["batch"])
        writer.flush()  # a sweep may end the process right after

    def result(self, result: Result) -> None:
        """Write the run's result, for TensorBoard's HParams."""
        if self.active and self._board is not None:
            with self._write_errors():
                self._board.add_scalar(board.TEST, result.value, result.batches)
                board.end(self._board)

    @property
    def _writes(self) -> bool:
        """True if records are written; not in a process that has lost the folder, which the next save reports."""
        return self.active and self.folder.is_held

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(dumps({**record, "time": round(time.time(), 3)}) + "\n")
        except OSError as error:
            raise write_error(self.folder.metrics, error) from error

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Name TensorBoard's folder in errors of its files, which a thread of its own writes."""
        try:
            yield
        except OSError as error:
            raise write_error(self.folder.tensorboard, error) from error
