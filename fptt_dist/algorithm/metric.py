"""The preconditioned metric: the force in units of one optimizer step.

With an Adam-type base optimizer the force is multiplied by D = (√v̂ + ε)/η, the inverse of the factor that the
optimizer is about to divide it by. α is then free of units: the fraction of one optimizer step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

SUPPORTED = (Adam, RMSprop)  # torch's AdamW is an Adam


def has_second_moments(base: Optimizer) -> bool:
    """Whether the base optimizer keeps the second moments that the preconditioned metric needs."""
    return isinstance(base, SUPPORTED)


def preconditioner(base: Optimizer, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
    """D = (√v̂ + ε)/η for each parameter, from the moments *before* the coming step.

    v̂ is bias-corrected for Adam and AdamW (the maximum for AMSGrad) and taken as it is for RMSprop. D is 0 (so the
    force is) before the first step and where the learning rate η is 0.

    Args:
        base: an Adam, AdamW or RMSprop.
        group: the parameters' group of `base`.
        params: parameters of that group, any shapes.

    Returns:
        One tensor of the parameter's shape each.
    """
    lr = host_number(group["lr"])
    scales = {p: torch.zeros_like(p) for p in params}
    moments = {p: _second_moment(base, group, base.state.get(p, {})) for p in params}
    known = {p: moment for p, moment in moments.items() if moment is not None}
    if known and (isinstance(lr, Tensor) or lr != 0.0):
        inverse = torch._foreach_sqrt(list(known.values()))
        torch._foreach_add_(inverse, group["eps"])
        torch._foreach_div_(inverse, lr)
        if isinstance(lr, Tensor):
            inverse = [torch.where(lr == 0.0, torch.zeros_like(d), d) for d in inverse]
        scales.update(zip(known, inverse, strict=True))
    return list(scales.values())


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
