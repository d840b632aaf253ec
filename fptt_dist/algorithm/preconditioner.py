"""The preconditioned metric: the regularizer's gradient in units of one optimizer step.

With an Adam-type base optimizer it is multiplied by D = (√v̂ + ε)/η, the inverse of the factor that the optimizer is
about to divide it by. α is then free of units: the fraction of one optimizer step.

W − W̄ and u are made of the steps of some updates past, and given the steps they decay by ρ = √(1 − β) per update and no
faster. Divided by a learning rate that falls faster they would grow without limit, and v̂ with them. So D has in η's
place a reference rate r, one number for each parameter, which falls more slowly than they do:

    r_t = max(η_t, ρ' r_{t−1})        ρ' = (1 + ρ)/2;  r = η at a parameter's first step
    D   = (√v̂ + ε) / max(r_t, G × rounding of W)        rounding of W = |W| × machine epsilon

Where η falls by no more than a factor of ρ' per update, r is η. The last maximum, by element, is needed because W − W̄
and u are not known better than W's own rounding (G: `rounding_gain`); it is r until η is as small as that.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

SUPPORTED = (Adam, RMSprop)  # torch's AdamW is an Adam
LEAST_RATE = 1e-28  # of the reference rates: a float32 divided by it does not overflow where √v̂ is below 10¹⁰


def has_second_moments(base: Optimizer) -> bool:
    """Return whether the base optimizer keeps the second moments that the preconditioned metric needs."""
    return isinstance(base, SUPPORTED)


def reference_rate(before: float | Tensor | None, lr: float | Tensor, beta: float) -> float | Tensor:
    """r of the coming update: the learning rate, or what is left of the reference rate of the update before.

    Args:
        before: r of the parameter's last update; None or 0 before its first.
        lr: η of the coming update; a 0-dim tensor on a device stays there, and r with it.
        beta: β.
    """
    lr, before = host_number(lr), 0.0 if before is None else host_number(before)
    decayed = before * (0.5 + 0.5 * math.sqrt(1.0 - beta))
    if isinstance(lr, Tensor):
        return lr.clamp(min=decayed).clamp(min=LEAST_RATE)
    if isinstance(decayed, Tensor):
        return decayed.clamp(min=max(lr, LEAST_RATE))
    return max(lr, decayed, LEAST_RATE)


def rounding_gain(alpha: float, beta: float, prox_weight: float, dual_weight: float) -> float:
    """G = α [c + (c + κ/√β)/(1 − ρ)]: the most that rounding errors of W̄, of size 1 at each update, add up to in
    α [c (W − W̄) − κ u].

    One of j ≥ 1 updates before has left at most ρʲ⁻¹ in W − W̄ and ρʲ⁻¹/√β in u. With a divisor below G × rounding of
    W the regularizer's gradient could be more than √v̂ from rounding alone, and v̂ would grow from update to update.
    """
    left = 1.0 / (1.0 - math.sqrt(1.0 - beta))
    return alpha * (prox_weight + (prox_weight + dual_weight / math.sqrt(beta)) * left)


def preconditioner(
    base: Optimizer, group: dict[str, Any], params: list[Tensor], rates: list[float | Tensor], gain: float
) -> list[Tensor]:
    """D = (√v̂ + ε) / max(r, G × rounding of W) for each parameter, from the moments *before* the coming step.

    v̂ is bias-corrected for Adam and AdamW (the maximum for AMSGrad) and taken as it is for RMSprop. D is 0 (so the
    regularizer's gradient is) before the first step and where the learning rate η is 0.

    Args:
        base: an Adam, AdamW or RMSprop.
        group: the parameters' group of `base`.
        params: parameters of that group, any shapes.
        rates: r of each parameter, see `reference_rate`.
        gain: G, see `rounding_gain`.

    Returns:
        One tensor of the parameter's shape each.
    """
    lr = host_number(group["lr"])
    moments = [_second_moment(base, group, base.state.get(p, {})) for p in params]
    known = [i for i, moment in enumerate(moments) if moment is not None]
    if not known or (isinstance(lr, float) and lr == 0.0):
        return [torch.zeros_like(p) for p in params]
    inverse = torch._foreach_sqrt([moment for moment in moments if moment is not None])
    torch._foreach_add_(inverse, group["eps"])
    torch._foreach_div_(inverse, _divisors([params[i] for i in known], [rates[i] for i in known], gain))
    if isinstance(lr, Tensor):
        inverse = [torch.where(lr == 0.0, torch.zeros_like(d), d) for d in inverse]
    scales = dict(zip(known, inverse, strict=True))
    return [scales[i] if i in scales else torch.zeros_like(p) for i, p in enumerate(params)]


def mean_squared_scale(base: Optimizer, group: dict[str, Any], param: Tensor) -> Tensor:
    """The mean over one parameter's elements of the square of what `base` divides its gradient by (0-dim, float64).

    v̂ for Adam, AdamW and RMSprop (0 before the first step), 1 for others; times (1 − momentum)² where there is one: the
    step for a steady gradient g is η g/(1 − momentum).
    """
    damping = (1.0 - group.get("momentum", 0.0)) ** 2
    if not has_second_moments(base):
        return torch.full((), damping, dtype=torch.float64, device=param.device)
    moment = _second_moment(base, group, base.state.get(param, {}))
    if moment is None:
        return torch.zeros((), dtype=torch.float64, device=param.device)
    return moment.double().sum() / max(1, moment.numel()) * damping


def host_number(value: float | Tensor) -> float | Tensor:
    """A Python number where reading one costs nothing; a tensor on a device stays there."""
    if isinstance(value, Tensor):
        return value.item() if value.device.type == "cpu" else value
    return float(value)


def _divisors(params: list[Tensor], rates: list[float | Tensor], gain: float) -> list[Tensor]:
    """max(r, G × rounding of W) by element."""
    divisors = list(torch._foreach_abs(params))
    torch._foreach_mul_(divisors, [gain * torch.finfo(p.dtype).eps for p in params])
    by_rate: dict[float | Tensor, list[int]] = {}
    for i, rate in enumerate(rates):
        by_rate.setdefault(rate, []).append(i)  # one list but where a parameter had no gradient at some update
    for rate, places in by_rate.items():
        if isinstance(rate, Tensor):
            for i in places:
                divisors[i] = torch.maximum(divisors[i], rate)
        else:
            torch._foreach_clamp_min_([divisors[i] for i in places], rate)
    return divisors


def _second_moment(base: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
    """v̂ of one parameter, or None before its first step."""
    if isinstance(base, RMSprop):
        second = state.get("square_avg")
        if second is not None and group["centered"]:
            return second.addcmul(state["grad_avg"], state["grad_avg"], value=-1.0)
        return second
    second = state.get("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    if second is None:
        return None
    step = host_number(state["step"])
    if isinstance(step, float) and step == 0.0:
        return None
    return second / (1.0 - group["betas"][1] ** step)
