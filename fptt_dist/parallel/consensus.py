"""Consensus: the slow variables are what travels, every H windows.

    worker 0   W₀ W̄₀ u₀ moments  ── H windows on its own shard ──┐
    worker 1   W₁ W̄₁ u₁ moments  ── H windows on its own shard ──┼─ one all-reduce ─→ what they agree on ─→ the next H
    worker 2   W₂ W̄₂ u₂ moments  ── H windows on its own shard ──┘

Between agreements nothing travels, or, where a machine's workers average their gradients, nothing between machines.
Agreements happen at updates ≡ 0 mod H of the run's own count, at an epoch's reset and at the end, and nowhere else:
evaluating or saving changes no weight.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fptt_dist.parallel.agreement import Agreement, SharedDual
from fptt_dist.parallel.collectives import Communicator, GroupCommunicator
from fptt_dist.parallel.payload import Payload
from fptt_dist.parallel.pieces import Piece
from fptt_dist.parallel.strategy import OptimizerView, Plan, Strategy, StrategyState, Weights

DRIFT_EVERY = 20  # updates between two looks at how far the workers are apart


class Consensus(Strategy):
    """Train apart, agree every H windows.

    Args:
        everyone: all workers.
        between: those who agree: all, or one of each machine.
        weight: share of the batch's sequences that this worker (its machine) trains on; the shares sum to 1.
        inside: differentiates between agreements: alone, or averaging over the machine's workers.
        before: averages over all workers until `start_after`; None where that is 0.
        agreement: what they agree on.
        every: H, in updates.
        compressed: whether differences travel in bf16.
        delay: τ < H, updates done while an agreement travels.
        start_after: updates with averaged gradients before the first interval.
        stop_every: updates between votes on stopping, where H is larger.
    """

    replicated = False

    def __init__(
        self,
        everyone: Communicator,
        between: Communicator,
        weight: float,
        inside: Strategy,
        before: Strategy | None,
        agreement: Agreement,
        *,
        every: int,
        compressed: bool = False,
        delay: int = 0,
        start_after: int = 0,
        stop_every: int = 500,
    ) -> None:
        super().__init__(everyone)
        self.between = between
        self.weight = weight
        self.inside = inside
        self.before = before
        self.agreement = agreement
        self.every = every
        self.compressed = compressed
        self.delay = delay
        self.start_after = start_after
        self.stop_every = stop_every
        self._since = 0  # updates since the last agreement
        self._departed = 0  # when the last agreement was sent off
        self._due: int | None = None  # when the one under way arrives
        self._snapshot: list[Tensor] = []
        self._frozen = False  # this worker saw something that is not finite and waits for the others to hear of it
        self._failed = False  # all know
        self._agreed_stop = False
        self._drift = torch.zeros(())

    @property
    def voices(self) -> int:
        """See `Strategy.voices`."""
        return self.between.world

    def prepare(self, model: nn.Module) -> None:
        """See `Strategy.prepare`."""
        super().prepare(model)
        for part in self._parts:
            part.prepare(model)
        self.module = self.inside.module
        self.casts = self.inside.casts

    def parameters(self) -> list[Tensor]:
        """See `Strategy.parameters`."""
        return self.inside.parameters()

    def pieces(self) -> list[Piece]:
        """See `Strategy.pieces`."""
        return self.inside.pieces()

    def copies(self) -> list[list[int]]:
        """See `Strategy.copies`."""
        return self._copies

    def attach(self, optimizer: OptimizerView) -> None:
        """See `Strategy.attach`."""
        for part in self._parts:
            part.attach(optimizer)
        super().attach(optimizer)
        for part in self._parts:
            part._watch = self._watch
        self._copies = super().copies()
        if not self.inside.replicated:
            inside = self.inside.everyone
            mine = inside.ranks if isinstance(inside, GroupCommunicator) else [self.rank]
            self._copies = sorted({tuple(ranks): ranks for ranks in self.everyone.gather(mine, name="copies")}.values())
        self.agreement.attach(optimizer, [piece.name for piece in self.pieces()])
        self.agreement.begin()
        self._payload = Payload(
            self.between,
            self.weight,
            compressed=self.compressed,
            template=self.agreement.largest() or self._parameters()[:1],
            numbers=self._riding,
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate; see `Strategy.backward`."""
        part = self.before if self.before is not None and self.window < self.start_after else self.inside
        part.window = self.window
        part.backward(loss, last=last)
        if last and not part.healthy():
            self._frozen = True

    def step(self, closure: Callable[[], Any] | None = None, *, measure: bool = False) -> dict[str, Tensor]:
        """One update, unless this worker is frozen."""
        if self._frozen:
            norms = self.optimizer.norms() if measure else {}
            self.optimizer.zero_grad()
            return norms
        if self.agreement.needs_every_gradient:
            for p in self._parameters():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        return self.inside.step(closure, measure=measure)

    def guarding(self) -> AbstractContextManager[None]:
        """See `Strategy.guarding`."""
        return self.inside.guarding()

    def after_window(self) -> None:
        """Agree when it is time."""
        super().after_window()
        if self.before is not None and self.window <= self.start_after:
            self._failed |= self._frozen  # the averaged gradients were the same everywhere
            self._agreed_stop = self.before.stopping()
            if self.window == self.start_after:
                self.agreement.begin()
            return
        self._since += 1
        self.agreement.after_window()
        if self._due == self.window:
            self._arrive()
        if self.window % self.every == 0:
            self._depart()
            if self.delay == 0:
                self._arrive()
        elif self.stop_every < self.every and self.window % self.stop_every == 0:
            self.vote()

    def settle(self) -> None:
        """An agreement now, unless there has just been one; one under way arrives first."""
        if self._due is not None:
            self._arrive()
        if self.window > self.start_after and self._since > 0:
            self._depart()
            self._arrive()

    @contextmanager
    def evaluating(self, weights: Weights, *, own: bool = False) -> Iterator[nn.Module]:
        """A module computes with the mean of the workers' W̄ or W (Z with worker duals), in scratch copies."""
        if own:
            with self.inside.evaluating(weights) as module:
                yield module
            return
        params, centers, _ = self.optimizer.slow()
        agreeing = self.window > self.start_after
        values = self.agreement.agreed_center() if weights == "center" and agreeing else None
        if values is None:
            mine = centers if weights == "center" else [p.detach() for p in params]
            scratch = Payload(self.between, self.weight, compressed=False, template=mine, numbers=0, name="evaluation")
            scratch.start(mine, [], torch.zeros(0))
            values, _ = scratch.finish(0)
        with self.inside.showing(values) as module:
            yield module

    def healthy(self) -> bool:
        """Whether no worker had seen anything that is not finite at the last agreement or vote."""
        return not self._failed

    def vote(self) -> None:
        """Ask all whether one is frozen or was asked to stop; changes no weight."""
        flags = torch.tensor([float(self._frozen), float(self._wants_stop)], device=self.everyone.device)
        flags = self.everyone.sum(flags, name="votes").tolist()
        self._failed |= flags[0] > 0.0
        self._agreed_stop = flags[1] > 0.0

    def request_stop(self) -> None:
        """See `Strategy.request_stop`."""
        super().request_stop()
        for part in self._parts:
            part.request_stop()

    def stopping(self) -> bool:
        """Whether any worker had been asked to stop at the last agreement or vote."""
        return self._agreed_stop

    def drain(self) -> None:
        """Wait for the agreement under way; it arrives when it would have."""
        self._payload.wait()

    def measured(self) -> dict[str, Tensor]:
        """‖W_r − mean‖/‖mean‖ at the last agreement."""
        return {"drift": self._drift}

    def communicators(self) -> list[Communicator]:
        """All, between machines, inside one."""
        found = [self.everyone, *self.between.parts(), *self.inside.communicators()]
        return list({id(each): each for each in found}.values())

    def plan(self, updates: int) -> Plan:
        """One buffer every H updates, and what the machine's workers send."""
        count = sum(vector.numel() for vector in self.agreement.vectors()) + self._riding
        calls, size = self.between.cost(count, self._payload.buffer.element_size())
        often = updates / self.every
        inside = self.inside.plan(updates)
        return Plan(
            often * calls + inside.collectives,
            often * size + inside.bytes,
            size,
            f"an agreement every {self.every} updates"
            + (", inside a machine the gradients at every update" if inside.bytes else ""),
        )

    def state_dict(self) -> StrategyState:
        """The agreement's, and the one under way with what it needs on arrival."""
        state = self.agreement.state_dict()
        if not self.inside.replicated:  # each has its part of the agreed points
            state.own |= {name: state.shared.pop(name) for name in list(state.shared)}
        state.shared["interval"] = torch.tensor([self._since], dtype=torch.int64)
        state.own["drift"] = self._drift
        if self._due is not None:
            state.own["due"] = torch.tensor([self._departed, self._due], dtype=torch.int64)
            state.own |= {f"payload/{name}": tensor for name, tensor in self._payload.state().items()}
            state.own |= {f"snapshot/{i}": tensor for i, tensor in enumerate(self._snapshot)}
        return state

    def load_state_dict(self, state: StrategyState, window: int) -> None:
        """See `Strategy.load_state_dict`. After a change of the world's size an agreement under way is left out: the
        mean of all its corrections is 0, and the workers start at their mean.
        """
        super().load_state_dict(state, window)
        if "interval" not in state.shared:  # written by another strategy, whose workers were equal
            self.agreement.begin()
            return
        self.agreement.load_state_dict(state if self.inside.replicated else StrategyState(shared=state.own))
        self._since = int(state.shared["interval"])
        self._drift = state.own.get("drift", self._drift).to(self._drift.device)
        if "due" in state.own:
            self._departed, self._due = state.own["due"].tolist()
            assert isinstance(self.agreement, SharedDual)
            like = self.agreement.snapshot()
            self._snapshot = [state.own[f"snapshot/{i}"].to(t.device) for i, t in enumerate(like)]
            sums = state.own["payload/buffer"].clone()
            sums[-1] = 0.0  # the request to stop that this checkpoint was written for has been met
            self._payload.load({"buffer": sums}, self.agreement.vectors(), self.agreement.references())

    @property
    def _parts(self) -> list[Strategy]:
        return [self.inside] if self.before is None else [self.inside, self.before]

    @property
    def _wants_stop(self) -> bool:
        return self.inside.stopping()

    @property
    def _riding(self) -> int:
        """Numbers behind the vectors: the agreement's, frozen, stop."""
        return len(self.agreement.numbers()) + 2

    def _depart(self) -> None:
        """Send this worker's share off."""
        vectors, own = self.agreement.vectors(), self.agreement.numbers()
        flags = own.new_tensor([float(self._frozen), float(self._wants_stop)])
        if self.delay:
            assert isinstance(self.agreement, SharedDual)
            self._snapshot = self.agreement.snapshot()
        self._payload.start(vectors, self.agreement.references(), torch.cat([own, flags]))
        self._departed = self.window
        self._due = self.window + self.delay

    def _arrive(self) -> None:
        """Take the means over, unless one worker is frozen or a sum is not finite: then nobody does."""
        self._due = None
        means, numbers = self._payload.finish(self._riding)
        frozen, stop = numbers[-2:].tolist()
        self._agreed_stop = stop > 0.0
        self._since = self.window - self._departed  # done while it travelled
        if self.inside.any_beside(frozen > 0.0 or not self._payload.finite()):
            self._failed = True
            return
        number, more = divmod(self._departed, self.every)
        seldom = max(1, DRIFT_EVERY // self.every)
        if more or number % seldom == 1 % seldom:
            self._measure(means)
        if self.window > self._departed:
            self.agreement.arrive_late(means, self._snapshot)
        else:
            self.agreement.arrive(means, numbers[:-2])
        self.inside.changed()
        self._snapshot = []

    @torch.no_grad()
    def _measure(self, means: list[Tensor]) -> None:
        """How far this worker's W (W̄ where W does not travel) is from the mean, relative to it."""
        part = self.agreement.watched()
        mean = means[part]
        if mean:
            own = (self._snapshot or self.agreement.vectors())[part]
            apart = torch.stack(torch._foreach_norm(torch._foreach_sub(own, mean)))
            length = torch.stack(torch._foreach_norm(mean))
            self._drift = torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(length)
