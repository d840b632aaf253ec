"""Sharded by torch's FSDP2 (`fully_shard`): a worker holds some rows of each parameter."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator
from fptt_dist.parallel.optimizer_view import Measurement
from fptt_dist.parallel.placement.shard import ParameterShard
from fptt_dist.parallel.placement.sharded import Sharded

FULL = torch.float32


class FullyShard(Sharded):
    """FSDP2 with the whole network as one unit.

    Its weights are gathered for a window's forward pass and kept for its backward pass, since a stack of recurrent
    layers is computed by one call that needs all its weights. The optimizer steps the plain tensors behind the
    DTensors, which saves the time of their dispatch.

    Args:
        workers: those of one replica.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
        bf16: whether weights are gathered, and the module computes, in bf16; gradients are averaged in full precision.
        offload: whether the shards stay in host memory.
    """

    def __init__(self, workers: Communicator, weight: float, *, bf16: bool = False, offload: bool = False) -> None:
        super().__init__(workers, weight)
        self.computes_in_bf16 = bf16
        self.offload = offload

    def parameters(self) -> list[Tensor]:
        """See `Placement.parameters`."""
        return [shard.tensor for shard in self._shards]

    def on_params_written(self) -> None:
        """See `Placement.on_params_written`: what was gathered before is stale."""
        self._unit.reshard()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Placement.backward`; gradients are reduce-scattered (averaged) only before an update."""
        self._unit.set_requires_gradient_sync(last)
        (loss * self._relative_weight).backward()
        if not last:
            return
        for sharded, shard in zip(self._sharded, self._shards, strict=True):
            gradient, sharded.grad = sharded.grad, None
            shard.tensor.grad = gradient.to_local() if isinstance(gradient, DTensor) else None

    def step(
        self, closure: Callable[[], Any] | None = None, *, measure: Measurement | None = None
    ) -> dict[str, Tensor]:
        """See `Placement.step`."""
        norms = super().step(closure, measure=measure)
        self._count()
        self.on_params_written()  # also where no backward pass has dropped what was gathered
        return norms

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate the weights' all-gather and the gradients' reduce-scatter per update, each half of an all-reduce."""
        size = self._numbers * ((2 if self.computes_in_bf16 else 4) + 4) // 2
        return CommEstimate(2.0 * updates, float(updates * size), size // 2, "weights and gradients, at every update")

    def _shard(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        model.register_forward_hook(_out_of_views)  # runs before the engine's own, which looks at what it returns
        assert isinstance(self.workers, GroupCommunicator)
        group = self.workers.group or dist.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, self.workers.device.type)
        policy = MixedPrecisionPolicy()
        if self.computes_in_bf16:
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=FULL, output_dtype=FULL)
        offload = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offload)
        assert isinstance(model, FSDPModule)
        self._unit = model
        self._sharded: list[nn.Parameter] = list(model.parameters())
        for name, sharded in zip(names, self._sharded, strict=True):
            assert isinstance(sharded, DTensor)
            local = sharded.to_local().detach()
            row = sharded.numel() // max(1, sharded.shape[0])
            rows = -(-sharded.shape[0] // self.workers.world)  # per worker, as torch.chunk splits them
            start = min(self.workers.rank * rows, sharded.shape[0]) * row
            own = nn.Parameter(local, requires_grad=sharded.requires_grad)
            self._shards.append(ParameterShard(name, tuple(sharded.shape), start, own, slice(0, local.numel())))


def _out_of_views(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Return outputs that may be written to: FSDP loses track of a view once it is written to in place."""
    return tree_map_only(Tensor, lambda t: t.clone() if t._is_view() else t, outputs)
