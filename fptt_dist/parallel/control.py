"""Flags that the workers share: a request to stop, and whether losses and gradients have been finite.

A worker first knows its own flags; it learns those of others from a sum over the workers, either a vote or a sum that
carries other numbers too. Only what is known to all may decide whether a worker trains the next batch, or they would
wait for each other.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.nan_check import NEVER, SUM, NonFiniteRecord, NonFiniteTracker


class Control:
    """The flags of one worker.

    Args:
        everyone: all workers.

    Attributes:
        everyone: all workers.
        updates: number of updates done, by which all syncs are timed.
        wants_stop: whether a stop was requested on this worker.
        requested: the same (0-dim, on the device, where a CUDA graph reads it).
        stop: whether one was on any worker that this one has learned of (0-dim, on the device).
    """

    def __init__(self, everyone: Communicator) -> None:
        self.everyone = everyone
        self.updates = 0
        self._all_finite = True  # known to all workers, as is
        self._all_stop = False
        self.wants_stop = False
        self.requested = torch.zeros(())
        self.stop = torch.zeros(())

    def attach(self, names: list[str], device: torch.device) -> None:
        """Take the parameters' names and the device of their gradients."""
        self._tracker = NonFiniteTracker(names, device)
        self.requested, self.stop = self.requested.to(device), self.stop.to(device)
        self._sums_finite = torch.ones((), dtype=torch.bool, device=device)

    def observe(self, loss: Tensor, gradients: list[Tensor | None]) -> None:
        """Record the loss and the gradients, one for each name, of the update under way."""
        self._tracker.observe(loss, gradients)

    def learn(self, *, finite: Tensor | bool = True, stop: Tensor | bool | None = None) -> None:
        """Take flags that a sum over some workers brought; nothing is read on the host."""
        if finite is not True:
            self._sums_finite &= finite
        if stop is not None:
            self.stop.copy_(stop) if isinstance(stop, Tensor) else self.stop.fill_(float(stop))

    def finite(self) -> bool:
        """Return whether losses, gradients and their sums have been finite, as far as this worker knows."""
        return bool(self._tracker.finite() & self._sums_finite)

    def vote(self, workers: Communicator) -> tuple[bool, bool]:
        """Learn and return the flags of `workers`, finite and stop; all of them call it together."""
        if workers.world == 1:
            return self.finite(), self.wants_stop
        bad, stop = workers.any_set(not self.finite(), self.wants_stop)
        self.learn(finite=not bad, stop=stop)
        return not bad, stop

    def publish(self, finite: bool, stop: bool) -> None:
        """Take flags that are now known to all workers."""
        self._all_finite &= finite
        self._all_stop = stop

    def next_update(self) -> None:
        """End the update under way."""
        self.updates += 1
        self._tracker.next_window()

    def all_finite(self) -> bool:
        """Return whether all has been finite, as far as all workers know."""
        return self._all_finite

    def first_non_finite(self) -> NonFiniteRecord:
        """Return the first non-finite value's record; called by all workers once `all_finite` returns False."""
        seen = self._tracker.first_of_all(self.everyone, self.updates)
        return seen if seen.window < NEVER else NonFiniteRecord(seen.rank, self.updates - 1, SUM)

    def request_stop(self) -> None:
        """Request a stop on this worker; `should_stop` returns True once all workers know of it."""
        self.wants_stop = True
        self._all_stop |= self.everyone.world == 1
        self.requested.fill_(1.0)

    def should_stop(self) -> bool:
        """Return whether all workers stop, as far as all of them know."""
        return self._all_stop
