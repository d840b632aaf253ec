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
from fptt_dist.parallel.comm.errors import LostWorkerError, silent_ranks


@dataclass
class Traffic:
    """Cost of the collectives of one name to this worker.

    Attributes:
        calls: number of calls.
        bytes: of the tensors passed in, once per call; how often each crosses the wire is up to the backend.
        seconds: time for which they blocked this worker's host.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Work:
    """A collective under way; `wait` returns when its result is there."""

    def __init__(self, finish: Callable[[], None] = lambda: None) -> None:
        self._finish = finish

    def wait(self) -> None:
        """Return when the result is in the tensor that was passed in."""
        self._finish()


class Communicator:
    """The workers that communicate, seen from one of them; this class itself is a single worker.

    Args:
        rank: this worker's number among them.
        world: number of workers.

    Attributes:
        traffic: the cost so far, by the collectives' names.
        latency: seconds added to each collective; for benchmarks alone.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self.traffic: dict[str, Traffic] = {}
        self.latency = 0.0

    def all_reduce(self, tensor: Tensor, *, name: str) -> Tensor:
        """Sum a contiguous tensor over the workers, in place; all end with the same bits."""
        if self.world > 1:
            with self._call("all_reduce", name, tensor.numel() * tensor.element_size()):
                self._all_reduce_async(tensor, name)()
                self._sleep(self.latency)
        return tensor

    def all_reduce_async(self, tensor: Tensor, *, name: str) -> Work:
        """Start an all-reduce; until `wait` returns, `tensor` must be left alone."""
        if self.world == 1:
            return Work()
        ready = time.monotonic() + self.latency
        with self._call("all_reduce", name, tensor.numel() * tensor.element_size()):
            wait = self._all_reduce_async(tensor, name)

        def finish() -> None:
            with self._call("wait", name):
                wait()
                self._sleep(ready - time.monotonic())

        return Work(finish)

    def any_set(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set on any worker."""
        sums = self.all_reduce(torch.tensor([float(flag) for flag in flags], device=self.device), name="control flags")
        return [total > 0.0 for total in sums.tolist()]

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

    def all_gather_object(self, value: Any, *, name: str) -> list[Any]:
        """Return every worker's small JSON value, by rank."""
        if self.world == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        return [json.loads(bytes(part.tolist())) for part in self._gather_bytes(text, name)]

    def all_gather(self, tensor: Tensor, *, name: str) -> list[Tensor]:
        """Return every worker's tensor, by rank, on this one's device; shapes and types may differ."""
        if self.world == 1:
            return [tensor]
        dense = tensor.detach().contiguous()
        described = [str(dense.dtype).removeprefix("torch."), list(dense.shape)]
        flat = dense.view(-1).view(torch.uint8) if dense.numel() else dense.new_zeros(0, dtype=torch.uint8)
        kinds = self.all_gather_object(described, name=name)
        parts = self._gather_bytes(flat.to(self.device), name)
        return [
            # A copy, aligned for its type: the parts lie one behind the other in one buffer.
            part.to(tensor.device, copy=True).view(getattr(torch, dtype)).view(shape)
            for part, (dtype, shape) in zip(parts, kinds, strict=True)
        ]

    def _gather_bytes(self, own: Tensor, name: str) -> list[Tensor]:
        """Return every worker's bytes (N_r,), by rank."""
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(own)
        lengths = self.all_reduce(sizes, name=name).tolist()
        everything = torch.zeros(sum(lengths), dtype=torch.uint8, device=self.device)
        everything.split(lengths)[self.rank].copy_(own)
        self.all_reduce(everything, name=name)
        return list(everything.split(lengths))

    def barrier(self, *, name: str) -> None:
        """Return when every worker has reached this call."""
        if self.world > 1:
            with self._call("barrier", name, 0):
                self._barrier()

    def rank0_first(self, action: Callable[[], Any], *, name: str) -> Any:
        """Let rank 0 do `action` while the others wait; return its JSON result on every worker.

        Raises:
            ConfigError: rank 0 found a mistake; the same message on every worker, so that none waits for one that left.
        """
        result, problem, mistake = None, None, None
        if self.rank == 0:
            try:
                result = action()
            except ConfigError as error:
                problem, mistake = str(error), error
        result, problem = self.all_gather_object([result, problem], name=name)[0]
        if problem is not None:
            raise mistake or ConfigError(problem)
        return result

    def all_equal(self, tensors: list[Tensor], *, name: str) -> bool:
        """Return whether `tensors` are the same, bit for bit, on all workers."""
        if self.world == 1 or not tensors:
            return True
        mine = str(int(checksum(tensors)))
        return set(self.all_gather_object(mine, name=name)) == {mine}

    def comm_volume(self, count: int, width: int) -> tuple[int, int]:
        """Return calls and bytes of an all-reduce of `count` elements of `width` bytes, as `traffic` counts them."""
        return (1, count * width) if self.world > 1 else (0, 0)

    def subcommunicators(self) -> list["Communicator"]:
        """Return the communicators that do the work: this one, unless it is made of others."""
        return [self]

    @property
    def device(self) -> torch.device:
        """Device of the small tensors that this communicator itself makes."""
        return torch.device("cpu")

    def _all_reduce_async(self, tensor: Tensor, name: str) -> Callable[[], None]:
        raise NotImplementedError

    def _broadcast(self, tensor: Tensor) -> None:
        raise NotImplementedError

    def _barrier(self) -> None:
        raise NotImplementedError

    def translate_error(self, name: str, seconds: float, error: Exception) -> Exception:
        """Return the error to raise for one of the backend's, in the collective `name` after `seconds`."""
        return error

    def _sleep(self, seconds: float) -> None:
        """Sleep for the latency that a benchmark adds."""
        if self.latency and seconds > 0.0:
            time.sleep(seconds)

    @contextmanager
    def _call(self, kind: str, name: str, size: int | None = None) -> Iterator[None]:
        """Count one call and name it; `size` is None for a part of a call that has been counted already."""
        traffic = self.traffic.setdefault(name, Traffic())
        began = time.monotonic()
        try:
            with torch.profiler.record_function(f"fptt_dist::{kind}::{name}"):
                yield
                if kind in ("broadcast", "barrier"):
                    self._sleep(self.latency)
        except RuntimeError as error:
            raise self.translate_error(name, time.monotonic() - began, error) from error
        traffic.seconds += time.monotonic() - began
        if size is not None:
            traffic.calls += 1
            traffic.bytes += size


class GroupCommunicator(Communicator):
    """Workers connected by a torch process group.

    Args:
        ranks: the workers' ranks in the whole job, in their order here.
        group: torch's process group; None for that of the whole job.
        device: device of the tensors that it makes.
    """

    def __init__(self, ranks: list[int], group: dist.ProcessGroup | None, device: torch.device) -> None:
        super().__init__(ranks.index(dist.get_rank()), len(ranks))
        self.ranks = ranks
        self.group = group
        self._device = device

    @property
    def device(self) -> torch.device:
        """The given device."""
        return self._device

    def _all_reduce_async(self, tensor: Tensor, name: str) -> Callable[[], None]:
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()

        return wait

    def _broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, src=self.ranks[0], group=self.group)

    def _barrier(self) -> None:
        dist.barrier(group=self.group)

    def translate_error(self, name: str, seconds: float, error: Exception) -> Exception:
        """See `Communicator.translate_error`."""
        return LostWorkerError(
            rank=self.ranks[self.rank],
            collective=name,
            seconds=seconds,
            silent=silent_ranks(self.ranks, self.ranks[self.rank]),
            error=error,
        )


def checksum(tensors: list[Tensor]) -> Tensor:
    """Return the sum of the bits as 32-bit integers, in 64 bits (0-dim): a float sum would miss differences.

    Weighted by position over all tensors, so that two swapped entries are noticed; it wraps, equally everywhere.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    position = 1
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(torch.int32).long()
        total += (bits * torch.arange(position, position + len(bits), device=bits.device)).sum()
        position += len(bits)
    return total
