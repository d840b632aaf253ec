"""Every collective of the project, named for the profiler and counted."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.config.errors import ConfigError
from fptt_dist.parallel.lost import LostWorkerError, silent_ranks


@dataclass
class Traffic:
    """What the collectives of one name have cost this worker.

    Attributes:
        calls: how often.
        bytes: of the tensors handed over, once a call; how often each crosses the wire is the backend's business.
        seconds: that this worker's host stood still for them.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Pending:
    """A collective under way; `wait` returns when its result is there."""

    def __init__(self, finish: Callable[[], None] = lambda: None) -> None:
        self._finish = finish

    def wait(self) -> None:
        """Return when the result is in the tensor that was handed over."""
        self._finish()


class Communicator:
    """The workers that exchange numbers, seen from one of them; this class is a worker that is alone.

    Args:
        rank: this worker among them.
        world: how many they are.

    Attributes:
        traffic: the cost so far, by the collectives' names.
        latency: seconds added to each collective; for benchmarks alone.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self.traffic: dict[str, Traffic] = {}
        self.latency = 0.0

    def sum(self, tensor: Tensor, *, name: str) -> Tensor:
        """Sum a contiguous tensor over the workers, in place; all end with the same bits."""
        if self.world > 1:
            with self._call("sum", name, tensor.numel() * tensor.element_size()):
                self._start_sum(tensor, name)()
                self._sleep(self.latency)
        return tensor

    def start_sum(self, tensor: Tensor, *, name: str) -> Pending:
        """Begin `sum`; until `wait` returns, `tensor` must be left alone."""
        if self.world == 1:
            return Pending()
        ready = time.monotonic() + self.latency
        with self._call("sum", name, tensor.numel() * tensor.element_size()):
            wait = self._start_sum(tensor, name)

        def finish() -> None:
            with self._call("wait", name):
                wait()
                self._sleep(ready - time.monotonic())

        return Pending(finish)

    def broadcast(self, tensors: list[Tensor], *, name: str) -> None:
        """Give every worker rank 0's values of `tensors`, in place."""
        if self.world == 1:
            return
        for tensor in tensors:
            # The tensor itself, unless it is strided, which torch would send as if it were not.
            dense = tensor.contiguous()
            with self._call("broadcast", name, dense.numel() * dense.element_size()):
                self._broadcast(dense)
            if dense is not tensor:
                tensor.copy_(dense)

    def gather(self, value: Any, *, name: str) -> list[Any]:
        """Every worker's small JSON value, by rank."""
        if self.world == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(text)
        lengths = self.sum(sizes, name=name).tolist()
        everything = torch.zeros(sum(lengths), dtype=torch.uint8, device=self.device)
        parts = everything.split(lengths)
        parts[self.rank].copy_(text)
        self.sum(everything, name=name)
        return [json.loads(bytes(part.tolist())) for part in parts]

    def barrier(self, *, name: str) -> None:
        """Return when every worker has come here."""
        if self.world > 1:
            with self._call("barrier", name, 0):
                self._barrier()

    def first_alone(self, action: Callable[[], Any], *, name: str) -> Any:
        """Let rank 0 do `action` while the others wait; its JSON result on every worker.

        Raises:
            ConfigError: rank 0 found a mistake; the same message on every worker, so that none waits for one that left.
        """
        result, problem, mistake = None, None, None
        if self.rank == 0:
            try:
                result = action()
            except ConfigError as error:
                problem, mistake = str(error), error
        result, problem = self.gather([result, problem], name=name)[0]
        if problem is not None:
            raise mistake or ConfigError(problem)
        return result

    def equal(self, tensors: list[Tensor], *, name: str) -> bool:
        """Whether `tensors` are the same, bit for bit, on all workers."""
        if self.world == 1 or not tensors:
            return True
        mine = str(int(checksum(tensors)))
        return set(self.gather(mine, name=name)) == {mine}

    def cost(self, count: int, width: int) -> tuple[int, int]:
        """Collectives and bytes of a sum of `count` numbers of `width` bytes, as `traffic` counts them."""
        return (1, count * width) if self.world > 1 else (0, 0)

    def parts(self) -> list["Communicator"]:
        """The communicators that do the work: this one, unless it is made of others."""
        return [self]

    @property
    def device(self) -> torch.device:
        """Where small tensors of its own travel from."""
        return torch.device("cpu")

    def _start_sum(self, tensor: Tensor, name: str) -> Callable[[], None]:
        raise NotImplementedError

    def _broadcast(self, tensor: Tensor) -> None:
        raise NotImplementedError

    def _barrier(self) -> None:
        raise NotImplementedError

    def lost(self, name: str, seconds: float, error: Exception) -> Exception:
        """The error to raise for one of the backend's, in the collective `name` after `seconds`."""
        return error

    def _sleep(self, seconds: float) -> None:
        """Latency that a benchmark adds."""
        if self.latency and seconds > 0.0:
            time.sleep(seconds)

    @contextmanager
    def _call(self, kind: str, name: str, size: int | None = None) -> Iterator[None]:
        """Count one call and name it; `size` None: part of a call that is counted already."""
        traffic = self.traffic.setdefault(name, Traffic())
        began = time.monotonic()
        try:
            with torch.profiler.record_function(f"fptt_dist::{kind}::{name}"):
                yield
                if kind in ("broadcast", "barrier"):
                    self._sleep(self.latency)
        except RuntimeError as error:
            raise self.lost(name, time.monotonic() - began, error) from error
        traffic.seconds += time.monotonic() - began
        if size is not None:
            traffic.calls += 1
            traffic.bytes += size


class GroupCommunicator(Communicator):
    """Workers connected by a torch process group.

    Args:
        ranks: of the workers in the whole job, in their order here.
        group: torch's; None: the one of the whole job.
        device: where tensors live that it makes.
    """

    def __init__(self, ranks: list[int], group: dist.ProcessGroup | None, device: torch.device) -> None:
        super().__init__(ranks.index(dist.get_rank()), len(ranks))
        self.ranks = ranks
        self.group = group
        self._device = device

    @property
    def device(self) -> torch.device:
        """The one given."""
        return self._device

    def _start_sum(self, tensor: Tensor, name: str) -> Callable[[], None]:
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()

        return wait

    def _broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, src=self.ranks[0], group=self.group)

    def _barrier(self) -> None:
        dist.barrier(group=self.group)

    def lost(self, name: str, seconds: float, error: Exception) -> Exception:
        """See `Communicator.lost`."""
        return LostWorkerError(
            rank=self.ranks[self.rank],
            collective=name,
            seconds=seconds,
            silent=silent_ranks(self.ranks, self.ranks[self.rank]),
            error=error,
        )


def checksum(tensors: list[Tensor]) -> Tensor:
    """The sum of the bits read as 32-bit integers, in 64-bit arithmetic (0-dim): a float sum would miss differences.

    Weighted by position over all tensors, so that two swapped entries are noticed; it wraps, equally everywhere.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    position = 1
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(torch.int32).long()
        total += (bits * torch.arange(position, position + len(bits), device=bits.device)).sum()
        position += len(bits)
    return total
