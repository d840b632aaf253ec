"""When an update is fused: the tensors that the kernel takes, whether they are still what it was compiled for, and the
coefficients of the updates to come."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fptt_dist.algorithm.kernel import CONSTANT, MOMENTS, Constants, Group, Kernel, Rule, coefficients, rule_of
from fptt_dist.algorithm.metric import reference_rate

LOG = logging.getLogger("fptt_dist")
MOST_KERNELS = 4  # compiled in one run; a schedule of betas or momentum would want one an update


class FusedUpdate:
    """Runs the fused update of an optimizer where it can, and says where it cannot.

    An update is fused where every parameter has a gradient and has had the same number of steps before, and the
    reference rates (of the preconditioned metric) of a group are one; the first one never is: the base optimizer makes
    its state there.

    Args:
        center: name of W̄ in a parameter's state.
        dual: name of u.
        reference: name of r.

    Attributes:
        problem: why no update is fused any more, or None.
    """

    def __init__(self, center: str, dual: str, reference: str) -> None:
        self.problem: str | None = None
        self._slow = (center, dual)
        self._reference = reference
        self._kernel: Kernel | None = None
        self._compiled_for: Any = None
        self._shapes: Any = None
        self._kernels = 0
        self._rows: list[Tensor] | None = None
        self.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return FusedUpdate, (*self._slow, self._reference)  # a copy compiles its own

    def forget(self) -> None:
        """Look at all tensors again before the next update."""
        self._params: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._state: list[Tensor] = []  # W̄, u and the moments, as the kernel takes them
        self._dictionaries: list[Group] = []  # the state of each parameter
        self._places: list[tuple[Group, str]] = []  # where the tensors of `_state` and `_steps` come from

    @torch.no_grad()
    def run(self, groups: list[Group], state: dict[Tensor, Group], constants: Constants) -> bool:
        """One update of all parameters, or False with nothing changed: the plain path must do it."""
        if self.problem is not None:
            return False
        gradients = [p.grad for group in groups for p in group["params"]]
        dense = [g if g.is_contiguous() else g.contiguous() for g in gradients if g is not None and _is_plain(g)]
        if len(dense) < len(gradients) or not self._ready(groups, state, constants):
            self.forget()  # the plain path may step some parameters and not others
            return False
        rows = self._rows
        rates = self._coefficients(groups, constants, 1)[0].to(self._params[0].device) if rows is None else rows.pop(0)
        if not self._has_kernel(groups, constants, dense, rates):
            return False
        assert self._kernel is not None
        self._kernel([*self._params, *dense, *self._state], rates)
        if self._rows is None:
            self.count(groups, constants, 1)
        return True

    def give_up(self, problem: str) -> bool:
        """Fuse nothing any more, and say why."""
        self.problem = problem
        LOG.warning("the update is not fused: %s", problem)
        return False

    def plan(
        self, groups: list[Group], state: dict[Tensor, Group], constants: Constants, updates: int
    ) -> Tensor | None:
        """The coefficients of the next `updates` updates (updates, groups, coefficients), float64 on the host.

        None where they would not be fused.
        """
        if self.problem is not None or self._kernel is None or not self._ready(groups, state, constants):
            return None
        return self._coefficients(groups, constants, updates)

    @contextmanager
    def following(self, rows: list[Tensor]) -> Iterator[None]:
        """Within the context updates take their coefficients (groups, coefficients) from `rows` and count nothing."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @property
    def follows(self) -> bool:
        """Whether updates take their coefficients from a plan."""
        return self._rows is not None

    def count(self, groups: list[Group], constants: Constants, updates: int) -> None:
        """Let the base optimizer's counts of steps, and the reference rates, go on by `updates`."""
        if self._steps:
            torch._foreach_add_(self._steps, float(updates))
        if constants.preconditioned and self._params:
            ends = [rates[-1] for rates in self._rates(groups, constants, updates)]
            for row, states in zip(ends, self._by_group(groups), strict=True):
                for each in states:
                    each[self._reference] = row

    def _coefficients(self, groups: list[Group], constants: Constants, updates: int) -> Tensor:
        done = float(self._steps[0]) if self._steps else 0.0
        rates = self._rates(groups, constants, updates)
        rows = [
            [coefficients(group, done + k + 1, own[k]) for group, own in zip(groups, rates, strict=True)]
            for k in range(updates)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def _rates(self, groups: list[Group], constants: Constants, updates: int) -> list[list[float]]:
        """r of each of the next `updates` updates, by group; η where the metric needs none."""
        if not constants.preconditioned:
            return [[float(group["lr"])] * updates for group in groups]
        found = []
        for group, states in zip(groups, self._by_group(groups), strict=True):
            lr, rates = float(group["lr"]), [states[0].get(self._reference, 0.0) if states else 0.0]
            for _ in range(updates):
                rates.append(float(reference_rate(rates[-1], lr, constants.beta)))
            found.append(rates[1:])
        return found

    def _by_group(self, groups: list[Group]) -> list[list[Group]]:
        """The states of the parameters of each group."""
        states = iter(self._dictionaries)
        return [list(islice(states, len(group["params"]))) for group in groups]

    def _ready(self, groups: list[Group], state: dict[Tensor, Group], constants: Constants) -> bool:
        """Return whether all tensors are those that were looked at, and each group has one reference rate."""
        if not (self._knows(groups, state) or self._look(groups, state)):
            return False
        if not constants.preconditioned:
            return True
        rates = [{each.get(self._reference, 0.0) for each in states} for states in self._by_group(groups)]
        return all(len(own) <= 1 and all(isinstance(rate, float) for rate in own) for own in rates)

    def _knows(self, groups: list[Group], state: dict[Tensor, Group]) -> bool:
        """Return whether all tensors are still those that were looked at."""
        params = [p for group in groups for p in group["params"]]
        if len(params) == len(self._params) and all(map(is_, params, self._params)):
            found = [place.get(name) for place, name in self._places]
            known = all(map(is_, map(state.get, params), self._dictionaries))
            if known and all(map(is_, found, chain(self._state, self._steps))):
                return all(p.is_contiguous() for p in params)
        return False

    def _look(self, groups: list[Group], state: dict[Tensor, Group]) -> bool:
        """Gather the tensors of all parameters, if they can be updated together."""
        self.forget()
        params = [p for group in groups for p in group["params"]]
        kinds = {rule_of(group).kind for group in groups}
        if len(kinds) != 1 or not all(isinstance(group["lr"], int | float) for group in groups):
            return self.give_up("groups with and without momentum, or a learning rate that is a tensor")
        kind = kinds.pop()
        names = (*self._slow, *MOMENTS[kind])
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
            return False
        self._params, self._state, self._steps = params, tensors, steps
        self._dictionaries = [state[p] for p in params]
        self._places = [(state[p], name) for name in (*names, *counted) for p in params]
        shapes = [(p.shape, p.dtype, p.device) for p in params]
        if shapes != self._shapes:
            self._kernel, self._shapes = None, shapes
        return True

    def _has_kernel(self, groups: list[Group], constants: Constants, gradients: list[Tensor], rates: Tensor) -> bool:
        """Whether there is a kernel for the tensors at hand. Where compiling fails the reason is logged, once."""
        wanted = (constants, [[group.get(name) for name in CONSTANT] for group in groups])
        if self._kernel is not None and self._compiled_for == wanted:
            return True
        self._kernels += 1
        if self._kernels > MOST_KERNELS:
            return self.give_up("betas, momentum or FPTT's own constants change from update to update")
        owner = [row for row, group in enumerate(groups) for _ in group["params"]]
        try:
            rules = [rule_of(groups[row]) for row in owner]
            self._kernel = self._compile(rules, owner, constants, gradients, rates)
        except Exception as error:  # of the compiler, of which there are many
            return self.give_up(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}")
        self._compiled_for = wanted
        return True

    def _compile(
        self, rules: list[Rule], owner: list[int], constants: Constants, gradients: list[Tensor], rates: Tensor
    ) -> Kernel:
        names = ("center", "dual", "moment0", "moment1")
        size = len(self._params)
        state = [self._state[start : start + size] for start in range(0, len(self._state), size)]
        lists = {"w": self._params, "g": gradients, **dict(zip(names, state, strict=False))}
        return Kernel(rules, owner, constants, lists, rates)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided
