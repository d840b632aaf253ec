"""Every collective of the project, named for the profiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.config.errors import ConfigError
from fptt_dist.parallel.environment import LaunchEnvironment

TIMEOUT = timedelta(seconds=300)


@contextmanager
def process_group(environment: LaunchEnvironment, device: torch.device) -> Iterator[None]:
    """The processes of one job, connected while the context lasts: NCCL on GPUs, gloo without.

    Nothing is connected for a single process. Every wait ends after five minutes with an error.

    Raises:
        ConfigError: the processes did not find each other, or are not as many as announced.
    """
    if environment.world == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _meeting(environment, backend):
        dist.init_process_group(backend, rank=environment.rank, world_size=environment.world, timeout=TIMEOUT)
    try:
        with _meeting(environment, backend):
            counted = int(sum_over_workers(torch.ones(1, device=device), name="first").item())
        if counted != environment.world:
            raise ConfigError(f"{environment}, but {counted} processes answered")
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _meeting(environment: LaunchEnvironment, backend: str) -> Iterator[None]:
    """Turn torch's errors into one message."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{environment} could not meet the other processes within {TIMEOUT.total_seconds():.0f} s over {backend}: "
            f"{error}"
        ) from error


def sum_over_workers(tensor: Tensor, *, name: str) -> Tensor:
    """Sum `tensor` over all workers, in place; a single process leaves it as it is.

    Args:
        tensor: of the same shape on every worker.
        name: what is summed, for the profiler.
    """
    if dist.is_initialized():
        with torch.profiler.record_function(f"fptt_dist::sum::{name}"):
            dist.all_reduce(tensor)
    return tensor


def broadcast_from_first(tensors: list[Tensor], *, name: str) -> None:
    """Give every worker rank 0's values of `tensors`, in place."""
    if dist.is_initialized():
        with torch.profiler.record_function(f"fptt_dist::broadcast::{name}"):
            for tensor in tensors:
                dense = tensor.contiguous()  # the tensor itself, unless it is strided, which torch would send as if not
                dist.broadcast(dense, src=0)
                if dense is not tensor:
                    tensor.copy_(dense)


def first_alone(action: Callable[[], None], *, rank: int, device: torch.device, name: str) -> None:
    """Let rank 0 do `action`; the others wait for it.

    Raises:
        ConfigError: rank 0 found a mistake; the same message on every worker, so that none waits for one that left.
    """
    problem = ""
    if rank == 0:
        try:
            action()
        except ConfigError as error:
            problem = str(error)
    text = torch.tensor(list(problem.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(text)], dtype=torch.int64, device=device)
    broadcast_from_first([size], name=name)
    if size.item() == 0:
        return
    text = text if rank == 0 else torch.zeros(int(size.item()), dtype=torch.uint8, device=device)
    broadcast_from_first([text], name=name)
    raise ConfigError(bytes(text.tolist()).decode())


def wait_for_all(*, name: str) -> None:
    """Return when every worker has come here."""
    if dist.is_initialized():
        with torch.profiler.record_function(f"fptt_dist::barrier::{name}"):
            dist.barrier()


def equal_on_all_workers(tensors: list[Tensor], *, name: str) -> bool:
    """Whether `tensors` are the same, bit for bit, on all workers.

    Compared by the sum of their bits read as 32-bit integers, in 64-bit arithmetic: a float sum would miss differences.
    """
    if not dist.is_initialized():
        return True
    total = _checksum(tensors)
    extremes = torch.stack([total, ~total])  # ~x = −1 − x turns the order round and, unlike −x, never overflows
    with torch.profiler.record_function(f"fptt_dist::maximum::{name}"):
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(extremes[0] == ~extremes[1])


def _checksum(tensors: list[Tensor]) -> Tensor:
    """Weighted by position over all tensors, so that two swapped entries are noticed; it wraps, equally everywhere."""
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    position = 1
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(torch.int32).long()
        total += (bits * torch.arange(position, position + len(bits), device=bits.device)).sum()
        position += len(bits)
    return total
