"""Consensus: the workers train locally and synchronize the slow weights every H windows.

    worker 0   W₀ W̄₀ u₀ optimizer state  ── H windows on its own shard ──┐
    worker 1   W₁ W̄₁ u₁ optimizer state  ── H windows on its own shard ──┼─ one all-reduce ─→ means ─→ the next H
    worker 2   W₂ W̄₂ u₂ optimizer state  ── H windows on its own shard ──┘

Between two syncs nothing is communicated, or, where a node's workers average their gradients, nothing between nodes.
Syncs happen at updates ≡ 0 mod H of the run's own count, at an epoch's reset and at the end, and nowhere else:
evaluating or saving changes no weight.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import OptimizerView, Weights
from fptt_dist.parallel.placement.placement import Placement
from fptt_dist.parallel.sync.averaged_dual import AveragedDual
from fptt_dist.parallel.sync.flat_buffer import FlatBuffer
from fptt_dist.parallel.sync.gradient import GradientSync
from fptt_dist.parallel.sync.rule import SyncRule
from fptt_dist.parallel.sync.sync import Sync, SyncState

DRIFT_EVERY = 20  # updates between two measurements of the drift between the workers


class Consensus(Sync):
    """Train locally, synchronize every H windows.

    Args:
        inter_node: the workers that synchronize: all, or one of each node.
        weight: share of the batch's sequences that this worker (its node) trains on; the shares sum to 1.
        rule: what is synchronized, and what each worker does with the means.
        sync_every: H, in updates.
        intra_node: averages the gradients of a node's workers between two syncs; None where each trains alone, or the
            placement averages them.
        warmup: averages gradients over all workers until `warmup_updates`; None where that is 0.
        compressed: whether differences are sent in bf16.
        sync_delay: τ < H, updates done while a sync is under way.
        warmup_updates: updates with averaged gradients before the first interval.
        control_interval: updates between syncs of the control flags, where H is larger.
    """

    equal = False

    def __init__(
        self,
        inter_node: Communicator,
        weight: float,
        rule: SyncRule,
        *,
        sync_every: int,
        intra_node: GradientSync | None = None,
        warmup: GradientSync | None = None,
        compressed: bool = False,
        sync_delay: int = 0,
        warmup_updates: int = 0,
        control_interval: int = 500,
    ) -> None:
        self.inter_node = inter_node
        self.weight = weight
        self.rule = rule
        self.sync_every = sync_every
        self.intra_node = intra_node
        self.warmup = warmup
        self.compressed = compressed
        self.sync_delay = sync_delay
        self.warmup_updates = warmup_updates
        self.control_interval = control_interval
        self.frozen = False
        self._since = 0  # updates since the last sync
        self._sent_at = 0  # the update at which the last sync was sent
        self._due: int | None = None  # the update at which the one under way is applied
        self._snapshot: list[Tensor] = []
        self._drift = torch.zeros(())

    @property
    def num_replicas(self) -> int:
        """See `Sync.num_replicas`."""
        return self.inter_node.world

    def attach(self, placement: Placement, optimizer: OptimizerView, control: Control) -> None:
        """See `Sync.attach`."""
        super().attach(placement, optimizer, control)
        for inner in (self.intra_node, self.warmup):
            if inner is not None:
                inner.attach(placement, optimizer, control)
        self.rule.attach(optimizer, [shard.name for shard in placement.shards()])
        self.rule.reset()
        self._payload = FlatBuffer(
            self.inter_node,
            self.weight,
            compressed=self.compressed,
            template=self.rule.max_payload(),
            numbers=self._num_scalars,
        )

    def before_update(self, loss: Tensor) -> None:
        """Average the gradients of those that train together, and freeze at a non-finite value."""
        together = self.warmup if self.warmup is not None and self._warming else self.intra_node
        if self.placement.averages and together is None:
            finite, _ = self.control.vote(self.placement.workers)
        else:
            if together is not None:
                together.before_update(loss)
            finite = self.control.finite()
        self.frozen |= not finite
        if self.rule.needs_every_gradient and not self.frozen:
            for p in self.placement.stepped():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

    def update_ranks(self) -> list[int]:
        """See `Sync.update_ranks`: those of this worker's node, or it alone, except while all train together."""
        if self._warming or self.rule.needs_every_gradient:
            return super().update_ranks()
        together = self.placement.workers if self.intra_node is None else self.intra_node.workers
        return together.ranks if isinstance(together, GroupCommunicator) else [self.control.everyone.rank]

    def after_update(self) -> None:
        """Synchronize when a sync is due."""
        updates = self.control.updates
        if self.warmup is not None and updates <= self.warmup_updates:
            # The averaged gradients, and the flags with them, were the same everywhere.
            self.control.publish(not self.frozen, bool(self.control.stop > 0))
            if updates == self.warmup_updates:
                self.rule.reset()
            return
        self._since += 1
        self.rule.after_window()
        if self._due == updates:
            self._apply()
        if updates % self.sync_every == 0:
            self._send()
            if self.sync_delay == 0:
                self._apply()
        elif self.control_interval < self.sync_every and updates % self.control_interval == 0:
            self.share_flags()

    def after_batch(self) -> None:
        """Do nothing: the flags are sent with the synchronized tensors, or by themselves at a long interval."""

    def share_flags(self) -> None:
        """All-reduce the flags that a worker is frozen or was asked to stop; changes no weight."""
        frozen, stop = self.control.everyone.any_set(self.frozen, self._wants_stop)
        self.control.publish(not frozen, stop)

    def now(self) -> None:
        """Synchronize now, unless that has just been done; a sync under way is applied first."""
        if self._due is not None:
            self._apply()
        if self.control.updates > self.warmup_updates and self._since > 0:
            self._send()
            self._apply()

    def wait(self) -> None:
        """Wait for the sync under way, but leave applying it to the update at which it is due."""
        self._payload.wait()

    def averaged(self, weights: Weights) -> list[Tensor]:
        """Return the workers' mean W̄ or W (Z with local duals), in scratch copies."""
        params, centers, _ = self.optimizer.slow_state()
        past_warmup = self.control.updates > self.warmup_updates
        values = self.rule.consensus_center() if weights == "center" and past_warmup else None
        if values is None:
            mine = centers if weights == "center" else [p.detach() for p in params]
            scratch = FlatBuffer(
                self.inter_node, self.weight, compressed=False, template=mine, numbers=0, name="evaluation"
            )
            scratch.start(mine, [], torch.zeros(0))
            values, _ = scratch.finish(0)
        return values

    def metrics(self) -> dict[str, Tensor]:
        """Return ‖W_r − mean‖/‖mean‖ at the last sync."""
        return {"drift": self._drift}

    def communicators(self) -> list[Communicator]:
        """Return those between nodes, and inside this node."""
        inside = [] if self.intra_node is None else self.intra_node.communicators()
        return [*self.inter_node.subcommunicators(), *inside]

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate one buffer every H updates, and what the node's workers send among themselves."""
        count = sum(vector.numel() for vector in self.rule.tensors_to_sync()) + self._num_scalars
        calls, size = self.inter_node.comm_volume(count, self._payload.buffer.element_size())
        often = updates / self.sync_every
        what = f"the synchronized tensors, every {self.sync_every} updates"
        own = CommEstimate(often * calls, often * size, size, what)
        return own if self.intra_node is None else own.with_inside(self.intra_node.comm_estimate(updates))

    def state_dict(self) -> SyncState:
        """Return the rule's state, and the sync under way with what it needs to be applied."""
        state = self.rule.state_dict()
        if not self.placement.whole:  # each worker has its shard of the values at the last sync
            state.own |= {name: state.shared.pop(name) for name in list(state.shared)}
        state.shared["interval"] = torch.tensor([self._since], dtype=torch.int64)
        state.own["drift"] = self._drift
        if self._due is not None:
            state.own["due"] = torch.tensor([self._sent_at, self._due], dtype=torch.int64)
            state.own |= {f"payload/{name}": tensor for name, tensor in self._payload.state().items()}
            state.own |= {f"snapshot/{i}": tensor for i, tensor in enumerate(self._snapshot)}
        return state

    def load_state_dict(self, state: SyncState) -> None:
        """See `Sync.load_state_dict`. After a change of the world size a sync under way is dropped: the mean of all
        its corrections is 0, and the workers start at their mean.
        """
        if "interval" not in state.shared:  # written by another kind of sync, whose workers were equal
            self.rule.reset()
            return
        self.rule.load_state_dict(state if self.placement.whole else SyncState(shared=state.own))
        self._since = int(state.shared["interval"])
        self._drift = state.own.get("drift", self._drift).to(self._drift.device)
        if "due" in state.own:
            self._sent_at, self._due = state.own["due"].tolist()
            assert isinstance(self.rule, AveragedDual)
            like = self.rule.snapshot()
            self._snapshot = [state.own[f"snapshot/{i}"].to(t.device) for i, t in enumerate(like)]
            sums = state.own["payload/buffer"].clone()
            sums[-1] = 0.0  # the request to stop that this checkpoint was written for has been met
            self._payload.load({"buffer": sums}, self.rule.tensors_to_sync(), self.rule.last_synced())

    @property
    def _warming(self) -> bool:
        return self.control.updates < self.warmup_updates

    @property
    def _wants_stop(self) -> bool:
        """Request to stop on this worker, or on those that it trains with: these must all send the same."""
        if self.intra_node is not None or self.placement.averages:
            return bool(self.control.stop > 0)
        return self.control.wants_stop

    @property
    def _num_scalars(self) -> int:
        """Number of scalars after the tensors in the payload: the rule's, frozen, stop."""
        return len(self.rule.extra_scalars()) + 2

    def _send(self) -> None:
        """Start the all-reduce of this worker's share."""
        vectors, own = self.rule.tensors_to_sync(), self.rule.extra_scalars()
        flags = own.new_tensor([float(self.frozen), float(self._wants_stop)])
        if self.sync_delay:
            assert isinstance(self.rule, AveragedDual)
            self._snapshot = self.rule.snapshot()
        self._payload.start(vectors, self.rule.last_synced(), torch.cat([own, flags]))
        self._sent_at = self.control.updates
        self._due = self.control.updates + self.sync_delay

    def _apply(self) -> None:
        """Apply the means, unless a worker is frozen or a sum is not finite: then no worker does."""
        self._due = None
        means, numbers = self._payload.finish(self._num_scalars)
        frozen, stop = numbers[-2:].tolist()
        self._since = self.control.updates - self._sent_at  # updates done while it was under way
        failed = self.placement.any_in_replica(frozen > 0.0 or not self._payload.finite())
        self.control.publish(not failed, stop > 0.0)
        if failed:
            return
        number, more = divmod(self._sent_at, self.sync_every)
        seldom = max(1, DRIFT_EVERY // self.sync_every)
        if more or number % seldom == 1 % seldom:
            self._measure(means)
        if self.control.updates > self._sent_at:
            self.rule.apply_delayed(means, self._snapshot)
        else:
            self.rule.apply(means, numbers[:-2])
        self.placement.on_params_written()
        self._snapshot = []

    @torch.no_grad()
    def _measure(self, means: list[Tensor]) -> None:
        """Measure how far this worker's W (W̄ where W is not sent) is from the mean, relative to the mean's norm."""
        part = self.rule.drift_slice()
        mean = means[part]
        own = (self._snapshot or self.rule.tensors_to_sync())[part]
        apart = torch.stack(torch._foreach_norm(torch._foreach_sub(own, mean)))
        length = torch.stack(torch._foreach_norm(mean))
        self._drift = torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(length)
