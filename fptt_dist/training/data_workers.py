"""Processes that put training batches together in the background, ahead of time.

Each is a new interpreter, which inherits neither the run's lock, sockets and threads nor its signal handlers. It sends
its batches through a pipe of its own, one after another, which holds 64 KB: it is ahead by what fits in there, and by
one batch more. A pipe's end says at once that its other process has died, a process that is killed leaves nothing
locked, and a batch of up to 10 MB is here sooner than through torch's shared memory.
"""

import importlib.machinery
import importlib.util
import io
import mmap
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.tasks import Batch, DataError, Task
from fptt_dist.training.process.orphan import end_with_parent_at_once

BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that terminals and SLURM send to all processes of a run: what they ask for is decided in its own process."""
ALIGNMENT = 64  # bytes; of numbers in memory
END_SECONDS = 5.0  # that a killed process may take to be gone
AT_START = (
    "what it said stands above. A program that trains must do so under if __name__ == '__main__', as its file is "
    "imported there"
)


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
class PackedTask:
    """A task to be sent to other processes.

    Attributes:
        pickled: without the numbers of its arrays and tensors.
        buffers: those, as bytes in the memory where they are.
        modules: the files of modules that cannot be imported by their names, by these.
    """

    pickled: bytes
    buffers: list[memoryview]
    modules: dict[str, str]


def pack(task: Task, workers: int) -> PackedTask:
    """Pickle the task, without copying its numbers.

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
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(task)
    except Exception as error:  # of any type: pickle and the objects themselves raise what they like
        raise ConfigError(
            f"data.workers={workers}: the task {task.name} cannot be sent to a data worker process "
            f"({type(error).__name__}: {error}): let it keep only what can be pickled, no lambda, open file or lock, "
            "or type data.workers=0"
        ) from error
    modules = {name: found for name in sorted(packer.modules) if (found := _file_of(name)) is not None}
    return PackedTask(file.getvalue(), [buffer.raw() for buffer in packer.buffers], modules)


class _Packer(pickle.Pickler):
    """Pickles all but numbers, and notes these, and the modules of classes and functions."""

    def __init__(self, file: io.BytesIO) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        self.modules: set[str] = set()
        super().__init__(file, protocol=5, buffer_callback=self.buffers.append)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            raise ValueError(f"it would copy all of {value.filename}, which it maps: let __setstate__ open it anew")
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                raise ValueError(f"it keeps a tensor on {value.device}")
            return _tensor, (np.asarray(_bytes_of(value.detach().contiguous())), value.dtype, tuple(value.shape))
        if isinstance(value, type | FunctionType):
            self.modules.add(value.__module__)
        return NotImplemented


def _tensor(numbers: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of these bytes, in their memory."""
    return torch.from_numpy(numbers).view(dtype).view(shape)


def _file_of(module: str) -> str | None:
    """Return the file of a module that was loaded from it, and that an import by its name would not find."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__" or importlib.machinery.PathFinder.find_spec(module.partition(".")[0]):
        return None
    return str(Path(file).resolve())


class _SharedFile:
    """The packed task in a file without a name, in memory on Linux: one copy for all data workers.

    It is sent to a process by its descriptor. What goes to a new process otherwise, the start waits for; and would wait
    for ever if that process ended before it has read all.

    Args:
        packed: the task.
    """

    def __init__(self, packed: PackedTask) -> None:
        memory = sys.platform == "linux"
        self._file = os.fdopen(os.memfd_create("task"), "wb") if memory else tempfile.TemporaryFile("wb")  # noqa: SIM115
        parts: list[tuple[int, int]] = []
        for part in (memoryview(packed.pickled), *packed.buffers):
            start = self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
            self._file.write(part)
            parts.append((start, start + part.nbytes))
        self._index = self._file.tell()
        self._file.write(pickle.dumps(parts))
        self._file.flush()

    def __reduce__(self) -> tuple[Callable[..., list[memoryview]], tuple[Any, ...]]:
        return _mapped, (reduction.DupFd(self._file.fileno()), self._index)

    def close(self) -> None:
        """Forget the file, which lasts as long as a process has it."""
        self._file.close()


def _mapped(descriptor: Any, index: int) -> list[memoryview]:
    """Return the parts of a shared file; what is written to them stays in this process."""
    with os.fdopen(descriptor.detach(), "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return [memory[start:stop] for start, stop in pickle.loads(memory[index:])]


def _unpacked(parts: list[memoryview], modules: dict[str, str]) -> Task:
    """Return the task, after loading the modules that it needs from their files."""
    for name, file in modules.items():
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.append(str(Path(file).parent))
        spec.loader.exec_module(sys.modules[name])
    pickled, *buffers = parts
    return pickle.loads(pickled, buffers=buffers)


class DataWorkers:
    """W processes; worker w makes every W-th batch from first + w on. They end with the context.

    Args:
        task: puts the batches together; with what it has restored from a checkpoint.
        order: of the batches.
        numbers: of the batches that are asked for, in this order.
        workers: W.
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
        seconds: float,
        start_seconds: float,
        flush_denormal: bool,
        pin: bool,
    ) -> None:
        self._task = task
        self._order = order
        self._numbers = numbers
        self._count = workers
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._flush_denormal = flush_denormal
        self._pin = pin
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        self._said = f"data.workers={workers}"

    def __enter__(self) -> Self:
        packed = pack(self._task, self._count)
        file = _SharedFile(packed)
        try:
            with _blocked_in_children():
                for worker in range(min(self._count, len(self._numbers))):
                    self._workers.append(self._start(worker, file, packed.modules))
        except BaseException:
            self._end()
            raise
        finally:
            file.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, worker: int, file: _SharedFile, modules: dict[str, str]) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        own = self._numbers[worker :: self._count]
        arguments = (os.getpid(), sending, file, modules, self._order, own)
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
            remedy = AT_START
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
    parts: list[memoryview],
    modules: dict[str, str],
    order: BatchOrder,
    numbers: range,
    flush_denormal: bool,
) -> None:
    """Put batches together and send them, in a process of its own; an error's message is the last that is sent."""
    end_with_parent_at_once(parent)
    task = _unpacked(parts, modules)
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
