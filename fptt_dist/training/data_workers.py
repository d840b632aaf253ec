"""Processes that put training batches together in the background, ahead of time.

Each is a new interpreter, which inherits neither the run's lock, sockets and threads nor its signal handlers. It sends
its batches through a pipe of its own, one after another, and the pipe takes the next when the one before has been
received: a worker is one or two batches ahead. A pipe's end says at once that its other process has died, a process
that is killed leaves nothing locked, and below 10 MB a batch is here sooner than through torch's shared memory.
"""

import importlib.machinery
import importlib.util
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.tasks import Batch, DataError, Task
from fptt_dist.training.process.orphan import end_with_parent_at_once

BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that terminals and SLURM send to all processes of a run: what they ask for is decided in its own process."""
SHARED = Path("/dev/shm")
END_SECONDS = 5.0  # that a killed process may take to be gone


@dataclass(frozen=True)
class BatchOrder:
    """Order of a run's batches: which sequences batch `number` (from 0) has on this rank.

    Attributes:
        batch_size: sequences of a global batch.
        per_epoch: batches of an epoch.
        share: this rank's part of each global batch.
    """

    batch_size: int
    per_epoch: int
    share: slice

    def batch(self, task: Task, number: int) -> Batch:
        """Return batch `number`, a pure function of it."""
        epoch, index = divmod(number, self.per_epoch)
        return task.train_batch(epoch, index * self.batch_size, self.batch_size, self.share)


@dataclass(frozen=True)
class Portable:
    """Requirements of a task that is sent to another process.

    Attributes:
        modules: the files of modules that cannot be imported by their names, by these.
        shared_bytes: size of its tensors, which all processes read in the same memory.
    """

    modules: dict[str, str]
    shared_bytes: int


def portable(task: Task, workers: int) -> Portable:
    """Try to pickle the task, without its numbers.

    Args:
        task: what data workers get.
        workers: their number, for the message.

    Raises:
        ConfigError: it cannot be pickled, or this process may not start others.
    """
    if multiprocessing.current_process().daemon:
        raise ConfigError(
            f"data.workers={workers}: this process was started as a daemon by multiprocessing, which may not start "
            "others: start it with daemon=False, or type data.workers=0"
        )
    trial = _Trial()
    try:
        trial.dump(task)
    except Exception as error:  # of any type: pickle and the objects themselves raise what they like
        raise ConfigError(
            f"data.workers={workers}: the task {task.name} cannot be sent to a data worker process "
            f"({type(error).__name__}: {error}): let it keep only what can be pickled, no lambda, open file or lock, "
            "or type data.workers=0"
        ) from error
    return Portable(
        {name: file for name in sorted(trial.modules) if (file := _file_of(name)) is not None},
        sum(trial.storages.values()),
    )


class _Nowhere:
    """Writes to nothing."""

    def write(self, data: bytes) -> int:
        return len(data)


class _Trial(pickle.Pickler):
    """Pickles to nowhere; arrays are passed over. It notes tensors, and the modules of classes and functions."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.modules: set[str] = set()
        self.storages: dict[int, int] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            raise ValueError(f"it would copy all of {value.filename}, which it maps: let __setstate__ open it anew")
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                raise ValueError(f"it keeps a tensor on {value.device}")
            storage = value.untyped_storage()
            self.storages[storage.data_ptr()] = 0 if value.is_shared() else storage.nbytes()
        elif isinstance(value, type | FunctionType):
            self.modules.add(value.__module__)
        return (int, ()) if isinstance(value, Tensor | np.ndarray) else NotImplemented


def _file_of(module: str) -> str | None:
    """Return the file of a module that was loaded from it, and that an import by its name would not find."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__" or importlib.machinery.PathFinder.find_spec(module.partition(".")[0]):
        return None
    return str(Path(file).resolve())


class _Modules:
    """Modules to be loaded from their files where this is unpickled, before what follows it."""

    def __init__(self, files: dict[str, str]) -> None:
        for name, file in files.items():
            if name not in sys.modules:
                spec = importlib.util.spec_from_file_location(name, file)
                assert spec is not None
                assert spec.loader is not None
                sys.modules[name] = importlib.util.module_from_spec(spec)
                sys.path.append(str(Path(file).parent))
                spec.loader.exec_module(sys.modules[name])
        self.files = files

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        return _Modules, (self.files,)


class DataWorkers:
    """W processes; worker w makes every W-th batch from first + w on. They end with the context.

    Args:
        task: puts the batches together; with what it has restored from a checkpoint.
        order: of the batches.
        numbers: of the batches that are asked for, in this order.
        workers: W.
        needed: see `portable`.
        seconds: that a batch may be waited for.
        start_seconds: that the first batch of each process may be waited for.
        flush_denormal: as this process computes.
        pin: whether batches are received in pinned memory, for a GPU.
    """

    def __init__(
        self,
        task: Task,
        order: BatchOrder,
        numbers: range,
        *,
        workers: int,
        needed: Portable,
        seconds: float,
        start_seconds: float,
        flush_denormal: bool,
        pin: bool,
    ) -> None:
        self._task = task
        self._order = order
        self._numbers = numbers
        self._count = workers
        self._needed = needed
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._flush_denormal = flush_denormal
        self._pin = pin
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        self._said = f"data.workers={workers}"

    def __enter__(self) -> Self:
        free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else math.inf
        if self._needed.shared_bytes > free:  # or the kernel would end this process by SIGBUS
            raise ConfigError(
                f"{self._said}: the task's tensors, {self._needed.shared_bytes:,} bytes, do not fit into {SHARED}, "
                f"where {free:,} are free: give the container more (docker run --shm-size), or type data.workers=0"
            )
        try:
            with _blocked_in_children():
                for worker in range(min(self._count, len(self._numbers))):
                    self._workers.append(self._start(worker))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, worker: int) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        own = self._numbers[worker :: self._count]
        arguments = (os.getpid(), sending, _Modules(self._needed.modules), self._task, self._order, own)
        process = context.Process(
            target=_work, args=(*arguments, self._flush_denormal), name=f"data worker {worker}", daemon=True
        )
        with sending:  # closed here, so that the pipe ends with the process
            process.start()
        return process, receiving

    def get(self, number: int) -> Batch:
        """Return batch `number` when it is there; they are asked for in the order of `numbers`.

        Raises:
            DataError: the task could not put it together.
            OSError: the process has died, or takes too long.
        """
        place = self._numbers.index(number)
        process, receiving = self._workers[place % self._count]
        first = place < self._count
        limit = self._start_seconds if first else self._seconds
        if not receiving.poll(limit):
            raise OSError(
                f"{self._said}: batch {number + 1} was not there after {limit:g} seconds: raise "
                "parallel.timeout_seconds if the task takes so long for one batch; data.workers=0 shows where it "
                "stands still"
            )
        try:
            return self._received(receiving)
        except (EOFError, OSError) as error:  # between two messages, or within one
            raise OSError(self._death_of(process, number, first=first)) from error

    def _received(self, receiving: Connection) -> Batch:
        message = receiving.recv()
        if isinstance(message, str):
            raise DataError(message)
        kind, values, described = message
        for name, (dtype, shape) in described.items():
            values[name] = torch.empty(shape, dtype=dtype, pin_memory=self._pin)
            receiving.recv_bytes_into(_bytes_of(values[name]))
        return kind(**values)

    def _death_of(self, process: SpawnProcess, number: int, *, first: bool) -> str:
        process.join(END_SECONDS)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            remedy = "if memory ran out, type a smaller data.workers"
        elif first:
            remedy = (
                "what it said stands above. A program that trains must do so under if __name__ == '__main__', as its "
                "file is imported there"
            )
        else:
            remedy = "data.workers=0 shows what happens there"
        return f"{self._said}: the process that puts batch {number + 1} together {how}: {remedy}"

    def _end(self) -> None:
        # SIGKILL, as they may be in the middle of anything, and hold nothing that others wait for.
        for process, _ in self._workers:
            process.kill()
        for process, receiving in self._workers:
            process.join(END_SECONDS)
            receiving.close()
        self._workers = []


@contextmanager
def _blocked_in_children() -> Iterator[None]:
    """Block the signals of `BLOCKED` within the context; a process that is started there never gets them."""
    resource_tracker.ensure_running()  # which would unblock some, once
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    parent: int,
    sending: Connection,
    modules: _Modules,
    task: Task,
    order: BatchOrder,
    numbers: range,
    flush_denormal: bool,
) -> None:
    """Put batches together and send them, in a process of its own; an error's message is the last that is sent."""
    end_with_parent_at_once(parent)
    torch.set_num_threads(1)
    torch.set_flush_denormal(flush_denormal)
    streams = _streams()
    for number in numbers:
        try:
            batch = order.batch(task, number)
        except DataError as error:
            message: Batch | str = str(error)
        except (Exception, SystemExit) as error:
            message = f"batch {number + 1} cannot be put together: {_in_words(error)}: data.workers=0 shows all of it"
        else:
            message = batch if _streams() == streams else _drawn(task, number)
        _send(sending, message)
        if isinstance(message, str):
            return


def _send(sending: Connection, message: Batch | str) -> None:
    if isinstance(message, str):
        sending.send(message)
        return
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    tensors = {name: v.detach().cpu().contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    sending.send((type(message), {name: values[name] for name in values.keys() - tensors.keys()}, described))
    for tensor in tensors.values():
        sending.send_bytes(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU, of any type."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _streams() -> tuple[Any, ...]:
    """Return the states of the global random streams, to be compared."""
    kind, keys, *others = np.random.get_state()  # noqa: NPY002 - a task may draw from it
    return torch.get_rng_state().numpy().tobytes(), kind, np.asarray(keys).tobytes(), *others, random.getstate()


def _drawn(task: Task, number: int) -> str:
    return (
        f"the task {task.name} drew random numbers for batch {number + 1} that depend on the process: draw them within "
        "fptt_dist.tasks.seeded(seed, epoch, example), or from a generator of the task's own that is seeded so"
    )


def _in_words(error: BaseException) -> str:
    """Return the error in one line, with the line of the user's, or else of a library's, that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(own[-1].filename).name}, {own[-1].lineno})"
