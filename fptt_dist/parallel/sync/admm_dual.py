"""One slow dual per worker: consensus ADMM (FedDyn) over workers, FPTT over time.

The fast pair (u, W̄) restarts at each sync; a slow one corrects for the worker's shard of the data:

    window     v = g + fast regularizer gradient + A (W_r − Z) − μ_r          clipping bounds all of it
    sync after h windows, m = mean(W_r), s² = mean(s_r²):
        A ← ρ s / (η h)                                        η: the learning rate's mean over the interval
        damped     μ_r −= A (W_r − Z);  μ̄ −= A (m − Z);  Z ← (1 − β_Z) Z + β_Z (m − μ̄/A)        β_Z = ½
        admm       μ_r −= A (W_r − m);  Z ← m
        W_r, W̄_r ← Z,  u_r ← 0

Its fixed point has mean(μ) = 0 and Σ ∇f_r(Z) = 0 for any H: no worker's shard biases it (Boyd et al. 2011; Acar et al.,
"Federated Learning Based on Dynamic Regularization", ICLR 2021). A must be the same on all workers.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fptt_dist.parallel.optimizer_view import OptimizerView
from fptt_dist.parallel.sync.rule import SyncRule
from fptt_dist.parallel.sync.sync import SyncState

CENTER_RATE = 0.5  # β_Z
RENEWED_EVERY = 100  # syncs after which μ is sent too, so that rounding does not separate μ̄ from mean(μ)


class LocalDual(SyncRule):
    """A slow dual μ_r per worker, around the shared Z.

    Args:
        dual_update: "damped" or "admm".
        dual_step_size: ρ.
        make_term: builds the optimizer's consensus term from center Z, dual μ and strength A by parameter.
        mean_squared_scale: returns s² of the optimizer, (1,).
    """

    def __init__(
        self,
        dual_update: Literal["damped", "admm"],
        dual_step_size: float,
        *,
        make_term: Callable[[Mapping[Any, Tensor], Mapping[Any, Tensor], Mapping[Any, float]], Any],
        mean_squared_scale: Callable[[Any], Tensor],
    ) -> None:
        self.dual_update = dual_update
        self.dual_step_size = dual_step_size
        self.make_term = make_term
        self.mean_squared_scale = mean_squared_scale

    def attach(self, optimizer: OptimizerView, names: list[str]) -> None:
        """See `SyncRule.attach`."""
        super().attach(optimizer, names)
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._group_of = [index for index, group in enumerate(optimizer.param_groups) for _ in group["params"]]
        self.center = [p.detach().clone() for p in self._params]  # Z
        self.dual = [torch.zeros_like(p) for p in self._params]  # μ_r
        self.mean_dual = [torch.zeros_like(p) for p in self._params]  # μ̄
        self.strength = [0.0] * len(self._params)  # A
        self._lr_sums = [0.0] * len(optimizer.param_groups)  # of the interval so far
        self._num_syncs = 0
        optimizer.consensus_term = self.make_term(
            dict(zip(self._params, self.center, strict=True)),
            dict(zip(self._params, self.dual, strict=True)),
            _Live(self._params, self.strength),
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Set Z ← W, without a consensus term in the first interval."""
        torch._foreach_copy_(self.center, self._params)
        torch._foreach_zero_([*self.dual, *self.mean_dual])
        self.strength[:] = [0.0] * len(self.strength)
        self._start_interval()

    def tensors_to_sync(self) -> list[Tensor]:
        """Return W, and now and then μ."""
        return [*self._params, *(self.dual if self._renews else [])]

    def last_synced(self) -> list[Tensor]:
        """Return Z, and μ̄ where μ is sent."""
        return [*self.center, *(self.mean_dual if self._renews else [])]

    def max_payload(self) -> list[Tensor]:
        """Return W and μ."""
        return [*self._params, *self.dual]

    def extra_scalars(self) -> Tensor:
        """Return s²."""
        return self.mean_squared_scale(self.optimizer)

    def after_window(self) -> None:
        """Add up η over the interval."""
        for index, group in enumerate(self.optimizer.param_groups):
            self._lr_sums[index] += float(group["lr"])

    @torch.no_grad()
    def apply(self, means: list[Tensor], numbers: Tensor) -> None:
        """Apply the equations in the module's docstring, A first."""
        means, renewed = means[: len(self._params)], means[len(self._params) :]
        if renewed:
            torch._foreach_copy_(self.mean_dual, renewed)
        self._renew_strength(numbers)
        for p, mean, center, dual, mean_dual, strength in zip(
            self._params, means, self.center, self.dual, self.mean_dual, self.strength, strict=True
        ):
            if self.dual_update == "admm":
                dual.sub_(p - mean, alpha=strength)
                center.copy_(mean)
            elif strength > 0.0:
                dual.sub_(p - center, alpha=strength)
                mean_dual.sub_(mean - center, alpha=strength)
                center.mul_(1.0 - CENTER_RATE).add_(mean - mean_dual / strength, alpha=CENTER_RATE)
            else:  # nothing has moved by gradients: there is no unit for μ
                center.copy_(mean)
        params, centers, duals = self.optimizer.slow_state()
        torch._foreach_copy_([*params, *centers], [*self.center, *self.center])
        torch._foreach_zero_(duals)
        self._num_syncs += 1
        self._start_interval()

    def consensus_center(self) -> list[Tensor]:
        """Return Z."""
        return self.center

    def state_dict(self) -> SyncState:
        """Return Z, μ̄, A and the interval so far, which are shared, and μ, which is each worker's own."""
        return SyncState(
            shared={
                **self._named("center", self.center),
                **self._named("mean_dual", self.mean_dual),
                "strength": torch.tensor(self.strength, dtype=torch.float64),
                "lr_sums": torch.tensor(self._lr_sums, dtype=torch.float64),
                "counts": torch.tensor([float(self._num_syncs)], dtype=torch.float64),
            },
            own=self._named("dual", self.dual),
        )

    @torch.no_grad()
    def load_state_dict(self, state: SyncState) -> None:
        """See `SyncRule.load_state_dict`; after a change of the world size, and so of the shards, μ starts at 0."""
        for kind, tensors in (("center", self.center), ("mean_dual", self.mean_dual)):
            for name, tensor in zip(self.names, tensors, strict=True):
                tensor.copy_(state.shared[f"{kind}/{name}"])
        self.strength[:] = state.shared["strength"].tolist()
        self._lr_sums = state.shared["lr_sums"].tolist()
        self._num_syncs = int(state.shared["counts"][0])
        if state.own:
            torch._foreach_copy_(self.dual, [state.own[f"dual/{name}"].to(self.dual[0].device) for name in self.names])
        else:
            torch._foreach_zero_([*self.dual, *self.mean_dual])

    @property
    def _renews(self) -> bool:
        return self.dual_update == "damped" and self._num_syncs % RENEWED_EVERY == RENEWED_EVERY - 1

    def _renew_strength(self, numbers: Tensor) -> None:
        """Set A ← ρ s / (η h), the same on all workers; 0 where the learning rate was 0."""
        [scale] = numbers.sqrt().tolist()
        for index, group in enumerate(self._group_of):
            moved = self._lr_sums[group]  # η h
            self.strength[index] = self.dual_step_size * scale / moved if moved > 0.0 else 0.0

    def _start_interval(self) -> None:
        self._lr_sums = [0.0] * len(self._lr_sums)

    def _named(self, kind: str, tensors: list[Tensor]) -> dict[str, Tensor]:
        return {f"{kind}/{name}": tensor for name, tensor in zip(self.names, tensors, strict=True)}


class _Live(Mapping[Tensor, float]):
    """Numbers by parameter, read from a list that changes."""

    def __init__(self, params: list[Tensor], values: list[float]) -> None:
        self._index = {p: i for i, p in enumerate(params)}
        self._values = values

    def __getitem__(self, param: Tensor) -> float:
        return self._values[self._index[param]]

    def __iter__(self) -> Any:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
