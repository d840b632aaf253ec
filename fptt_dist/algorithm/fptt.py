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

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from fptt_dist.algorithm import update as updates
from fptt_dist.algorithm.anchor import Anchor
from fptt_dist.algorithm.checks import check_group, check_options, require, require_alpha, require_wide
from fptt_dist.algorithm.fused import FusedUpdate
from fptt_dist.algorithm.kernel import Constants, refusal
from fptt_dist.algorithm.metric import (
    host_number,
    mean_squared_scale,
    preconditioner,
    reference_rate,
    rounding_gain,
)
from fptt_dist.algorithm.stability import instability
from fptt_dist.algorithm.zero_step import forget_step, only_makes_state

CENTER = "center"
SCALED_DUAL = "scaled_dual"
REFERENCE_RATE = "reference_rate"  # preconditioned metric only: r, a number beside W̄ and u
OURS = {CENTER, SCALED_DUAL, REFERENCE_RATE}
ALPHA_OF_DUAL = "alpha_of_dual"  # algorithm2 only: the α that turned its gradient into u


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
        metric: "euclidean", or "preconditioned": the force is multiplied by (√v̂ + ε)/η of an Adam-type base: metric.py.
        max_norm: bound of the gradient's global 2-norm over all groups; None: no clipping.
        clip: "total" bounds gradient + force, "gradient" the gradient alone.
        fused: the whole update in two passes over memory, compiled at the second step (seconds; it needs a C++
            compiler, or Triton on a GPU; without one the plain path runs and a warning says so). SGD, Adam and AdamW
            with update="explicit"; equal to the plain path to rounding.

    Attributes:
        norm_reduce: maps this process's sum of squares (0-dim float64) to the global one; for sharded parameters.
        anchor: a second pull (consensus between workers), added with the first, never multiplied by the metric.

    Raises:
        ValueError: a hyper-parameter out of range (named), a metric that the base cannot serve, a half-precision
            parameter, a maximising group.

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
        update: Literal["explicit", "prox", "algorithm2"] = "explicit",
        metric: Literal["euclidean", "preconditioned"] = "euclidean",
        max_norm: float | None = None,
        clip: Literal["total", "gradient"] = "total",
        fused: bool = False,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise ValueError(f"base={base!r} must be a torch.optim.Optimizer")
        check_options(
            base,
            alpha=alpha,
            beta=beta,
            dual_weight=dual_weight,
            prox_weight=prox_weight,
            update=update,
            metric=metric,
            max_norm=max_norm,
            clip=clip,
        )
        problem = refusal(base, update) if fused else None
        if problem is not None:
            raise ValueError(f"fused=True: {problem}")

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
        self.fused = fused
        self._fused = FusedUpdate(CENTER, SCALED_DUAL, REFERENCE_RATE)
        self._warned_unstable = False
        self._shows_others = False  # the parameters have other weights than W, see `showing`
        self._provisional: set[Tensor] = set()  # their state was made by a step that only makes state

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
        """One update of W, u and W̄ from the gradients in `.grad`, which afterwards hold gradient + force (with
        `fused`, the gradients still, unclipped).

        Parameters without a gradient are left untouched, their state too.

        Args:
            closure: computes the gradients and returns the loss; called once, before the update. With
                update="algorithm2" it is called again after it, and must then recompute the same window from the same
                incoming state, without advancing that state; gradients are cleared in between.

        Returns:
            What the closure's first call returned; None without one.

        Raises:
            RuntimeError: within `at_center`; a sparse gradient; update="algorithm2" without a closure.
            ValueError: a half-precision parameter.
        """
        self._require_own_weights("step")
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

        if self.fused:
            if self._fused_step():
                return loss
            if self._fused.follows:
                raise RuntimeError("an update that was planned cannot be fused: a parameter has no gradient")
        active = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        active = [(group, params) for group, params in active if params]
        self._check(active)
        for p in [p for _, params in active for p in params if p in self._provisional]:
            self._provisional.remove(p)
            del self.state[p]
        rates = {id(group): (group["alpha"], group["lr"]) for group, _ in active}
        entering = {
            p: p.detach().clone() for _, params in active for p in params if CENTER not in self.state.get(p, {})
        }
        references: dict[Tensor, float | Tensor] = {}
        if self.metric == "preconditioned":
            references = {p: self._reference_rate(group, p) for group, params in active for p in params}
        makes_state = closure is None and bool(entering) and only_makes_state(active)

        self._add_force(active)
        self._base_step([p for _, params in active for p in params])

        for p, weights in entering.items():
            if makes_state:
                forget_step(self.base, self.state[p])
                self._provisional.add(p)
            self.state[p][CENTER] = weights
            self.state[p][SCALED_DUAL] = torch.zeros_like(weights)
        for p, rate in references.items():
            self.state[p][REFERENCE_RATE] = rate
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
    def plan(self, updates: int) -> Tensor | None:
        """Plan the next `updates` fused updates: their coefficients (updates, groups, coefficients), on the host, from
        the groups, the counts of steps and the reference rates; None where they would not be fused. For CUDA graphs,
        with `following` and `count`.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_own_weights("plan")
        return self._fused.plan(self.param_groups, self.state, self._constants(), updates) if self.fused else None

    def following(self, rows: list[Tensor]) -> AbstractContextManager[None]:
        """Within the context `step` reads the next of `rows`, each (groups, coefficients) on the device, and counts no
        step.

        Raises:
            RuntimeError: (by `step`) an update that cannot be fused.
        """
        return self._fused.following(rows)

    @torch.no_grad()
    def count(self, updates: int) -> None:
        """Let the base's counts of steps, and the reference rates, advance by `updates`, which a graph has done."""
        self._require_own_weights("count")
        self._fused.count(self.param_groups, self._constants(), updates)

    @property
    def fusing_problem(self) -> str | None:
        """Why updates that were to be `fused` no longer are, or None."""
        return self._fused.problem

    @torch.no_grad()
    def recenter(self, *, weights: bool = True, dual: bool = True) -> None:
        """The reset at the end of an epoch: W ← W̄ (`weights`) and u ← 0 (`dual`); the base's moments are kept.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_own_weights("recenter")
        params = self._started()
        if not params:
            return
        centers, duals = self._slow(params)
        if weights:
            updates.copy(params, centers)
        if dual:
            torch._foreach_zero_(duals)

    def at_center(self) -> AbstractContextManager[None]:
        """Within the context the model computes with W̄; W is back, bit for bit, on leaving, also on an exception.

        `step`, `recenter` and `load_state_dict` raise RuntimeError there: what they did to W would be lost on leaving.
        """
        params = self._started()
        return self.showing(params, self._slow(params)[0])

    @contextmanager
    def showing(self, params: list[Tensor], values: list[Tensor]) -> Iterator[None]:
        """Within the context `params` have `values`, one for each; otherwise `at_center`, with other weights."""
        outer = self._shows_others
        with torch.no_grad():
            weights = [p.detach().clone() for p in params]
            updates.copy(params, values)
        self._shows_others = True
        try:
            yield
        finally:
            self._shows_others = outer
            with torch.no_grad():
                updates.copy(params, weights)

    @torch.no_grad()
    def slow(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """All parameters, their W̄ and their u, the tensors of the state themselves, in the order of the groups.

        A parameter without a step so far gets its W̄ = W and u = 0 here.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        for p in params:
            if not self._has_started(p):
                self._provisional.discard(p)
                self.state.pop(p, None)
                self.state[p] = {CENTER: p.detach().clone(), SCALED_DUAL: torch.zeros_like(p)}
        return params, *self._slow(params)

    @torch.no_grad()
    def mean_squared_scale(self, *, by_tensor: bool = False) -> Tensor:
        """s², the square of what the base optimizer divides a gradient by, a mean over all elements (float64).

        1 for SGD, (1 − momentum)² with momentum, the mean of v̂ for Adam, AdamW and RMSprop (0 before their first step).

        Args:
            by_tensor: one number for each parameter (P,), in the order of the groups, instead of one (1,).
        """
        means, sizes = [], []
        for group in self.param_groups:
            for p in group["params"]:
                means.append(mean_squared_scale(self.base, group, p))
                sizes.append(p.numel())
        each = torch.stack(means)
        if by_tensor:
            return each
        weights = torch.tensor(sizes, dtype=each.dtype, device=each.device)
        return ((each * weights).sum() / weights.sum()).reshape(1)

    def center(self, param: Tensor) -> Tensor:
        """W̄ of one parameter, a view of the state; before the parameter's first step, W itself (detached)."""
        return self.state[param][CENTER] if self._has_started(param) else param.detach()

    @torch.no_grad()
    def dual(self, param: Tensor) -> Tensor:
        """λ = α u of one parameter, a new tensor; 0 before the parameter's first step."""
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                if not self._has_started(param):
                    return torch.zeros_like(param)
                return self.state[param][SCALED_DUAL] * group.get(ALPHA_OF_DUAL, group["alpha"])
        raise ValueError("dual(param): param is in none of this optimizer's groups")

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """2-norms over all parameters, as 0-dim tensors, for telemetry; to be read between backward() and step().

        Returns:
            "gradient" ‖g‖, "force" ‖D α [c (W − W̄) − κ u]‖ (of parameters with a gradient), "center_distance"
            ‖W − W̄‖, "dual" ‖λ‖.
        """
        if self.update == "algorithm2":
            for group in self.param_groups:
                self._rescale_dual(group)
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
        try:
            check_group(self.param_groups[-1])
            require_alpha(self.param_groups[-1]["alpha"])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; W̄ and u keep their own precision and are copied, whatever the parameters' type is now.

        The state of the base optimizer alone is taken too: W̄ then starts at the weights of the next step.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_own_weights("load_state_dict")
        final: dict[str, Any] = {}

        def complete(optimizer: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            final.update(given, param_groups=list(map(self._with_alpha, given["param_groups"], self.param_groups)))
            return final

        handle = self.register_load_state_dict_pre_hook(complete)  # the last one: it sees what other hooks made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._provisional.clear()
        saved = [index for group in final["param_groups"] for index in group["params"]]
        for index, p in zip(saved, [p for group in self.param_groups for p in group["params"]], strict=True):
            for name in (CENTER, SCALED_DUAL):
                value = final["state"].get(index, {}).get(name)
                if value is not None:
                    wide = torch.promote_types(value.dtype, torch.float32)
                    self.state[p][name] = value.detach().to(device=p.device, dtype=wide, copy=True)

    def _with_alpha(self, saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """A loaded group with FPTT's alpha, also where it was saved from the base optimizer alone."""
        if "base_alpha" in now and "base_alpha" not in saved:
            return {**saved, "base_alpha": saved["alpha"], "alpha": now["alpha"]}
        return {"alpha": now["alpha"], **saved}

    def __getstate__(self) -> dict[str, Any]:
        # A copy made within `at_center` has W̄ for its own weights: there is nothing that would come back.
        hooks = ("_optimizer_", "_zero_grad_profile_name", "norm_reduce", "anchor", "_shows_others")
        return {name: value for name, value in self.__dict__.items() if not name.startswith(hooks) and name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("norm_reduce", None)
        self.__dict__.setdefault("anchor", None)
        self.__dict__.setdefault("_shows_others", False)
        # The base repairs what older versions saved; it must do so on the dictionaries that both share, and takes every
        # state that is not empty for its own.
        ours = {p: state for p, state in self.state.items() if state and state.keys() <= OURS}
        self.state.update({p: {} for p in ours})
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self.state.update(ours)

    def _share(self) -> None:
        """One state and one list of groups for both objects, also after an engine replaced this one's."""
        self.base.state = self.state
        self.base.param_groups = self.param_groups

    def _require_own_weights(self, call: str) -> None:
        """Refuse a call where the parameters have other weights for a time.

        Raises:
            RuntimeError: within `at_center` or `showing`.
        """
        if self._shows_others:
            raise RuntimeError(
                f"{call}() inside at_center(): what it did to the weights would be lost, since those of before come "
                "back when the context ends: leave the context first"
            )

    def _weights(self) -> dict[str, float]:
        return {"prox_weight": self.prox_weight, "dual_weight": self.dual_weight}

    def _slow(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.state[p][CENTER] for p in params], [self.state[p][SCALED_DUAL] for p in params]

    def _started(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if self._has_started(p)]

    def _has_started(self, param: Tensor) -> bool:
        return CENTER in self.state.get(param, {}) and param not in self._provisional

    def _check(self, active: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        for group, params in active:
            if self.update == "algorithm2":
                require("alpha", group["alpha"], group["alpha"] > 0.0, '> 0 with update="algorithm2"')
            for p in params:
                require_wide(p)
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise RuntimeError("FPTT does not support sparse gradients: build the embedding with sparse=False")
            if self.update == "explicit" and not self._warned_unstable:
                self._warn_if_unstable(group)

    def _warn_if_unstable(self, group: dict[str, Any]) -> None:
        problem = instability(self.base, group, self.metric, self.beta, **self._weights())
        if problem is not None:
            self._warned_unstable = True
            warnings.warn(problem, stacklevel=6)  # past torch's two wrappers of step

    def _force(self, group: dict[str, Any], params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that feel the pull towards W̄, and the pull on each."""
        params = [p for p in params if self._has_started(p)]
        if not params or group["alpha"] == 0.0:
            return [], []
        pull = updates.force(params, *self._slow(params), alpha=group["alpha"], **self._weights())
        if self.metric == "preconditioned":
            rates = [self._reference_rate(group, p) for p in params]
            gain = rounding_gain(group["alpha"], self.beta, **self._weights())
            torch._foreach_mul_(pull, preconditioner(self.base, group, params, rates, gain))
        return params, pull

    def _reference_rate(self, group: dict[str, Any], param: Tensor) -> float | Tensor:
        """r of the parameter's coming update; see `metric`."""
        return reference_rate(self.state.get(param, {}).get(REFERENCE_RATE), group["lr"], self.beta)

    def _fused_step(self) -> bool:
        """The whole update in one, or False with nothing changed."""
        if self._provisional or self._fused.problem is not None:
            return False
        if self.anchor is not None or self.norm_reduce is not None:
            return self._fused.give_up("a second pull (consensus with worker duals), or sharded weights")
        if self.base._optimizer_step_pre_hooks or self.base._optimizer_step_post_hooks:
            return self._fused.give_up("the base optimizer has hooks")
        for group in self.param_groups:
            if not self._warned_unstable:
                self._warn_if_unstable(group)
        return self._fused.run(self.param_groups, self.state, self._constants())

    def _constants(self) -> Constants:
        return Constants(
            beta=self.beta,
            dual_weight=self.dual_weight,
            prox_weight=self.prox_weight,
            preconditioned=self.metric == "preconditioned",
            max_norm=self.max_norm,
            clips_total=self.clip == "total",
        )

    def _add_force(self, active: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        everything = [p for _, params in active for p in params]
        if self.clip == "gradient":
            self._clip(everything)
        for group, params in active:
            if self.update == "algorithm2":
                self._rescale_dual(group)
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
        # A shard without any gradient takes part in the reduction too, or the other processes would wait for it.
        if self.max_norm is not None and (params or self.norm_reduce is not None):
            device = self.param_groups[0]["params"][0].device if not params else params[0].device
            norm = updates.global_norm(updates.gradients(params), self.norm_reduce, device=device)
            torch.nn.utils.clip_grads_with_norm_(params, self.max_norm, norm)

    def _base_step(self, params: list[Tensor]) -> None:
        """The base optimizer's step; it must find no state where it made none, or it would not make its own."""
        ours = {p: self.state.pop(p) for p in params if self.state.get(p) and self.state[p].keys() <= OURS}
        try:
            self._base_step_with_own_alpha()
        finally:
            for p, slow in ours.items():
                self.state[p].update(slow)

    def _base_step_with_own_alpha(self) -> None:
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

    def _rescale_dual(self, group: dict[str, Any]) -> None:
        """Keep λ = α u where α has changed: algorithm2's λ is a gradient, which does not depend on α."""
        before = group.get(ALPHA_OF_DUAL, group["alpha"])
        started = [p for p in group["params"] if self._has_started(p)]
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
                updates.copy(duals, torch._foreach_div(updates.gradients(params), group["alpha"]))
                updates.renew_centers(params, centers, duals, beta=self.beta)
