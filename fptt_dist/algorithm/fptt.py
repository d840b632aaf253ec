"""FPTT as a drop-in optimizer (Kag & Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through
Time", ICML 2021).

One update, with the slow weights W̄ (`center`) and the scaled dual u = λ/α (`scaled_dual`):

    v  = g + α [c (W − W̄) − κ u]              the window's gradient + the regularizer's
    W' = base optimizer (W, clip(v))
    u' = u − (W' − W̄)                          λ' = λ − α (W' − W̄)
    W̄' = (1 − β) W̄ + β (W' − u')               ½ (W̄ + W') − λ'/(2α) at β = ½

| symbol | argument     | meaning                                                        |
|--------|--------------|----------------------------------------------------------------|
| α      | alpha        | strength of the regularizer                                    |
| β      | beta         | weight of the new value in W̄ at each update                    |
| κ      | dual_weight  | factor on the dual: 1 in Eq. 6, ½ in Eq. 4 as printed          |
| c      | prox_weight  | factor on the quadratic term                                   |

They are in the param groups, like the learning rate: each group may have its own, and they may change at any update.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from fptt_dist.algorithm.checks import check_base, check_group, check_options, check_values
from fptt_dist.algorithm.consensus_term import ConsensusTerm
from fptt_dist.algorithm.fused.kernel import refusal
from fptt_dist.algorithm.fused.update import FusedUpdate
from fptt_dist.algorithm.over import over
from fptt_dist.algorithm.plain_update import plain_update
from fptt_dist.algorithm.preconditioner import host_number
from fptt_dist.algorithm.slow_state import ALPHA_OF_DUAL, CENTER, OURS, SCALED_DUAL, WEIGHTS, SlowState
from fptt_dist.algorithm.slow_weights import SlowWeights
from fptt_dist.algorithm.stability import StabilityCheck
from fptt_dist.algorithm.update import GROUPED, Constants

# Of the base's hooks those of its state dict, since FPTT's is the one that is saved and loaded. Each keeps its step's.
SHARED_HOOKS = [
    f"_optimizer_{call}_{when}_hooks" for call in ("state_dict", "load_state_dict") for when in ("pre", "post")
]


class FPTT(SlowWeights):
    """Forward propagation through time around any base optimizer.

    Call `backward()` on each window's loss and then `step()`, K times along a sequence. The base optimizer's groups and
    state are this optimizer's too: learning-rate schedulers, GradScaler and `state_dict()` work as on any optimizer.

    Args:
        base: the optimizer that moves the weights (SGD, Adam, AdamW, RMSprop, …).
        alpha: α ≥ 0, in 1/learning-rate units (a fraction of one step with the preconditioned metric). 0 is the base
            optimizer bit for bit. A group of `base` may bring its own "alpha", "beta", "dual_weight" and
            "prox_weight". (RMSprop's and ASGD's "alpha" stays theirs and appears here as "base_alpha"; the same holds
            for any of these names that a base has a default for.)
        beta: β in (0, 1].
        dual_weight: κ ≥ 0.
        prox_weight: c ≥ 0.
        update_rule: "gradient" adds the regularizer's gradient to the loss's; "proximal" solves the regularizer exactly
            after the base step (stable for any α with c = κ = 1); "second_gradient" takes the dual from a second
            gradient at the new weights (the paper's Algorithm 2 to the letter; `step` then needs a closure).
        metric: "euclidean", or "preconditioned": the regularizer's gradient is multiplied by (√v̂ + ε)/η of an Adam-type
            base; see preconditioner.py.
        max_norm: bound of the gradient's global 2-norm over all groups; None: no clipping.
        clip_scope: "total" bounds the gradient of loss + regularizer, "gradient" that of the loss alone.
        fused: the whole update in two passes over memory, compiled at the second step (seconds; it needs a C++
            compiler, or Triton on a GPU; without one the plain path runs and a warning says so). SGD, Adam and AdamW
            with update_rule="gradient"; equal to the plain path to rounding.

    Attributes:
        constants: the arguments from `update_rule` to `clip_scope`.
        fused_update: what runs the fused update; None without `fused`. Its `problem` says why no update is fused any
            more, its `waiting` why the last one was not.
        norm_reduce: maps this worker's sum of squares (0-dim float64) to the global one; for sharded parameters.
        consensus_term: a second regularizer (consensus between workers); the metric does not multiply its gradient.

    Raises:
        ValueError: a hyper-parameter out of range (named), a metric that the base cannot serve, a half-precision
            parameter, a maximizing or differentiable group; a base that wraps another optimizer, whose step() needs an
            argument (LBFGS), or that takes sparse gradients alone (SparseAdam).

    Examples:
        >>> import torch
        >>> model = torch.nn.LSTM(2, 8)
        >>> optimizer = FPTT(torch.optim.Adam(model.parameters(), lr=1e-3), alpha=0.5)
        >>> x, state = torch.randn(6, 4, 2), None
        >>> for part in (slice(0, 3), slice(3, 6)):
        ...     y, state = model(x[part], state)
        ...     y.square().mean().backward()
        ...     optimizer.step(); optimizer.zero_grad()
        ...     state = tuple(s.detach() for s in state)
        >>> with optimizer.at_center():
        ...     y, _ = model(x)
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        alpha: float,
        beta: float = 0.5,
        dual_weight: float = 1.0,
        prox_weight: float = 1.0,
        update_rule: Literal["gradient", "proximal", "second_gradient"] = "gradient",
        metric: Literal["euclidean", "preconditioned"] = "euclidean",
        max_norm: float | None = None,
        clip_scope: Literal["total", "gradient"] = "total",
        fused: bool = False,
    ) -> None:
        if isinstance(base, FPTT):
            raise ValueError("base is an FPTT already: use it as it is, or wrap the optimizer within it, base.base")
        check_base(base)
        values = {"alpha": alpha, "beta": beta, "dual_weight": dual_weight, "prox_weight": prox_weight}
        self.constants = Constants(
            update_rule=update_rule,
            metric=metric,
            max_norm=max_norm,
            clip_scope=clip_scope,
        )
        check_options(base, values, self.constants)
        problem = refusal(base, update_rule) if fused else None
        if problem is not None:
            raise ValueError(f"fused=True: {problem}")

        self.base = base
        self.norm_reduce: Callable[[Tensor], Tensor] | None = None
        self.consensus_term: ConsensusTerm | None = None
        self._slow = SlowState(base)
        self.fused_update = FusedUpdate(self._slow, self.constants) if fused else None
        self._stability = StabilityCheck(self.constants)

        defaults = dict(base.defaults)
        for name in defaults.keys() & values.keys():
            defaults[f"base_{name}"] = defaults[name]
            for group in base.param_groups:
                group[f"base_{name}"] = group.pop(name)
        super().__init__(base.param_groups, {**defaults, **values})
        self.state = base.state
        self._share()
        for name in SHARED_HOOKS:
            setattr(self, name, getattr(base, name))

    @classmethod
    def over(cls, base: type[Optimizer], **options: Any) -> type[Any]:
        """Return a class that is constructed as `base` is, for programs that construct the optimizer themselves.

        It is a subclass of FPTT named after both, `FPTTAdam` for Adam. It can be pickled, and so can its instances.

        Args:
            base: the class of the base optimizer.
            options: FPTT's own arguments, from `alpha` to `fused`.

        Raises:
            TypeError: `base` is no class of optimizers, or an option is missing or unknown.

        Examples:
            >>> import torch
            >>> FPTTAdam = FPTT.over(torch.optim.Adam, alpha=0.5)
            >>> optimizer = FPTTAdam([torch.zeros(3, requires_grad=True)], lr=1e-3)
        """
        return over(cls, base, options)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update W, u and W̄ from the gradients in `.grad`, which afterwards include the regularizer's gradient (with
        `fused` they stay the loss's, unclipped).

        Parameters without a gradient are left untouched, their state too.

        Args:
            closure: computes the gradients and returns the loss; called once, before the update. With
                update_rule="second_gradient" it is called again after it, and must then recompute the same window from
                the same incoming state, without advancing that state; gradients are cleared in between.

        Returns:
            The value of the closure's first call; None without a closure.

        Raises:
            RuntimeError: within `at_center`, or after `eval`; a sparse gradient; no closure with
                update_rule="second_gradient".
            ValueError: a half-precision parameter.
        """
        self._require_own_weights("step")
        slow, loss = self.slow, None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif self.constants.update_rule == "second_gradient" and any(
            host_number(group["lr"]) != 0.0 for group in self.param_groups
        ):
            raise RuntimeError(
                'update_rule="second_gradient" takes a second gradient at the new weights: call step(closure), with a '
                "closure that clears the gradients, runs the window from its incoming state, calls backward() and "
                "returns the loss"
            )
        self._stability.check(self.base)
        plain_only = self.consensus_term is not None or self.norm_reduce is not None
        if self.fused_update is None or not self.fused_update.run(plain_only=plain_only):
            plain_update(slow, self.constants, self.consensus_term, self.norm_reduce, closure)
        return loss

    @property
    def slow(self) -> SlowState:
        """W̄ and u by parameter."""
        self._share()
        return self._slow

    @torch.no_grad()
    def slow_state(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """All parameters, their W̄ and their u, the tensors of the state themselves, in the order of the groups.

        A parameter without a step so far gets its W̄ = W and u = 0 here.
        """
        slow = self.slow
        slow.start_all()
        return slow.params, *slow.of(slow.params)

    def center(self, param: Tensor) -> Tensor:
        """W̄ of one parameter, a view of the state; before the parameter's first step, W itself (detached)."""
        slow = self.slow
        return slow.of([param])[0][0] if slow.has_started(param) else param.detach()

    @torch.no_grad()
    def dual(self, param: Tensor) -> Tensor:
        """λ = α u of one parameter, a new tensor; 0 before the parameter's first step."""
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                if not self.slow.has_started(param):
                    return torch.zeros_like(param)
                return self.slow.of([param])[1][0] * group.get(ALPHA_OF_DUAL, group["alpha"])
        raise ValueError("dual(param): param is in none of this optimizer's groups")

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its "alpha", "beta", … are FPTT's (of a base with an "alpha" of its own that is "base_alpha").

        Raises:
            ValueError: a half-precision or complex parameter, `maximize=True` or `differentiable=True`.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            check_values(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; W̄ and u keep their own precision and are copied, whatever the parameters' type is now.

        The state of the base optimizer alone is taken too: W̄ then starts at the weights of the next step. A state saved
        after `eval` has W in it, which the next `train()` brings back.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_no_context("load_state_dict")
        final: dict[str, Any] = {}

        def complete(optimizer: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            groups = given["param_groups"]
            if len(groups) == len(self.param_groups):  # else torch says so
                groups = list(map(_with_own, groups, self.param_groups))
            final.update(given, param_groups=groups)
            return final

        before = {p: self.state[p] for p in self.slow.params if WEIGHTS in self.state.get(p, {})}
        handle = self.register_load_state_dict_pre_hook(complete)  # the last one: it sees what other hooks made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        if type(self.base).load_state_dict is not Optimizer.load_state_dict:
            self._load_as_base(final)
        self.slow.forget_only_made()
        self._leave_eval(before)
        saved = [index for group in final["param_groups"] for index in group["params"]]
        for index, p in zip(saved, [p for group in self.param_groups for p in group["params"]], strict=True):
            for name in (CENTER, SCALED_DUAL):
                value = final["state"].get(index, {}).get(name)
                if value is not None:
                    wide = torch.promote_types(value.dtype, torch.float32)
                    self.state[p][name] = value.detach().to(device=p.device, dtype=wide, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        # A copy made within `at_center` has W̄ for its own weights: there is nothing that would come back.
        left_out = ("_optimizer_", "_zero_grad_profile_name", "norm_reduce", "consensus_term", "_shows_others")
        # The base is rebuilt around the common state: copied with it, it would take W̄ and u for a state of its own.
        left_out += ("base", "_slow", "fused_update")
        kept = {
            name: value for name, value in self.__dict__.items() if not name.startswith(left_out) and name != "step"
        }
        own = {n: v for n, v in self.base.__getstate__().items() if n not in ("state", "param_groups")}
        parts = (type(self.base), own, self._slow.only_made, self.fused_update is not None)
        return {**kept, "parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        parts = state.pop("parts", None)  # none where torch loads a state dict
        super().__setstate__(state)
        # The base repairs what older versions saved; it must do so on the dictionaries that both share, and takes every
        # state that is not empty for its own.
        ours = {p: self.state.pop(p) for p, each in list(self.state.items()) if each and each.keys() <= OURS}
        own: dict[str, Any] = {}
        if parts is not None:
            kind, own, only_made, fused = parts
            self.norm_reduce, self.consensus_term, self._shows_others = None, None, False
            self.base = kind.__new__(kind)
            self._slow = SlowState(self.base, only_made)
            self.fused_update = FusedUpdate(self._slow, self.constants) if fused else None
        self.base.__setstate__({**own, "state": self.state, "param_groups": self.param_groups})
        self.state.update(ours)
        self._share_hooks()

    def _share(self) -> None:
        """One state and one list of groups for both objects, also after an engine replaced this one's."""
        self.base.state = self.state
        self.base.param_groups = self.param_groups

    def _share_hooks(self) -> None:
        for name in SHARED_HOOKS:
            setattr(self.base, name, getattr(self, name))

    def _load_as_base(self, loaded: dict[str, Any]) -> None:
        """Let a base load that has a `load_state_dict` of its own; the hooks, shared with it, were called already."""
        state = {i: each for i, each in loaded["state"].items() if not each.keys() <= OURS}
        for name in SHARED_HOOKS:
            setattr(self.base, name, OrderedDict())
        try:
            self.base.load_state_dict({**loaded, "state": state})
        finally:
            self._share_hooks()
        self.state, self.param_groups = self.base.state, self.base.param_groups


def _with_own(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A loaded group with FPTT's hyper-parameters, also where it was saved from the base optimizer alone."""
    for name in GROUPED:
        if f"base_{name}" in now and f"base_{name}" not in saved:
            saved = {**saved, f"base_{name}": saved[name], name: now[name]}
    return {**{name: now[name] for name in GROUPED}, **saved}
