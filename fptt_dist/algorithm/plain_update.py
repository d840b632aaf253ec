"""FPTT's update, operation by operation, around one step of the base optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fptt_dist.algorithm import update as updates
from fptt_dist.algorithm.checks import require, require_wide
from fptt_dist.algorithm.consensus_term import ConsensusTerm
from fptt_dist.algorithm.preconditioner import preconditioner, reference_rate, rounding_gain
from fptt_dist.algorithm.slow_state import REFERENCE_RATE, Active, SlowState
from fptt_dist.algorithm.update import GROUPED, Constants

HOOKED = Optimizer.profile_hook_step(lambda: None)  # what torch makes of each class's `step`


def plain_update(
    slow: SlowState,
    constants: Constants,
    consensus_term: ConsensusTerm | None,
    norm_reduce: Callable[[Tensor], Tensor] | None,
    closure: Callable[[], Any] | None,
) -> None:
    """Update W, u and W̄ of the parameters that have a gradient; their `.grad` then includes the regularizer's.

    Args:
        slow: W̄ and u, and the base optimizer.
        constants: FPTT's.
        consensus_term: see `FPTT`.
        norm_reduce: see `FPTT`.
        closure: of `FPTT.step`, already called once; with update_rule="second_gradient" it is called again.

    Raises:
        RuntimeError: a sparse gradient.
        ValueError: a half-precision parameter, or α = 0 with update_rule="second_gradient".
    """
    active = [(group, [p for p in group["params"] if p.grad is not None]) for group in slow.base.param_groups]
    active = [(group, params) for group, params in active if params]
    everything = [p for _, params in active for p in params]
    _check(active, constants)
    slow.forget_only_made(everything)
    settings = [{name: group[name] for name in ("lr", *GROUPED)} for group, _ in active]  # whatever hooks do to them
    references: dict[Tensor, float | Tensor] = {}
    if constants.metric == "preconditioned":
        references = {p: _reference_rate(slow, group, p) for group, params in active for p in params}

    only_made = closure is None and slow.only_makes_state(active)
    if constants.clip_scope == "gradient":
        _clip(slow, everything, constants.max_norm, norm_reduce)
    for group, params in active:
        _add_regularizer(slow, constants, group, params)
        if consensus_term is not None:
            consensus_term.add_gradient(params)
    if constants.clip_scope == "total":
        _clip(slow, everything, constants.max_norm, norm_reduce)
    with slow.base_step(everything, only_made=only_made):
        _step_with_own_names(slow.base)

    for p, rate in references.items():
        slow.base.state[p][REFERENCE_RATE] = rate
    if constants.update_rule == "second_gradient" and closure is not None:
        _renew_from_second_gradient(slow, active, closure)
        return
    for (_, params), own in zip(active, settings, strict=True):
        centers, duals = slow.of(params)
        if constants.update_rule == "proximal" and own["alpha"] != 0.0:
            updates.proximal_step(params, centers, duals, lr=own["lr"], alpha=own["alpha"], **updates.weights_of(own))
        updates.update_dual_and_center(params, centers, duals, beta=own["beta"])


def regularizer_gradient(
    slow: SlowState, constants: Constants, group: dict[str, Any], params: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return those of `params` (of `group`) that the regularizer acts on, and its gradient at each."""
    params = [p for p in params if slow.has_started(p)]
    if not params or group["alpha"] == 0.0:
        return [], []
    alpha, weights = group["alpha"], updates.weights_of(group)
    gradient = updates.regularizer_gradient(params, *slow.of(params), alpha=alpha, **weights)
    if constants.metric == "preconditioned":
        rates = [_reference_rate(slow, group, p) for p in params]
        gain = rounding_gain(alpha, group["beta"], **weights)
        torch._foreach_mul_(gradient, preconditioner(slow.base, group, params, rates, gain))
    return params, gradient


def _check(active: Active, constants: Constants) -> None:
    """Refuse what cannot be updated, before anything has changed."""
    for group, params in active:
        if constants.update_rule == "second_gradient":
            require("alpha", group["alpha"], group["alpha"] > 0.0, '> 0 with update_rule="second_gradient"')
        for p in params:
            require_wide(p)  # a model may have been cast since the optimizer was built
            if p.grad is not None and p.grad.layout != torch.strided:
                raise RuntimeError("FPTT does not support sparse gradients: build the embedding with sparse=False")


def _add_regularizer(slow: SlowState, constants: Constants, group: dict[str, Any], params: list[Tensor]) -> None:
    """Add the regularizer's gradient to the loss's, unless the update solves the regularizer after the base step."""
    if constants.update_rule == "second_gradient":
        slow.follow_alpha(group)
    if constants.update_rule != "proximal":
        regularized, gradient = regularizer_gradient(slow, constants, group, params)
        if regularized:
            torch._foreach_add_(updates.gradients(regularized), gradient)


def _clip(
    slow: SlowState, params: list[Tensor], max_norm: float | None, norm_reduce: Callable[[Tensor], Tensor] | None
) -> None:
    """Scale the gradients by min(1, max_norm / (‖·‖ + 1e-6)), one norm over all of them."""
    # A worker whose shards have no gradient takes part in the reduction too, or the others would wait for it.
    if max_norm is not None and (params or norm_reduce is not None):
        device = (params or slow.params)[0].device
        norm = updates.global_norm(updates.gradients(params), norm_reduce, device=device)
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)


def _step_with_own_names(base: Optimizer) -> None:
    """Make the base optimizer's step, with its own "alpha" (of RMSprop, ASGD) or the like in place where it has one."""
    held = [(g, name, g[name]) for g in base.param_groups for name in GROUPED if f"base_{name}" in g]
    for group, name, _ in held:
        group[name] = group[f"base_{name}"]
    try:
        _step_without_global_hooks(base)
    finally:
        for group, name, ours in held:
            group[f"base_{name}"], group[name] = group[name], ours


def _step_without_global_hooks(base: Optimizer) -> None:
    """Make the base optimizer's step with its own hooks alone: those of all optimizers are called by FPTT's step."""
    step, replaced = type(base).step, vars(base).get("step")
    by_scheduler = hasattr(replaced, "_wrapped_by_lr_sched")
    # Only torch's own wrapper is looked into: another one, of the class or of this object, does more than call hooks.
    torchs = getattr(step, "__code__", None) is HOOKED.__code__ and (replaced is None or by_scheduler)
    if not torchs or not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks):
        base.step()
        return
    if by_scheduler:
        base._opt_called = True  # type: ignore[attr-defined]  as the scheduler's wrapper does
    arguments: Any = (base,), {}
    for hook in base._optimizer_step_pre_hooks.values():
        arguments = hook(base, *arguments) or arguments
    step.__wrapped__(*arguments[0], **arguments[1])  # type: ignore[attr-defined]
    for hook in base._optimizer_step_post_hooks.values():
        hook(base, *arguments)


def _renew_from_second_gradient(slow: SlowState, active: Active, closure: Callable[[], Any]) -> None:
    """Set λ' to the same window's gradient at W', which is not clipped, then W̄'."""
    slow.base.zero_grad()
    with torch.enable_grad():
        closure()
    for group, params in active:
        params = [p for p in params if p.grad is not None]
        if params:
            centers, duals = slow.of(params)
            updates.copy(duals, torch._foreach_div(updates.gradients(params), group["alpha"]))
            updates.update_center(params, centers, duals, beta=group["beta"])


def _reference_rate(slow: SlowState, group: dict[str, Any], param: Tensor) -> float | Tensor:
    """Return r of the parameter's coming update; see preconditioner.py."""
    return reference_rate(slow.base.state.get(param, {}).get(REFERENCE_RATE), group["lr"], group["beta"])
