"""FPTT as a drop-in optimizer (Kag & Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through
Time", ICML 2021).

One update, W̄ the slow variable (`center`), u = λ/α the scaled dual (`scaled_dual`):

    v  = g + α [c (W − W̄) − κ u]              the window's gradient and the force
    W' = base optimizer (W, clip(v))
    u' = u − (W' − W̄)                          λ' = λ − α (W' − W̄)
    W̄' = (1 − β) W̄ + β (W' − u')               ½ (W̄ + W') − λ'/(2α) at β = ½

| symbol | argument     | meaning                                                        |
|--------|--------------|----------------------------------------------------------------|
| α      | alpha        | strength of the pull; in the param groups, so a schedule moves it |
| β      | beta         | how much of W̄ is renewed at each update                        |
| κ      | dual_weight  | factor on the dual: 1 in Eq. 6, ½ in Eq. 4 as printed          |
| c      | prox_weight  | factor on the quadratic term                                   |
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from fptt_dist.algorithm import update as updates
from fptt_dist.algorithm.anchor import Anchor
from fptt_dist.algorithm.metric import has_second_moments, host_number, preconditioner
from fptt_dist.algorithm.stability import explicit_limit, pull_dynamics

CENTER = "center"
SCALED_DUAL = "scaled_dual"
ALPHA_OF_DUAL = "alpha_of_dual"  # algorithm2 only: the α that turned its gradient into u
WIDE = (torch.float32, torch.float64)


class FPTT(Optimizer):
    """Forward propagation through time around any base optimizer.

    Call `backward()` on each window's loss and then `step()`, K times along a sequence. The base optimizer's groups and
    state are this optimizer's too: learning-rate schedulers, GradScaler and `state_dict()` work as on any optimizer.

    Args:
        base: the optimizer that moves the weights (SGD, Adam, AdamW, RMSprop, …).
        alpha: α ≥ 0, in 1/learning-rate units (a fraction of one step with the preconditioned metric). 0 is the base
            optimizer bit for bit. A group of `base` may bring its own "alpha" (not one of RMSprop or ASGD, whose
            "alpha" is their own and appears here as "base_alpha").
        beta: β in (0, 1].
        dual_weight: κ ≥ 0.
        prox_weight: c ≥ 0.
        update: "explicit" adds the force to the gradient; "prox" solves the pull exactly after the base step (stable
            for any α with c = κ = 1); "algorithm2" takes the dual from a second gradient at the new weights (the
            paper's Algorithm 2 to the letter; `step` then needs a closure).
        metric: "euclidean", or "preconditioned": the force is multiplied by (√v̂ + ε)/η of an Adam-type base.
        max_norm: bound of the gradient's global 2-norm over all groups; None: no clipping.
        clip: "total" bounds gradient + force, "gradient" the gradient alone.

    Attributes:
        norm_reduce: maps this process's sum of squares (0-dim float64) to the global one; for sharded parameters.
        anchor: a second pull (consensus between workers), added with the first, never multiplied by the metric.

    Raises:
        ValueError: a hyper-parameter out of range (named), a metric that the base cannot serve, a half-precision
            parameter, a maximising group.

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
        update: Literal["explicit", "prox", "algorithm2"] = "explicit",
        metric: Literal["euclidean", "preconditioned"] = "euclidean",
        max_norm: float | None = None,
        clip: Literal["total", "gradient"] = "total",
    ) -> None:
        if not isinstance(base, Optimizer):
            raise ValueError(f"base={base!r} must be a torch.optim.Optimizer")
        _require("alpha", alpha, 0.0 <= alpha < math.inf, "a finite number ≥ 0")
        _require("beta", beta, 0.0 < beta <= 1.0, "in (0, 1]")
        _require("dual_weight", dual_weight, 0.0 <= dual_weight < math.inf, "a finite number ≥ 0")
        _require("prox_weight", prox_weight, 0.0 <= prox_weight < math.inf, "a finite number ≥ 0")
        _require("update", update, update in ("explicit", "prox", "algorithm2"), '"explicit", "prox" or "algorithm2"')
        _require("metric", metric, metric in ("euclidean", "preconditioned"), '"euclidean" or "preconditioned"')
        _require("clip", clip, clip in ("total", "gradient"), '"total" or "gradient"')
        _require("max_norm", max_norm, max_norm is None or max_norm > 0.0, "> 0, or None for no clipping")
        if metric == "preconditioned":
            if not has_second_moments(base):
                raise ValueError(
                    f'metric="preconditioned" needs second moments, which {type(base).__name__} does not keep: '
                    'use Adam, AdamW or RMSprop, or metric="euclidean"'
                )
            if update != "explicit":
                raise ValueError(f'metric="preconditioned" works with update="explicit" only, not update="{update}"')
        if update == "algorithm2":
            _require("alpha", alpha, alpha > 0.0, '> 0 with update="algorithm2", whose dual is u = g/α')

        self.base = base
        self.beta = beta
        self.dual_weight = dual_weight
        self.prox_weight = prox_weight
        self.update = update
        self.metric = metric
        self.max_norm = max_norm
        self.clip = clip
        self.norm_reduce: Callable[[Tensor], Tensor] | None = None
        self.anchor: Anchor | None = None
        self._warned_unstable = False

        defaults = dict(base.defaults)
        if "alpha" in defaults:
            defaults["base_alpha"] = defaults["alpha"]
            for group in base.param_groups:
                group["base_alpha"] = group.pop("alpha")
        defaults["alpha"] = alpha
        super().__init__(base.param_groups, defaults)
        self.state = base.state
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of W, u and W̄ from the gradients in `.grad`, which afterwards hold gradient + force.

        Parameters without a gradient are left untouched, their state too.

        Args:
            closure: computes the gradients and returns the loss; called once, before the update. With
                update="algorithm2" it is called again after it, and must then recompute the same window from the same
                incoming state, without advancing that state; gradients are cleared in between.

        Returns:
            What the closure's first call returned; None without one.

        Raises:
            RuntimeError: a sparse gradient; update="algorithm2" without a closure.
            ValueError: a half-precision parameter.
        """
        self._share()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif self.update == "algorithm2" and any(host_number(group["lr"]) != 0.0 for group in self.param_groups):
            raise RuntimeError(
                'update="algorithm2" takes a second gradient at the new weights: call step(closure), with a closure '
                "that clears the gradients, runs the window from its incoming state, calls backward() and returns the "
                "loss"
            )

        active = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        active = [(group, params) for group, params in active if params]
        self._check(active)
        rates = {id(group): (group["alpha"], group["lr"]) for group, _ in active}
        entering = {
            p: p.detach().clone() for _, params in active for p in params if CENTER not in self.state.get(p, {})
        }
        untouched = closure is None and bool(entering) and self._is_state_initialisation(active)

        self._add_force(active)
        self._base_step()

        for p, weights in entering.items():
            if untouched:
                _forget_dummy_step(self.base, self.state[p])
            self.state[p][CENTER] = weights
            self.state[p][SCALED_DUAL] = torch.zeros_like(weights)
        if self.update == "prox":
            for group, params in active:
                alpha, lr = rates[id(group)]
                if alpha != 0.0:
                    updates.implicit_step(params, *self._slow(params), lr=lr, alpha=alpha, **self._weights())
        if self.update == "algorithm2" and closure is not None:
            self._renew_from_second_gradient(active, closure)
        else:
            for _, params in active:
                updates.renew(params, *self._slow(params), beta=self.beta)
        return loss

    @torch.no_grad()
    def recenter(self, *, weights: bool = True, dual: bool = True) -> None:
        """The reset at the end of an epoch: W ← W̄ (`weights`) and u ← 0 (`dual`); the base's moments are kept."""
        params = self._started()
        if not params:
            return
        centers, duals = self._slow(params)
        if weights:
            torch._foreach_copy_(params, centers)
        if dual:
            torch._foreach_zero_(duals)

    @contextmanager
    def at_center(self) -> Iterator[None]:
        """Within the context the model computes with W̄; W is back, bit for bit, on leaving, also on an exception."""
        params = self._started()
        with torch.no_grad():
            weights = [p.detach().clone() for p in params]
            for p, center in zip(params, self._slow(params)[0], strict=True):
                p.copy_(center)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, held in zip(params, weights, strict=True):
                    p.copy_(held)

    def center(self, param: Tensor) -> Tensor:
        """W̄ of one parameter, a view of the state; before the parameter's first step, W itself (detached)."""
        return self.state.get(param, {}).get(CENTER, param.detach())

    @torch.no_grad()
    def dual(self, param: Tensor) -> Tensor:
        """λ = α u of one parameter, a new tensor; 0 before the parameter's first step."""
        state = self.state.get(param, {})
        if CENTER not in state:
            return torch.zeros_like(param)
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                return state[SCALED_DUAL] * group.get(ALPHA_OF_DUAL, group["alpha"])
        raise ValueError("dual(param): param is in none of this optimizer's groups")

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """2-norms over all parameters, as 0-dim tensors, for telemetry; to be read between backward() and step().

        Returns:
            "gradient" ‖g‖, "force" ‖D α [c (W − W̄) − κ u]‖ (of parameters with a gradient), "center_distance"
            ‖W − W̄‖, "dual" ‖λ‖.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        started = self._started()
        pulls = [self._force(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        centers, _ = self._slow(started)
        values = {
            "gradient": updates.gradients(params),
            "force": [pull for part in pulls for pull in part[1]],
            "center_distance": torch._foreach_sub(started, centers) if started else [],
            "dual": [self.dual(p) for p in started],
        }
        return {name: updates.global_norm(tensors, self.norm_reduce) for name, tensors in values.items()}

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its "alpha" is FPTT's unless the base has one of its own (then "base_alpha" is the base's).

        Raises:
            ValueError: a half-precision or complex parameter, or `maximize=True`.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require("alpha", group["alpha"], 0.0 <= group["alpha"] < math.inf, "a finite number ≥ 0")
            if group.get("maximize"):
                raise ValueError("maximize=True: FPTT minimises; negate the loss instead")
            for p in group["params"]:
                _require_wide(p)
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; W̄ and u keep their own precision and are copied, whatever the parameters' type is now."""
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        super().load_state_dict(state_dict)
        for index, p in zip(saved, [p for group in self.param_groups for p in group["params"]], strict=True):
            for name in (CENTER, SCALED_DUAL):
                value = state_dict["state"].get(index, {}).get(name)
                if value is not None:
                    wide = torch.promote_types(value.dtype, torch.float32)
                    self.state[p][name] = value.detach().to(device=p.device, dtype=wide, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad_profile_name", "norm_reduce", "anchor")
        return {name: value for name, value in self.__dict__.items() if not name.startswith(hooks) and name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("norm_reduce", None)
        self.__dict__.setdefault("anchor", None)
        # The base repairs what older versions saved; it must do so on the dictionaries that both share.
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})

    def _share(self) -> None:
        """One state and one list of groups for both objects, also after an engine replaced this one's."""
        self.base.state = self.state
        self.base.param_groups = self.param_groups

    def _weights(self) -> dict[str, float]:
        return {"prox_weight": self.prox_weight, "dual_weight": self.dual_weight}

    def _slow(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.state[p][CENTER] for p in params], [self.state[p][SCALED_DUAL] for p in params]

    def _started(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if CENTER in self.state.get(p, {})]

    def _check(self, active: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        for group, params in active:
            for p in params:
                _require_wide(p)
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise RuntimeError("FPTT does not support sparse gradients: build the embedding with sparse=False")
            if self.update == "explicit" and not self._warned_unstable:
                self._warn_if_unstable(group)

    def _warn_if_unstable(self, group: dict[str, Any]) -> None:
        lr = host_number(group["lr"])
        if group["alpha"] == 0.0 or isinstance(lr, Tensor):
            return
        scale, dynamics = pull_dynamics(self.base, group, lr, self.metric)
        if dynamics is None:
            return
        limit = explicit_limit(self.beta, self.prox_weight, self.dual_weight, **dynamics) / scale
        if group["alpha"] > limit * (1.0 + 1e-6):
            self._warned_unstable = True
            warnings.warn(
                f"alpha={group['alpha']:g} is past the explicit step's stability limit, alpha < {limit:.3g} for "
                f"{type(self.base).__name__} with lr={lr:g}, beta={self.beta:g}, prox_weight={self.prox_weight:g}, "
                f"dual_weight={self.dual_weight:g}: the weights will oscillate. Lower alpha or the learning rate, or "
                'take update="prox"',
                stacklevel=4,
            )

    def _force(self, group: dict[str, Any], params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that feel the pull towards W̄, and the pull on each."""
        params = [p for p in params if CENTER in self.state.get(p, {})]
        if not params or group["alpha"] == 0.0:
            return [], []
        pull = updates.force(params, *self._slow(params), alpha=group["alpha"], **self._weights())
        if self.metric == "preconditioned":
            torch._foreach_mul_(pull, preconditioner(self.base, group, params))
        return params, pull

    def _add_force(self, active: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        everything = [p for _, params in active for p in params]
        if self.clip == "gradient":
            self._clip(everything)
        for group, params in active:
            if self.update == "algorithm2":
                self._rescale_dual(group, params)
            if self.update != "prox":
                pulled, pull = self._force(group, params)
                if pulled:
                    torch._foreach_add_(updates.gradients(pulled), pull)
            if self.anchor is not None:
                self.anchor.add_force(params)
        if self.clip == "total":
            self._clip(everything)

    def _clip(self, params: list[Tensor]) -> None:
        """Scale the gradients by min(1, max_norm / (‖·‖ + 1e-6)), one norm over all of them."""
        if self.max_norm is not None and params:
            norm = updates.global_norm(updates.gradients(params), self.norm_reduce)
            torch.nn.utils.clip_grads_with_norm_(params, self.max_norm, norm)

    def _base_step(self) -> None:
        """The base optimizer's step, with its own "alpha" in place where it has one (RMSprop, ASGD)."""
        if "base_alpha" not in self.defaults:
            self.base.step()
            return
        held = [group["alpha"] for group in self.param_groups]
        for group in self.param_groups:
            group["alpha"] = group["base_alpha"]
        try:
            self.base.step()
        finally:
            for group, alpha in zip(self.param_groups, held, strict=True):
                group["alpha"] = alpha

    def _rescale_dual(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Keep λ = α u where α has changed: algorithm2's λ is a gradient, which does not depend on α."""
        before = group.get(ALPHA_OF_DUAL, group["alpha"])
        started = [p for p in group["params"] if CENTER in self.state.get(p, {})]
        _require("alpha", group["alpha"], group["alpha"] > 0.0, '> 0 with update="algorithm2"')
        if before != group["alpha"] and started:
            torch._foreach_mul_(self._slow(started)[1], before / group["alpha"])
        group[ALPHA_OF_DUAL] = group["alpha"]

    def _renew_from_second_gradient(
        self, active: list[tuple[dict[str, Any], list[Tensor]]], closure: Callable[[], Any]
    ) -> None:
        """λ' = g₂, the same window's gradient at W'; not clipped."""
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for group, params in active:
            params = [p for p in params if p.grad is not None]
            if params:
                centers, duals = self._slow(params)
                torch._foreach_copy_(duals, torch._foreach_div(updates.gradients(params), group["alpha"]))
                updates.renew_centers(params, centers, duals, beta=self.beta)

    def _is_state_initialisation(self, active: list[tuple[dict[str, Any], list[Tensor]]]) -> bool:
        """Whether this is torch.distributed.checkpoint creating the state: learning rates and gradients all 0."""
        if any(host_number(group["lr"]) != 0.0 for group, _ in active):
            return False
        return not any(bool(p.grad.any()) for _, params in active for p in params if p.grad is not None)


def _require(name: str, value: Any, valid: bool, allowed: str) -> None:
    if not valid:
        raise ValueError(f"{name}={value!r} must be {allowed}")


def _require_wide(param: Tensor) -> None:
    if param.dtype not in WIDE:
        raise ValueError(
            f"FPTT keeps parameters in float32 or float64, got one of {param.dtype} and shape {tuple(param.shape)}: "
            "keep the weights in float32 and use torch.autocast for speed"
        )


def _forget_dummy_step(base: Optimizer, state: dict[str, Any]) -> None:
    """Bring a state that a dummy step created back to what the first real step expects to find."""
    if isinstance(base, SGD | Adam | RMSprop):
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
