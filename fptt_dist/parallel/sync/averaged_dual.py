"""The averaged dual: W̄ and λ are all-reduced.

    averaged dual   W̄ ← mean(W̄_r),  u ← mean(u_r),  W_r ← mean(W_r) | W̄

It is local SGD with FPTT's regularizer. At H = 1 with the mean of W, only W is communicated: before the window, W̄ and
u were equal on all workers, so

    mean(u) = u_r + (W_r − m),   mean(W̄) = W̄_r − 2β (W_r − m),   W_r ← m = mean(W_r)
"""

from typing import Literal

import torch
from torch import Tensor

from fptt_dist.parallel.sync.rule import SyncRule
from fptt_dist.parallel.sync.sync import SyncState


class AveragedDual(SyncRule):
    """W̄ and λ all-reduced.

    Args:
        weight_sync: what W becomes: the average, or the synchronized center.
        slow: whether there are W̄ and u to synchronize; False for the baselines, of which only W is communicated.
        each_window: whether the workers synchronize after every window (H = 1).
        compressed: whether to keep the values at the last sync, to which bf16 differences refer.
    """

    def __init__(
        self, weight_sync: Literal["average", "center"], *, slow: bool, each_window: bool, compressed: bool
    ) -> None:
        self.weight_sync = weight_sync
        self.slow = slow
        self.each_window = each_window
        self.compressed = compressed
        self._references: list[Tensor] = []

    @property
    def _weights_alone(self) -> bool:
        if not self.slow:
            return True
        recursive = self.optimizer.constants.update_rule != "second_gradient"
        return self.each_window and self.weight_sync == "average" and recursive

    @property
    def needs_every_gradient(self) -> bool:
        """Requirement of sending W only: the means of W̄ and u follow from that of W if all workers updated them."""
        return self._weights_alone and self.slow

    def reset(self) -> None:
        """See `SyncRule.reset`."""
        if self.compressed:
            self._references = [v.detach().clone() for v in self.tensors_to_sync()]

    def tensors_to_sync(self) -> list[Tensor]:
        """Return W, or W̄ and u, or all three."""
        params, centers, duals = self.optimizer.slow_state()
        if self._weights_alone:
            return list(params)
        return [*centers, *duals, *(params if self.weight_sync == "average" else [])]

    def drift_slice(self) -> slice:
        """Return the slice of W where it is communicated, else that of W̄."""
        behind = 2 * len(self.names) if self.weight_sync == "average" and not self._weights_alone else 0
        return slice(behind, behind + len(self.names))

    def last_synced(self) -> list[Tensor]:
        """Return the last means."""
        return self._references

    @torch.no_grad()
    def apply(self, means: list[Tensor], numbers: Tensor) -> None:
        """Copy the means, so that equal workers stay as they are."""
        params, centers, duals = self.optimizer.slow_state()
        if self._weights_alone:
            if self.slow:
                apart = torch._foreach_sub(params, means)
                torch._foreach_add_(duals, apart)
                start = 0
                for group in self.optimizer.param_groups:
                    own = slice(start, start := start + len(group["params"]))
                    torch._foreach_add_(centers[own], apart[own], alpha=-2.0 * group["beta"])
            torch._foreach_copy_(params, means)
        else:
            torch._foreach_copy_([*centers, *duals], means[: 2 * len(params)])
            torch._foreach_copy_(params, centers if self.weight_sync == "center" else means[2 * len(params) :])
        self._remember(means)

    @torch.no_grad()
    def apply_delayed(self, means: list[Tensor], snapshot: list[Tensor]) -> None:
        """See `SyncRule.apply_delayed`; `snapshot` has W after the tensors to sync where W is to become W̄."""
        torch._foreach_add_(self.tensors_to_sync(), torch._foreach_sub(means, snapshot[: len(means)]))
        if self.weight_sync == "center" and not self._weights_alone:
            params, centers, _ = self.optimizer.slow_state()
            torch._foreach_add_(params, torch._foreach_sub(means[: len(centers)], snapshot[len(means) :]))
        self._remember(means)

    def snapshot(self) -> list[Tensor]:
        """Return a copy of what `apply_delayed` needs of the present state."""
        more = self.optimizer.slow_state()[0] if self.weight_sync == "center" else []
        return [v.detach().clone() for v in (*self.tensors_to_sync(), *more)]

    def state_dict(self) -> SyncState:
        """Return the values at the last sync, which a compressed payload refers to."""
        return SyncState(shared={f"reference/{i}": t for i, t in enumerate(self._references)})

    @torch.no_grad()
    def load_state_dict(self, state: SyncState) -> None:
        """See `SyncRule.load_state_dict`; without values of a last sync, all workers are equal now."""
        if "reference/0" not in state.shared:
            self.reset()
            return
        for i, reference in enumerate(self._references):
            reference.copy_(state.shared[f"reference/{i}"])

    def _remember(self, means: list[Tensor]) -> None:
        if self.compressed:
            torch._foreach_copy_(self._references, means)
