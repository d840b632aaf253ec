"""Gradient averaging by torch's DistributedDataParallel, whose hooks compress the gradients."""

import inspect
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.parallel.comm.communicator import GroupCommunicator, Traffic
from fptt_dist.parallel.placement.placement import Placement


class DdpReplicated(Placement):
    """Everything on each worker, the gradients averaged by DistributedDataParallel as `GradientSync` does.

    Every parameter needs a gradient at every update on every worker. With more than two workers a resumed run sums the
    first gradients in another order than an uninterrupted one, so that it is equal only up to rounding.

    Args:
        workers: all workers.
        weight: this worker's share of the batch, in (0, 1]; the shares sum to 1.
        hook: how gradients are compressed.
    """

    averages = True

    def __init__(self, workers: GroupCommunicator, weight: float, hook: Literal["none", "bf16", "fp16"]) -> None:
        super().__init__(workers)
        self.group = workers.group or dist.group.WORLD
        self.hook = hook
        self._relative_weight = weight * workers.world
        self._futures: list[torch.futures.Future[Any]] = []

    def prepare(self, model: nn.Module) -> None:
        """Wrap the model."""
        super().prepare(model)
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.13
        settings: dict[str, Any] = {buffers: False}
        self.module = wrapped = DistributedDataParallel(model, process_group=self.group, **settings)
        wrapped.register_comm_hook(self, self._hook())

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; torch averages the gradients meanwhile. See `Placement.backward`."""
        began = time.monotonic()
        self._futures.clear()
        try:
            (loss * self._relative_weight).backward()
        except RuntimeError as error:
            if any(map(_failed, self._futures)):
                raise self.workers.translate_error("gradients", time.monotonic() - began, error) from error
            raise

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate the gradients, in half the bytes with bf16 or fp16."""
        size = sum(p.numel() * p.element_size() for p in self.stepped())
        each = size if self.hook == "none" else size // 2
        return CommEstimate(float(updates), float(updates * each), each, "the gradients, at every update")

    def _hook(self) -> Any:
        """Return torch's hook, with its traffic counted."""
        hook: Any = {
            "none": default_hooks.allreduce_hook,
            "bf16": default_hooks.bf16_compress_hook,
            "fp16": default_hooks.fp16_compress_hook,
        }[self.hook]
        width = 4 if self.hook == "none" else 2
        traffic = self.workers.traffic.setdefault("gradients", Traffic())

        def counted(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            traffic.calls += 1
            traffic.bytes += bucket.buffer().numel() * width
            future = hook(self.group, bucket)
            self._futures.append(future)
            return future

        return counted


def _failed(future: torch.futures.Future[Any]) -> bool:
    """Return whether a collective failed, to tell that from an error of the model's own."""
    if not future.done():
        return False
    try:
        future.value()
    except RuntimeError:
        return True
    return False
