"""What the sharded strategies share: each worker holds a part of weights, moments, W̄ and u, and steps that part.

    worker 0   parts 0 of W  W̄  u  moments ─┐
    worker 1   parts 1 of W  W̄  u  moments ─┼─ W is put together for a window, its gradient is averaged and dealt out
    worker 2   parts 2 of W  W̄  u  moments ─┘

FPTT's update is elementwise, so it is the same on parts; only the clip needs the whole norm, which is one number.
"""

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fptt_dist.parallel.collectives import Communicator, Traffic
from fptt_dist.parallel.pieces import Piece
from fptt_dist.parallel.strategy import OptimizerView, Strategy, Weights


class Sharded(Strategy):
    """One copy of the model and its state, over all workers together.

    Every parameter needs a gradient at every update on every worker.

    Args:
        everyone: the workers that hold one copy.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
    """

    replicated = False
    _loss: Tensor  # of the micro-batches since the last update
    _finite: Tensor

    def __init__(self, everyone: Communicator, weight: float) -> None:
        super().__init__(everyone)
        self._relative_weight = weight * everyone.world
        self._voted = -1  # the update after which all last told each other
        self._agreed_bad = False
        self._agreed_stop = False

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`."""
        super().prepare(model)
        hollow = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
        self._skeleton = copy.deepcopy(model, hollow)
        self._numbers = sum(p.numel() for p in model.parameters())
        self._loss = torch.zeros((), device=next(model.parameters()).device)
        self._finite = torch.ones((), dtype=torch.bool, device=self._loss.device)
        self._shard(model)

    def attach(self, optimizer: OptimizerView) -> None:
        """See `Strategy.attach`."""
        super().attach(optimizer)
        optimizer.norm_reduce = self._whole_norm

    def pieces(self) -> list[Piece]:
        """See `Strategy.pieces`."""
        return self._pieces

    @abstractmethod
    def _shard(self, model: nn.Module) -> None:
        """Give each worker its part of the model, whose weights are equal everywhere; sets `module`."""

    def copies(self) -> list[list[int]]:
        """See `Strategy.copies`."""
        return [list(range(self.world))]

    @contextmanager
    def evaluating(self, weights: Weights, *, own: bool = False) -> Iterator[nn.Module]:
        """See `Strategy.evaluating`; the weights are put together once, in a module of their own in full precision."""
        values = self.optimizer.slow()[1] if weights == "center" else self._parameters()
        with self.showing(values) as module:
            yield module

    @contextmanager
    def showing(self, values: list[Tensor]) -> Iterator[nn.Module]:
        """See `Strategy.showing`."""
        place = {id(p): i for i, p in enumerate(self._parameters())}
        shown = copy.deepcopy(self._skeleton)
        sizes = {name: p.shape for name, p in shown.named_parameters()}
        flat = torch.zeros(sum(s.numel() for s in sizes.values()), dtype=values[0].dtype, device=self.everyone.device)
        whole = dict(zip(sizes, flat.split([s.numel() for s in sizes.values()]), strict=True))
        with torch.no_grad():
            for piece in self.pieces():
                whole[piece.name][piece.start : piece.stop] = piece.of(values[place[id(piece.tensor)]]).reshape(-1)
        self.everyone.sum(flat, name="evaluation")
        named = {id(p): whole[name].view(p.shape) for name, p in shown.named_parameters()}
        tensors = {name: named[id(p)] for name, p in shown.named_parameters(remove_duplicate=False)}
        buffers = dict(self._network.named_buffers(remove_duplicate=False))
        shown.load_state_dict({**tensors, **buffers}, strict=False, assign=True)
        for module in shown.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        yield shown

    def healthy(self) -> bool:
        """Whether all losses and gradients were finite on all workers."""
        if self._voted != self.window:
            self.vote()
        return not self._agreed_bad

    def vote(self) -> None:
        """See `Strategy.vote`."""
        flags = torch.tensor([float(not self._finite), float(self._stop)], device=self.everyone.device)
        bad, stop = self.everyone.sum(flags, name="votes").tolist()
        self._agreed_bad |= bad > 0.0
        self._agreed_stop = stop > 0.0
        self._voted = self.window

    def stopping(self) -> bool:
        """Whether any worker had been asked to stop at the last vote."""
        return self._agreed_stop

    def any_beside(self, flag: bool) -> bool:
        """See `Strategy.any_beside`."""
        return bool(self.everyone.sum(torch.tensor(float(flag), device=self.everyone.device), name="votes") > 0.0)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """See `Strategy.guarding`: the collectives inside the engine raise torch's errors."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not _of_a_backend(error):
                raise
            raise self.everyone.lost("parts of the model", time.monotonic() - began, error) from error

    def _count(self) -> None:
        """Count what the engine sent for an update, which is known by its size."""
        sent = self.plan(1)
        traffic = self.everyone.traffic.setdefault("parts of the model", Traffic())
        traffic.calls += int(sent.collectives)
        traffic.bytes += int(sent.bytes)

    def _whole_norm(self, squares: Tensor) -> Tensor:
        """The sum of squares over all parts, which may be in the host's memory."""
        return self.everyone.sum(squares.to(self.everyone.device), name="norm").to(squares.device)


def _of_a_backend(error: RuntimeError) -> bool:
    """Whether a collective raised it, rather than the model."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
