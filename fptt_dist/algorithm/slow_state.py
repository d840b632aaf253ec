"""Slow weights W̄ and scaled dual u of each parameter, in the state that FPTT shares with its base optimizer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from fptt_dist.algorithm.preconditioner import host_number

CENTER, SCALED_DUAL = "center", "scaled_dual"
REFERENCE_RATE = "reference_rate"  # preconditioned metric only: r, a number beside W̄ and u
WEIGHTS = "weights"  # between `eval` and `train` only: W, while the parameters hold W̄
OURS = {CENTER, SCALED_DUAL, REFERENCE_RATE, WEIGHTS}
ALPHA_OF_DUAL = "alpha_of_dual"  # of a group, second_gradient only: the α that turned its gradient into u

Active = list[tuple[dict[str, Any], list[Tensor]]]
"""Groups, each with its parameters that have a gradient."""


class SlowState:
    """W̄ and u by parameter. A parameter starts at its first step, with W̄ = the weights before it and u = 0.

    torch.distributed.checkpoint makes an optimizer's state by a step with learning rates and gradients of 0. The state
    that such a step makes is replaced at the first real one: no parameter has started yet.

    Args:
        base: the base optimizer.
        only_made: the parameters whose state was only made, each with the base's own state before (Adagrad has one).

    Attributes:
        only_made: the same.
    """

    def __init__(self, base: Optimizer, only_made: dict[Tensor, dict[str, Any]] | None = None) -> None:
        self.base = base
        self.only_made = only_made or {}

    @property
    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.base.param_groups for p in group["params"]]

    @property
    def started(self) -> list[Tensor]:
        """The parameters that have started."""
        return [p for p in self.params if self.has_started(p)]

    @property
    def any_only_made(self) -> bool:
        """True if a parameter has a state that was only made."""
        return bool(self.only_made)

    def has_started(self, param: Tensor) -> bool:
        """Return whether a parameter has W̄ and u."""
        return CENTER in self.base.state.get(param, {}) and param not in self.only_made

    def of(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return W̄ and u of parameters that have started, the tensors of the state themselves."""
        return [self.base.state[p][CENTER] for p in params], [self.base.state[p][SCALED_DUAL] for p in params]

    def start_all(self) -> None:
        """Let every parameter start now that has not, without a step."""
        for p in self.params:
            if not self.has_started(p):
                self.forget_only_made([p])
                ours = {CENTER: p.detach().clone(), SCALED_DUAL: torch.zeros_like(p)}
                self.base.state[p] = {**self.base.state.get(p, {}), **ours}

    def forget_only_made(self, params: list[Tensor] | None = None) -> None:
        """Drop the states that were only made, of `params`; without `params` take them for real ones."""
        if params is None:
            self.only_made.clear()
        for p in params or ():
            if p in self.only_made:
                self.base.state[p] = self.only_made.pop(p)

    def only_makes_state(self, active: Active) -> bool:
        """Return whether a step would only make state: no learning rate, no gradient, and parameters without state."""
        params = [p for _, of_group in active for p in of_group]
        if all(CENTER in self.base.state.get(p, {}) for p in params):  # first, as the others may wait for a device
            return False
        if any(host_number(group["lr"]) != 0.0 for group, _ in active):
            return False
        return not any(bool(p.grad.any()) for p in params if p.grad is not None)

    @contextmanager
    def base_step(self, params: list[Tensor], *, only_made: bool) -> Iterator[None]:
        """Return the context of the base optimizer's step, after which each of `params` has W̄ and u.

        Args:
            params: those that are stepped.
            only_made: whether the step only makes state.
        """
        entering = {p: p.detach().clone() for p in params if CENTER not in self.base.state.get(p, {})}
        before = {p: copy.deepcopy(self.base.state.get(p, {})) for p in entering} if only_made else {}
        # The base makes its own state only where it finds none.
        ours = {
            p: self.base.state.pop(p) for p in params if self.base.state.get(p) and self.base.state[p].keys() <= OURS
        }
        try:
            yield
        finally:
            for p, slow in ours.items():
                self.base.state[p].update(slow)
        for p, weights in entering.items():
            if only_made:
                _forget_step(self.base, self.base.state[p])
                self.only_made[p] = before[p]
            self.base.state[p][CENTER] = weights
            self.base.state[p][SCALED_DUAL] = torch.zeros_like(weights)

    def follow_alpha(self, group: dict[str, Any]) -> None:
        """Keep λ = α u where α has changed: second_gradient's λ is a gradient, which does not depend on α."""
        before = group.get(ALPHA_OF_DUAL, group["alpha"])
        started = [p for p in group["params"] if self.has_started(p)]
        if before != group["alpha"] and started:
            torch._foreach_mul_(self.of(started)[1], before / group["alpha"])
        group[ALPHA_OF_DUAL] = group["alpha"]


def _forget_step(base: Optimizer, state: dict[str, Any]) -> None:
    """Set a state that was only made back to 0, so that a saved copy of it is the state before any step."""
    if isinstance(base, SGD | Adam | RMSprop):
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
