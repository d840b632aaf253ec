"""Gradient averaging by torch's DistributedDataParallel, whose hooks compress what travels."""

import inspect
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from fptt_dist.parallel.collectives import GroupCommunicator, Traffic
from fptt_dist.parallel.strategy import Plan, Strategy

VOTE_EVERY = 100  # updates between votes on stopping: the gradients' own messages are torch's


class DdpAveraging(Strategy):
    """The same as `GradientAveraging`, carried by DistributedDataParallel.

    Every parameter needs a gradient at every update on every worker. With more than two workers a resumed run sums the
    first gradients in another order than an uninterrupted one, and with "powersgd" it starts without the errors that
    were to be fed back: it is exact to rounding, or not exact.

    Args:
        everyone: all workers.
        weight: this worker's share of the batch, in (0, 1]; the shares sum to 1.
        hook: how gradients are compressed.
    """

    def __init__(
        self, everyone: GroupCommunicator, weight: float, hook: Literal["none", "bf16", "fp16", "powersgd"]
    ) -> None:
        super().__init__(everyone)
        self.group = everyone.group or dist.group.WORLD
        self.hook = hook
        self._relative_weight = weight * everyone.world
        self._agreed_stop = False
        self._travelling: list[torch.futures.Future[Any]] = []

    def prepare(self, model: nn.Module) -> None:
        """Wrap the model."""
        super().prepare(model)
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.13
        settings: dict[str, Any] = {buffers: False}
        self.module = wrapped = DistributedDataParallel(model, process_group=self.group, **settings)
        wrapped.register_comm_hook(self, self._hook())

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; torch averages on the way. See `Strategy.backward`."""
        began = time.monotonic()
        self._travelling.clear()
        try:
            (loss * self._relative_weight).backward()
        except RuntimeError as error:
            if any(map(_failed, self._travelling)):
                raise self.everyone.lost("gradients", time.monotonic() - began, error) from error
            raise
        self._look(loss)

    def after_window(self) -> None:
        """Ask now and then whether to stop."""
        super().after_window()
        if self.window % VOTE_EVERY == 0:
            self.vote()

    def vote(self) -> None:
        """See `Strategy.vote`."""
        flag = torch.tensor([float(self._stop)], device=self.everyone.device)
        self._agreed_stop = bool(self.everyone.sum(flag, name="votes") > 0)

    def healthy(self) -> bool:
        """Whether all averaged gradients were finite."""
        return bool(self._watch.gradients_finite())

    def stopping(self) -> bool:
        """Whether any worker had been asked to stop at the last vote."""
        return self._agreed_stop

    def plan(self, updates: int) -> Plan:
        """The gradients, in half the bytes with bf16 or fp16; powersgd's are known only as they are sent."""
        size = sum(p.numel() * p.element_size() for p in self._parameters())
        each = size // 2 if self.hook in ("bf16", "fp16") else size
        what = "the gradients, at every update" + (", before compression" if self.hook == "powersgd" else "")
        return Plan(float(updates), float(updates * each), each, what)

    def _hook(self) -> Any:
        """Torch's hook, counted."""
        state, hook = {
            "none": (self.group, default_hooks.allreduce_hook),
            "bf16": (self.group, default_hooks.bf16_compress_hook),
            "fp16": (self.group, default_hooks.fp16_compress_hook),
            "powersgd": (powerSGD_hook.PowerSGDState(self.group), powerSGD_hook.powerSGD_hook),
        }[self.hook]
        width = 2 if self.hook in ("bf16", "fp16") else 4
        traffic = self.everyone.traffic.setdefault("gradients", Traffic())

        def counted(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            traffic.calls += 1
            traffic.bytes += bucket.buffer().numel() * width
            future = hook(state, bucket)
            self._travelling.append(future)
            return future

        return counted


def _failed(future: torch.futures.Future[Any]) -> bool:
    """Whether a collective failed, to tell that from an error of the model's own."""
    if not future.done():
        return False
    try:
        future.value()
    except RuntimeError:
        return True
    return False
