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

from fptt_dist.parallel.collectives import Communicator, GroupCommunicator
from fptt_dist.parallel.pieces import Piece
from fptt_dist.parallel.sharded import Sharded
from fptt_dist.parallel.strategy import Plan

FULL = torch.float32


class FullyShard(Sharded):
    """The whole network is one unit: its weights are gathered for a window's forward pass and kept for its backward
    pass, since a stack of recurrent layers is computed by one call that wants all its weights.

    The optimizer steps the plain tensors behind the DTensors, which spares their dispatch.

    Args:
        everyone: the workers that hold one copy.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
        bf16: whether weights are gathered, and the module computes, in bf16; gradients are averaged in full precision.
        offload: whether the parts stay in the host's memory.
    """

    def __init__(self, everyone: Communicator, weight: float, *, bf16: bool = False, offload: bool = False) -> None:
        super().__init__(everyone, weight)
        self.casts = bf16
        self.offload = offload

    def parameters(self) -> list[Tensor]:
        """See `Strategy.parameters`."""
        return [piece.tensor for piece in self.pieces()]

    def changed(self) -> None:
        """See `Strategy.changed`: what was gathered before is stale."""
        self._unit.reshard()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Strategy.backward`; gradients are averaged and dealt out before an update alone."""
        self._unit.set_requires_gradient_sync(last)
        (loss * self._relative_weight).backward()
        self._loss += loss.detach()
        if not last:
            return
        for sharded, piece in zip(self._sharded, self._pieces, strict=True):
            gradient, sharded.grad = sharded.grad, None
            piece.tensor.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
        self._finite &= self._note(self._loss)
        self._loss.zero_()

    def step(self, closure: Callable[[], Any] | None = None, *, measure: bool = False) -> dict[str, Tensor]:
        """See `Strategy.step`."""
        norms = super().step(closure, measure=measure)
        self._count()
        self.changed()  # also where no backward pass has dropped what was gathered
        return norms

    def plan(self, updates: int) -> Plan:
        """The weights are gathered and the gradients dealt out for each update, each half of an all-reduce."""
        size = self._numbers * ((2 if self.casts else 4) + 4) // 2
        return Plan(2.0 * updates, float(updates * size), size // 2, "weights and gradients, at every update")

    def _shard(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        model.register_forward_hook(_out_of_views)  # runs before the engine's own, which looks at what it returns
        assert isinstance(self.everyone, GroupCommunicator)
        group = self.everyone.group or dist.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, self._loss.device.type)
        policy = MixedPrecisionPolicy()
        if self.casts:
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
            rows = -(-sharded.shape[0] // self.world)  # as torch.chunk deals them
            start = min(self.rank * rows, sharded.shape[0]) * row
            own = nn.Parameter(local, requires_grad=sharded.requires_grad)
            self._pieces.append(Piece(name, tuple(sharded.shape), start, own, slice(0, local.numel())))


def _out_of_views(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Outputs that may be written to: the engine loses sight of a view once somebody writes to it in place."""
    return tree_map_only(Tensor, lambda t: t.clone() if t._is_view() else t, outputs)
