"""Base of the sharded placements: each worker holds and updates a shard of weights, optimizer state, W̄ and u.

    worker 0   shard 0 of W  W̄  u  optimizer state ─┐
    worker 1   shard 1 of W  W̄  u  optimizer state ─┼─ W is gathered for a window, its gradient averaged and sharded
    worker 2   shard 2 of W  W̄  u  optimizer state ─┘

FPTT's update is elementwise, so it is the same on shards; only clipping needs the full norm, which is one number.
"""

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fptt_dist.parallel.comm.communicator import Communicator, Traffic
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import OptimizerView, Weights
from fptt_dist.parallel.placement.placement import Placement
from fptt_dist.parallel.placement.shard import ParameterShard


class Sharded(Placement):
    """One replica of the model and its state, sharded over all workers.

    Every parameter needs a gradient at every update on every worker.

    Args:
        workers: those of the replica.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
    """

    whole = False
    averages = True

    def __init__(self, workers: Communicator, weight: float) -> None:
        super().__init__(workers)
        self._relative_weight = weight * workers.world

    def prepare(self, model: nn.Module) -> None:
        """See `Placement.prepare`."""
        super().prepare(model)
        hollow = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
        self._skeleton = copy.deepcopy(model, hollow)
        self._numbers = sum(p.numel() for p in model.parameters())
        self._shard(model)

    def attach(self, optimizer: OptimizerView, control: Control) -> None:
        """See `Placement.attach`."""
        super().attach(optimizer, control)
        optimizer.norm_reduce = self._full_norm

    def shards(self) -> list[ParameterShard]:
        """See `Placement.shards`."""
        return self._shards

    def gradients(self) -> list[Tensor | None]:
        """See `Placement.gradients`."""
        found = [(shard, shard.tensor.grad) for shard in self._shards]
        return [None if gradient is None else shard.view(gradient) for shard, gradient in found]

    @abstractmethod
    def _shard(self, model: nn.Module) -> None:
        """Give each worker its shard of the model, whose weights are equal on all workers; sets `module`."""

    @contextmanager
    def eval_weights(self, weights: Weights) -> Iterator[nn.Module]:
        """Gather the weights once into a separate full-precision module; see `Placement.eval_weights`."""
        values = self.optimizer.slow_state()[1] if weights == "center" else self.stepped()
        with self.swapped_weights(values) as module:
            yield module

    @contextmanager
    def swapped_weights(self, values: list[Tensor]) -> Iterator[nn.Module]:
        """See `Placement.swapped_weights`."""
        place = {id(p): i for i, p in enumerate(self.stepped())}
        shown = copy.deepcopy(self._skeleton)
        sizes = {name: p.shape for name, p in shown.named_parameters()}
        flat = torch.zeros(sum(s.numel() for s in sizes.values()), dtype=values[0].dtype, device=self.workers.device)
        whole = dict(zip(sizes, flat.split([s.numel() for s in sizes.values()]), strict=True))
        with torch.no_grad():
            for shard in self._shards:
                whole[shard.name][shard.start : shard.stop] = shard.view(values[place[id(shard.tensor)]]).reshape(-1)
        self.workers.all_reduce(flat, name="evaluation")
        named = {id(p): whole[name].view(p.shape) for name, p in shown.named_parameters()}
        tensors = {name: named[id(p)] for name, p in shown.named_parameters(remove_duplicate=False)}
        buffers = dict(self.network.named_buffers(remove_duplicate=False))
        shown.load_state_dict({**tensors, **buffers}, strict=False, assign=True)
        for module in shown.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        yield shown

    def any_in_replica(self, flag: bool) -> bool:
        """See `Placement.any_in_replica`."""
        return self.workers.any_set(flag)[0]

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """See `Placement.collective_errors`: the collectives inside the engine raise torch's errors."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not _of_a_backend(error):
                raise
            raise self.workers.translate_error("parameter shards", time.monotonic() - began, error) from error

    def _count(self) -> None:
        """Count what the engine sends for one update, as estimated from the model's size."""
        sent = self.comm_estimate(1)
        traffic = self.workers.traffic.setdefault("parameter shards", Traffic())
        traffic.calls += int(sent.collectives)
        traffic.bytes += int(sent.bytes)

    def _full_norm(self, squares: Tensor) -> Tensor:
        """Return the sum of squares over all shards, which may be in host memory."""
        return self.workers.all_reduce(squares.to(self.workers.device), name="norm").to(squares.device)


def _of_a_backend(error: RuntimeError) -> bool:
    """Return whether a collective raised it, rather than the model."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
