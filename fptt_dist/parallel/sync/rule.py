"""Interface of a sync rule: which tensors a periodic sync averages, and what each worker does with the means."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fptt_dist.parallel.optimizer_view import OptimizerView
from fptt_dist.parallel.sync.sync import SyncState


class SyncRule(ABC):
    """The tensors that a sync averages over the workers, and what each worker does with the means."""

    def attach(self, optimizer: OptimizerView, names: list[str]) -> None:
        """Take the optimizer and the parameters' names, in the order of its groups."""
        self.optimizer = optimizer
        self.names = names

    @property
    def needs_every_gradient(self) -> bool:
        """Requirement that all workers update every parameter, with a zero gradient where one has none."""
        return False

    @abstractmethod
    def reset(self) -> None:
        """Start the first interval: all workers are equal now."""

    @abstractmethod
    def tensors_to_sync(self) -> list[Tensor]:
        """Return the tensors that this worker sends now."""

    @abstractmethod
    def last_synced(self) -> list[Tensor]:
        """Return each tensor's value at the last sync, equal on all workers; only read for compressed payloads."""

    def max_payload(self) -> list[Tensor]:
        """Return the largest set of tensors that one sync sends."""
        return self.tensors_to_sync()

    def drift_slice(self) -> slice:
        """Return which of the tensors to sync measure the drift between the workers."""
        return slice(0, len(self.names))

    def extra_scalars(self) -> Tensor:
        """Return the scalars to be averaged with the tensors (1-dim, float64)."""
        return torch.zeros(0, dtype=torch.float64)

    def after_window(self) -> None:
        """Hook called after each update of an interval."""

    @abstractmethod
    def apply(self, means: list[Tensor], numbers: Tensor) -> None:
        """Apply the means of what `tensors_to_sync` and `extra_scalars` returned on all workers just now."""

    def apply_delayed(self, means: list[Tensor], snapshot: list[Tensor]) -> None:
        """Apply the means of tensors that were sent, as `snapshot`, some windows ago: x += mean − snapshot."""
        raise NotImplementedError

    def consensus_center(self) -> list[Tensor] | None:
        """Return the synchronized W̄ where every worker holds it; None where it is the mean of theirs."""
        return None

    @abstractmethod
    def state_dict(self) -> SyncState:
        """Return what a checkpoint must hold."""

    @abstractmethod
    def load_state_dict(self, state: SyncState) -> None:
        """Restore what `state_dict` returned; `own` is empty after a change of the world size."""
