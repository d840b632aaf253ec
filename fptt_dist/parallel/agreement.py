"""What workers agree on: the interface, and the shared dual.

    dual shared     W̄ ← mean(W̄_r),  u ← mean(u_r),  W_r ← mean(W_r) | W̄ | W_r

It is local SGD with FPTT's pull. At H = 1 with the mean of W only W travels: before the window W̄ and u were equal, and

    mean(u) = u_r + (W_r − m),   mean(W̄) = W̄_r − 2β (W_r − m),   W_r ← m = mean(W_r)
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from fptt_dist.parallel.strategy import OptimizerView, StrategyState


class Agreement(ABC):
    """What travels when the workers agree, and what each does with the means."""

    def attach(self, optimizer: OptimizerView, names: list[str]) -> None:
        """Take the optimizer and the parameters' names, in the order of its groups."""
        self.optimizer = optimizer
        self.names = names

    @property
    def needs_every_gradient(self) -> bool:
        """Whether all workers must update every parameter, with a zero gradient where one has none."""
        return False

    @abstractmethod
    def begin(self) -> None:
        """All workers are equal now: the first interval starts."""

    @abstractmethod
    def vectors(self) -> list[Tensor]:
        """What this worker sends now."""

    @abstractmethod
    def references(self) -> list[Tensor]:
        """The last agreed point of each vector, equal on all workers; only read for compressed payloads."""

    def largest(self) -> list[Tensor]:
        """The most vectors that ever travel at once."""
        return self.vectors()

    def watched(self) -> slice:
        """Which of the vectors tell how far the workers are apart."""
        return slice(0, len(self.names))

    def numbers(self) -> Tensor:
        """What rides along, to be averaged (1-dim, float64)."""
        return torch.zeros(0, dtype=torch.float64)

    def after_window(self) -> None:
        """Called after each update of an interval."""

    @abstractmethod
    def arrive(self, means: list[Tensor], numbers: Tensor) -> None:
        """Take over the means of what `vectors` and `numbers` gave on all workers just now."""

    def arrive_late(self, means: list[Tensor], snapshot: list[Tensor]) -> None:
        """Take over the means of what `vectors` gave some windows ago, when it was `snapshot`: x += mean − snapshot."""
        raise NotImplementedError

    def agreed_center(self) -> list[Tensor] | None:
        """The agreed W̄ where every worker holds it; None where it is the mean of theirs."""
        return None

    @abstractmethod
    def state_dict(self) -> StrategyState:
        """What a checkpoint must hold."""

    @abstractmethod
    def load_state_dict(self, state: StrategyState) -> None:
        """Bring back what `state_dict` gave; `own` is empty after a change of the world's size."""


class SharedDual(Agreement):
    """W̄ and λ all-reduced.

    Args:
        weights: what W becomes: the mean, the agreed center, or what it was ("kept", a diagnostic).
        slow: whether there are W̄ and u to agree on; False for the baselines, of which only W travels.
        each_window: whether the workers agree after every window (H = 1).
        compressed: whether to keep the agreed points that bf16 differences refer to.
    """

    def __init__(
        self, weights: Literal["mean", "center", "kept"], *, slow: bool, each_window: bool, compressed: bool
    ) -> None:
        self.weights = weights
        self.slow = slow
        self.each_window = each_window
        self.compressed = compressed
        self._references: list[Tensor] = []

    @property
    def _weights_alone(self) -> bool:
        derived = self.each_window and self.weights == "mean" and self.optimizer.update != "algorithm2"
        return derived or not self.slow

    @property
    def needs_every_gradient(self) -> bool:
        """The means of W̄ and u follow from that of W only if all workers have renewed them."""
        return self._weights_alone and self.slow

    def begin(self) -> None:
        """See `Agreement.begin`."""
        if self.compressed:
            self._references = [v.detach().clone() for v in self.vectors()]

    def vectors(self) -> list[Tensor]:
        """W, or W̄ and u, or all three."""
        params, centers, duals = self.optimizer.slow()
        if self._weights_alone:
            return [] if self.weights == "kept" else list(params)
        return [*centers, *duals, *(params if self.weights == "mean" else [])]

    def watched(self) -> slice:
        """W, where it travels."""
        behind = 2 * len(self.names) if self.weights == "mean" and not self._weights_alone else 0
        return slice(behind, behind + len(self.names))

    def references(self) -> list[Tensor]:
        """The last means."""
        return self._references

    @torch.no_grad()
    def arrive(self, means: list[Tensor], numbers: Tensor) -> None:
        """Copy the means, so that equal workers stay as they are."""
        if not means:
            return
        params, centers, duals = self.optimizer.slow()
        if self._weights_alone:
            if self.slow:
                apart = torch._foreach_sub(params, means)
                torch._foreach_add_(duals, apart)
                torch._foreach_add_(centers, apart, alpha=-2.0 * self.optimizer.beta)
            torch._foreach_copy_(params, means)
        else:
            torch._foreach_copy_([*centers, *duals], means[: 2 * len(params)])
            if self.weights != "kept":
                torch._foreach_copy_(params, centers if self.weights == "center" else means[2 * len(params) :])
        self._remember(means)

    @torch.no_grad()
    def arrive_late(self, means: list[Tensor], snapshot: list[Tensor]) -> None:
        """See `Agreement.arrive_late`; `snapshot` has W behind the vectors where W is to become W̄."""
        if not means:
            return
        torch._foreach_add_(self.vectors(), torch._foreach_sub(means, snapshot[: len(means)]))
        if self.weights == "center" and not self._weights_alone:
            params, centers, _ = self.optimizer.slow()
            torch._foreach_add_(params, torch._foreach_sub(means[: len(centers)], snapshot[len(means) :]))
        self._remember(means)

    def snapshot(self) -> list[Tensor]:
        """What `arrive_late` needs of this moment."""
        more = self.optimizer.slow()[0] if self.weights == "center" else []
        return [v.detach().clone() for v in (*self.vectors(), *more)]

    def state_dict(self) -> StrategyState:
        """The agreed points of a compressed payload."""
        return StrategyState(shared={f"reference/{i}": t for i, t in enumerate(self._references)})

    @torch.no_grad()
    def load_state_dict(self, state: StrategyState) -> None:
        """See `Agreement.load_state_dict`; without the agreed points, all are equal now."""
        if "reference/0" not in state.shared:
            self.begin()
            return
        for i, reference in enumerate(self._references):
            reference.copy_(state.shared[f"reference/{i}"])

    def _remember(self, means: list[Tensor]) -> None:
        if self.compressed:
            torch._foreach_copy_(self._references, means)
