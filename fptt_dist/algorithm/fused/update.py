"""Fused updates: the tensors that the kernel takes, the check that it was compiled for them, and the coefficients of
the coming updates."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fptt_dist.algorithm.fused.kernel import CONSTANT, MOMENTS, Group, Kernel, Rule, coefficients, rule_of
from fptt_dist.algorithm.preconditioner import reference_rate
from fptt_dist.algorithm.slow_state import CENTER, REFERENCE_RATE, SCALED_DUAL, SlowState
from fptt_dist.algorithm.update import Constants

LOG = logging.getLogger("fptt_dist")
MOST_KERNELS = 4  # compiled in one run; a schedule of betas or momentum would need one per update


class FusedUpdate:
    """Runs the fused update of an optimizer where it can, and says where it cannot.

    An update is fused where every parameter has a gradient and has had the same number of steps before, and the
    reference rates (of the preconditioned metric) of a group are one; the first one never is: the base optimizer makes
    its state there.

    Args:
        slow: W̄ and u, and the base optimizer.
        constants: FPTT's.

    Attributes:
        problem: the reason why no update is fused any more, or None.
        waiting: the reason why the last update was not, though later ones may be, or None.
    """

    def __init__(self, slow: SlowState, constants: Constants) -> None:
        self.problem: str | None = None
        self.waiting: str | None = None
        self._said: set[str] = set()
        self._slow = slow
        self._constants = constants
        self._kernel: Kernel | None = None
        self._compiled_for: Any = None
        self._shapes: Any = None
        self._kernels = 0
        self._rows: list[Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Look at all tensors again before the next update."""
        self._params: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._state: list[Tensor] = []  # W̄, u and the moments, as the kernel takes them
        self._dictionaries: list[Group] = []  # the state of each parameter
        self._places: list[tuple[Group, str]] = []  # where the tensors of `_state` and `_steps` come from

    @torch.no_grad()
    def run(self, *, plain_only: bool = False) -> bool:
        """Update all parameters, or return False with nothing changed: the plain update must do it.

        Args:
            plain_only: whether the update has parts that only the plain one has: a consensus term, a norm over shards.

        Raises:
            RuntimeError: an update that was planned cannot be fused.
        """
        if self._run(plain_only=plain_only):
            return True
        if self._rows is not None:
            raise RuntimeError("an update that was planned cannot be fused: a parameter has no gradient")
        return False

    def _run(self, *, plain_only: bool) -> bool:
        groups = self._slow.base.param_groups
        if self._slow.any_only_made or self.problem is not None:
            return False
        if plain_only:
            return self.give_up("a consensus term (worker duals), or sharded weights")
        if self._slow.base._optimizer_step_pre_hooks or self._slow.base._optimizer_step_post_hooks:
            return self.give_up("the base optimizer has hooks")
        params = self._slow.params
        gradients = [p.grad for p in params if p.grad is not None]
        other = next((t for t in chain(params, gradients) if not _is_plain(t)), None)
        if other is not None and other.layout == torch.strided:
            return self.give_up(f"weights or gradients are no plain tensors but {type(other).__name__}, such as shards")
        dense = [g if g.is_contiguous() else g.contiguous() for g in gradients if _is_plain(g)]
        if len(dense) < len(params):
            return self._wait("a parameter has no gradient, or a sparse one")
        if not self._ready():
            return False
        rows = self._rows
        rates = self._coefficients(1)[0].to(self._params[0].device) if rows is None else rows.pop(0)
        if not self._has_kernel(groups, dense, rates):
            return False
        assert self._kernel is not None
        self._kernel([*self._params, *dense, *self._state], rates)
        self.waiting = None
        if self._rows is None:
            self.count(1)
        return True

    def give_up(self, problem: str) -> bool:
        """Fuse nothing any more, and say why."""
        self.problem = problem
        LOG.warning("the update is not fused: %s", problem)
        return False

    def _wait(self, reason: str) -> bool:
        """Leave updates to the plain path as long as there is a reason, and say so the first time."""
        self.forget()  # the plain update may step some parameters and not others
        self.waiting = reason
        if reason not in self._said:
            self._said.add(reason)
            LOG.warning("the update is not fused as long as %s", reason)
        return False

    @torch.no_grad()
    def plan(self, updates: int) -> Tensor | None:
        """Return the coefficients of the next `updates` updates (updates, groups, coefficients), float64 on the host.

        They follow from the groups, the counts of steps and the reference rates. None where the updates would not be
        fused. For CUDA graphs, with `following` and `count`.
        """
        if self.problem is not None or self._kernel is None or not self._ready():
            return None
        return self._coefficients(updates)

    @contextmanager
    def following(self, rows: list[Tensor]) -> Iterator[None]:
        """Within the context updates take their coefficients (groups, coefficients) from `rows` and count nothing."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @torch.no_grad()
    def count(self, updates: int) -> None:
        """Advance the base optimizer's step counts, and the reference rates, by `updates`, which a graph has done."""
        if self._steps:
            torch._foreach_add_(self._steps, float(updates))
        if self._constants.metric == "preconditioned" and self._params:
            ends = [rates[-1] for rates in self._rates(updates)]
            for row, states in zip(ends, self._by_group(), strict=True):
                for each in states:
                    each[REFERENCE_RATE] = row

    def _coefficients(self, updates: int) -> Tensor:
        groups, done = self._slow.base.param_groups, float(self._steps[0]) if self._steps else 0.0
        rates = self._rates(updates)
        rows = [
            [coefficients(group, done + k + 1, own[k]) for group, own in zip(groups, rates, strict=True)]
            for k in range(updates)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def _rates(self, updates: int) -> list[list[float]]:
        """Return r of each of the next `updates` updates, by group; η where the metric needs none."""
        groups = self._slow.base.param_groups
        if self._constants.metric != "preconditioned":
            return [[float(group["lr"])] * updates for group in groups]
        found = []
        for group, states in zip(groups, self._by_group(), strict=True):
            lr, rates = float(group["lr"]), [states[0].get(REFERENCE_RATE, 0.0) if states else 0.0]
            for _ in range(updates):
                rates.append(float(reference_rate(rates[-1], lr, group["beta"])))
            found.append(rates[1:])
        return found

    def _by_group(self) -> list[list[Group]]:
        """Return the states of the parameters of each group."""
        states = iter(self._dictionaries)
        return [list(islice(states, len(group["params"]))) for group in self._slow.base.param_groups]

    def _ready(self) -> bool:
        """Return whether all tensors are those that were looked at, and each group has one reference rate."""
        if not (self._knows() or self._look()):
            self.forget()
            return False
        if self._constants.metric != "preconditioned":
            return True
        rates = [{each.get(REFERENCE_RATE, 0.0) for each in states} for states in self._by_group()]
        if all(len(own) <= 1 and all(isinstance(rate, float) for rate in own) for own in rates):
            return True
        return self._wait("parameters of one group have different reference rates")

    def _knows(self) -> bool:
        """Return whether all tensors are still those that were looked at."""
        params, state = self._slow.params, self._slow.base.state
        if len(params) == len(self._params) and all(map(is_, params, self._params)):
            found = [place.get(name) for place, name in self._places]
            known = all(map(is_, map(state.get, params), self._dictionaries))
            if known and all(map(is_, found, chain(self._state, self._steps))):
                return all(p.is_contiguous() for p in params)
        return False

    def _look(self) -> bool:
        """Gather the tensors of all parameters, if they can be updated together."""
        self.forget()
        groups, params, state = self._slow.base.param_groups, self._slow.params, self._slow.base.state
        kinds = {rule_of(group).kind for group in groups}
        if len(kinds) != 1 or not all(isinstance(group["lr"], int | float) for group in groups):
            return self.give_up("groups with and without momentum, or a learning rate that is a tensor")
        kind = kinds.pop()
        names = (CENTER, SCALED_DUAL, *MOMENTS[kind])
        counted = ("step",) if kind == "adam" else ()
        if not all(isinstance(state.get(p, {}).get(name), Tensor) for p in params for name in (*names, *counted)):
            return False
        tensors = [state[p][name] for name in names for p in params]
        steps = [state[p][name] for name in counted for p in params]
        alike = all(_is_plain(t) and t.is_contiguous() for t in chain(params, tensors))
        together = len({t.device for t in chain(params, tensors)}) == 1
        wide = all(state[p][name].dtype == p.dtype for name in names for p in params)
        if not (alike and together and wide and all(t.device.type == "cpu" for t in steps)):
            return self.give_up("weights and state are not dense tensors of one type on one device, counts on the host")
        if len(set(map(float, steps))) > 1:
            return self._wait("parameters have had different numbers of steps")
        self._params, self._state, self._steps = params, tensors, steps
        self._dictionaries = [state[p] for p in params]
        self._places = [(state[p], name) for name in (*names, *counted) for p in params]
        shapes = [(p.shape, p.dtype, p.device) for p in params]
        if shapes != self._shapes:
            self._kernel, self._shapes = None, shapes
        return True

    def _has_kernel(self, groups: list[Group], gradients: list[Tensor], rates: Tensor) -> bool:
        """Return whether there is a kernel for these tensors. Where compiling fails, the reason is logged, once."""
        wanted = [[group.get(name) for name in CONSTANT] for group in groups]
        if self._kernel is not None and self._compiled_for == wanted:
            return True
        self._kernels += 1
        if self._kernels > MOST_KERNELS:
            return self.give_up(
                "betas, momentum, weight decay, or FPTT's beta or weights, change from update to update"
            )
        owner = [row for row, group in enumerate(groups) for _ in group["params"]]
        try:
            rules = [rule_of(groups[row]) for row in owner]
            self._kernel = self._compile(rules, owner, gradients, rates)
        except Exception as error:  # of the compiler, of which there are many
            return self.give_up(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}")
        self._compiled_for = wanted
        return True

    def _compile(self, rules: list[Rule], owner: list[int], gradients: list[Tensor], rates: Tensor) -> Kernel:
        names = ("center", "dual", "moment0", "moment1")
        size = len(self._params)
        state = [self._state[start : start + size] for start in range(0, len(self._state), size)]
        lists = {"w": self._params, "g": gradients, **dict(zip(names, state, strict=False))}
        return Kernel(rules, owner, self._constants, lists, rates)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided
