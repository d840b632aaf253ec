"""The engine that the training loop sees: a placement, a sync and the control flags."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator, Traffic
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import Measurement, OptimizerView, Weights
from fptt_dist.parallel.placement.placement import Placement
from fptt_dist.parallel.sync.sync import Sync, SyncState


class Engine:
    """One worker's part of a run's updates.

    The loop calls, in this order and the same on every worker: `prepare`, `placement.parameters`, `attach`, then for
    each window `backward`, `step`, `after_update`; `after_batch` after each batch, before it asks `control`; and
    `sync.now` when an epoch resets the slow weights and at the end.

    Args:
        everyone: all workers.
        placement: who holds which parameters.
        sync: what is averaged over the replicas, and when.

    Attributes:
        everyone: all workers.
        placement: who holds which parameters.
        sync: what is averaged, and when.
        control: the flags that the workers share, and the number of updates done.
    """

    def __init__(self, everyone: Communicator, placement: Placement, sync: Sync) -> None:
        self.everyone = everyone
        self.placement = placement
        self.sync = sync
        self.control = Control(everyone)
        self._loss: Tensor | None = None  # of the micro-batches since the last update

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""
        return self.everyone.rank

    @property
    def world(self) -> int:
        """Number of workers."""
        return self.everyone.world

    @property
    def kind(self) -> str:
        """The classes of placement and sync: a checkpoint of another kind is redistributed."""
        return f"{type(self.placement).__name__} {type(self.sync).__name__}"

    @property
    def replicated(self) -> bool:
        """True if weights, slow weights and optimizer state are equal on all workers."""
        return self.placement.whole and self.sync.equal

    def prepare(self, model: nn.Module) -> None:
        """Take the model, before the optimizer exists, and bring every worker to rank 0's parameters and buffers.

        Raises:
            RuntimeError: they are not equal, bit for bit, after that.
        """
        tensors = [t.detach() for t in (*model.parameters(), *model.buffers())]
        self.everyone.broadcast(tensors, name="weights")
        wide = [t for t in tensors if t.element_size() % 4 == 0]
        if not self.everyone.all_equal(wide, name="weights"):
            raise RuntimeError("the workers' weights differ after the broadcast from rank 0")
        self.placement.prepare(model)

    def attach(self, optimizer: OptimizerView) -> None:
        """Take the optimizer of `placement.parameters`."""
        self.placement.attach(optimizer, self.control)
        names = [shard.name for shard in self.placement.shards()]
        self.control.attach(names, optimizer.param_groups[0]["params"][0].device)
        self.sync.attach(self.placement, optimizer, self.control)
        self.replica_groups = self._replica_groups()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate one micro-batch's loss, and before an update make the gradients those that it uses.

        Args:
            loss: 0-dim, a mean over this worker's sequences, weighted by the micro-batch's share of them.
            last: whether an update follows.
        """
        self.placement.backward(loss, last=last)
        total = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._loss = None if last else total
        if last:
            self.control.observe(total, self.placement.gradients())
            self.sync.before_update(total)

    def update_ranks(self) -> list[int]:
        """Return the workers whose next update is one: a window without a step on any of them is skipped by all."""
        return self.sync.update_ranks()

    def abandon(self) -> None:
        """Forget the update under way, whose gradients are not wanted."""
        self._loss = None
        self.placement.optimizer.zero_grad()

    def step(
        self, closure: Callable[[], Any] | None = None, *, measure: Measurement | None = None
    ) -> dict[str, Tensor]:
        """Do one update of the optimizer, which leaves no gradients; none where this worker is frozen.

        Args:
            closure: for an update that takes a second gradient.
            measure: called when the optimizer's tensors have the gradients of the update.

        Returns:
            What `measure` returned; empty without it.
        """
        if not self.sync.frozen:
            return self.placement.step(closure, measure=measure)
        norms = measure() if measure is not None else {}
        self.placement.optimizer.zero_grad()
        return norms

    def after_update(self) -> None:
        """Count the update; the workers may synchronize."""
        self.control.next_update()
        self.sync.after_update()

    @contextmanager
    def eval_weights(self, weights: Weights, *, own: bool = False) -> Iterator[nn.Module]:
        """Yield a module that computes with the synchronized W̄ or W; the previous values are restored afterwards.

        `own`: with this worker's own, where the workers' differ.
        """
        values = None if own else self.sync.averaged(weights)
        placement = self.placement
        with placement.eval_weights(weights) if values is None else placement.swapped_weights(values) as module:
            yield module

    def after_batch(self) -> None:
        """Bring the flags up to date as far as this sync does after each batch; called by all workers."""
        self.sync.after_batch()

    def settle(self) -> None:
        """Share the flags and wait for collectives under way, before a checkpoint; changes no number."""
        self.sync.share_flags()
        self.sync.wait()

    def communicators(self) -> list[Communicator]:
        """Return all communicators in use, each once."""
        found = [self.everyone, *self.sync.communicators(), *self.placement.communicators()]
        return list({id(each): each for each in found}.values())

    def traffic(self) -> dict[str, Traffic]:
        """Return the cost of the collectives to this worker so far, by name."""
        total: dict[str, Traffic] = {}
        for each in self.communicators():
            for name, cost in each.traffic.items():
                sum_ = total.setdefault(name, Traffic())
                sum_.calls += cost.calls
                sum_.bytes += cost.bytes
                sum_.seconds += cost.seconds
        return total

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate the communication for one batch of `updates` windows."""
        inside, between = self.placement.comm_estimate(updates), self.sync.comm_estimate(updates)
        return between.with_inside(inside) if between.bytes else inside

    def state_dict(self) -> SyncState:
        """Return what a checkpoint must hold, except the number of updates, weights and optimizer state."""
        return self.sync.state_dict()

    def load_state_dict(self, state: SyncState, updates: int) -> None:
        """Restore what `state_dict` returned after `updates` updates; `own` is empty after a change of world size."""
        self.control.updates = updates
        self.sync.load_state_dict(state)

    def _replica_groups(self) -> list[list[int]]:
        """Return the groups of ranks that together hold one replica, where the ranks are not all equal."""
        if self.placement.whole:
            return [[rank] for rank in range(self.world)]
        inside = self.placement.workers
        mine = inside.ranks if isinstance(inside, GroupCommunicator) else [self.rank]
        if len(mine) == self.world:
            return [mine]
        found = self.everyone.all_gather_object(mine, name="replica groups")
        return sorted({tuple(ranks): ranks for ranks in found}.values())
