"""Interface of a sync: what is averaged over the replicas, and when."""

from dataclasses import dataclass, field

from torch import Tensor

from fptt_dist.parallel.comm.comm_estimate import NOTHING, CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import OptimizerView, Weights
from fptt_dist.parallel.placement.placement import Placement


@dataclass
class SyncState:
    """Checkpointed state of a sync, as tensors by name.

    Attributes:
        shared: equal on all workers.
        own: this worker's.
    """

    shared: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)


class Sync:
    """A rule for what the replicas average, and when. This base averages nothing.

    Attributes:
        equal: whether it leaves W, W̄, u and the optimizer state equal on all workers.
        frozen: whether this worker does no update, as it saw a non-finite value of which others do not know yet.
    """

    equal = True
    frozen = False

    def attach(self, placement: Placement, optimizer: OptimizerView, control: Control) -> None:
        """Take the other parts of the engine; the placement has taken the optimizer."""
        self.placement = placement
        self.optimizer = optimizer
        self.control = control

    def before_update(self, loss: Tensor) -> None:
        """Hook called when the gradients of an update are there. `loss`: of the update's micro-batches, 0-dim."""

    def after_update(self) -> None:
        """Hook called after each window's update."""

    def update_ranks(self) -> list[int]:
        """Return the workers whose next update is one: they do it together, or none of them does."""
        return list(range(self.control.everyone.world))

    def after_batch(self) -> None:
        """Make the flags known to all workers that are to be known after each batch."""
        self.share_flags()

    def share_flags(self) -> None:
        """Make all flags known to all workers, before a checkpoint; changes no weight."""
        self.control.publish(*self.control.vote(self.control.everyone))

    def now(self) -> None:
        """Synchronize all workers now: at an epoch's reset and at the end."""

    def wait(self) -> None:
        """Wait for collectives under way; changes no number."""

    def averaged(self, weights: Weights) -> list[Tensor] | None:
        """Return the workers' mean W̄ or W where theirs differ; None where they are equal."""
        return None

    @property
    def num_replicas(self) -> int:
        """Number of replicas: the workers, or the nodes where a node's workers are equal."""
        return self.control.everyone.world

    def metrics(self) -> dict[str, Tensor]:
        """Return what this worker measured at the last sync, by name, 0-dim; the log has the workers' maximum."""
        return {}

    def communicators(self) -> list[Communicator]:
        """Return the communicators that the sync uses."""
        return []

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate the communication for one batch of `updates` windows."""
        return NOTHING

    def state_dict(self) -> SyncState:
        """Return what a checkpoint must hold; collectives under way must have been waited for."""
        return SyncState()

    def load_state_dict(self, state: SyncState) -> None:
        """Restore what `state_dict` returned; `own` is empty after a change of the world size."""


class NoSync(Sync):
    """Nothing: there is one replica, or the placement averages the gradients itself."""
