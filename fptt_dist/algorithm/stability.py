"""Stability limit of the regularizer's explicit step: how strong it may be before the weights' oscillation grows.

Without a data gradient one explicit update is linear in q (the momentum buffer), e = W − W̄ and u. With a = αη,
F = a (c e − κ u), momentum m and dampening d:

    q' = m q + (1 − d) F          D = W' − W = −q'   (Nesterov: −(F + m q'))
    e' = (1 − 2β)(e + D) + β u    u' = u − (e + D)

The step is stable while the spectral radius of that 3×3 matrix stays at 1 or below.
"""

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from fptt_dist.algorithm.preconditioner import host_number
from fptt_dist.algorithm.update import GROUPED, Constants


def spectral_radius(
    a: Tensor,
    *,
    beta: float,
    prox_weight: float = 1.0,
    dual_weight: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Spectral radius of one explicit update for every strength in `a` = αη (any shape; same shape returned)."""
    a = a.double()
    unit = torch.eye(3, dtype=torch.float64).expand(*a.shape, 3, 3)
    q, e, u = unit[..., 0, :], unit[..., 1, :], unit[..., 2, :]
    gradient = a[..., None] * (prox_weight * e - dual_weight * u)
    buffer = momentum * q + (1.0 - dampening) * gradient
    moved = e - (gradient + momentum * buffer if nesterov else buffer)
    update = torch.stack([buffer, (1.0 - 2.0 * beta) * moved + beta * u, u - moved], dim=-2)
    return torch.linalg.eigvals(update).abs().amax(-1)


@lru_cache(maxsize=64)
def explicit_limit(
    beta: float,
    prox_weight: float = 1.0,
    dual_weight: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> float:
    """The smallest αη at which the regularizer's explicit step is unstable; infinity where none is found below 10⁴.

    >>> round(explicit_limit(0.5), 2), round(explicit_limit(0.5, momentum=0.9), 2)
    (1.67, 3.17)
    """

    def stable(a: Tensor) -> Tensor:
        radius = spectral_radius(
            a,
            beta=beta,
            prox_weight=prox_weight,
            dual_weight=dual_weight,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
        )
        return radius <= 1.0 + 1e-9

    grid = torch.logspace(-4, 4, 4001, dtype=torch.float64)
    unstable = (~stable(grid)).nonzero()
    if len(unstable) == 0:
        return float("inf")
    first = int(unstable[0])
    low, high = (grid[first - 1].item() if first else 0.0), grid[first].item()
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bool(stable(torch.tensor(middle))) else (low, middle)
    return low


def base_dynamics(
    base: Optimizer, group: dict[str, Any], lr: float, metric: str
) -> tuple[float, dict[str, Any] | None]:
    """Return what `explicit_limit` needs to know of a base optimizer.

    Args:
        base: the optimizer that moves the weights.
        group: one of its groups.
        lr: η, the group's learning rate.
        metric: "euclidean" or "preconditioned".

    Returns:
        a/α (η; 1 with the preconditioned metric, where α is a fraction of a step), and the keyword arguments momentum,
        dampening and nesterov; None instead where no limit is known (Adam with the Euclidean metric).
    """
    # Preconditioned, a is α η/r: r, the reference rate, is never below η, so a ≤ α and the limit of a steady rate
    # stands for any schedule.
    if metric == "preconditioned":
        if isinstance(base, Adam):
            return 1.0, {"momentum": group["betas"][0], "dampening": group["betas"][0]}
        return 1.0, {"momentum": group["momentum"]}
    if isinstance(base, SGD) and lr > 0.0:
        keys = ("momentum", "dampening", "nesterov") if group["momentum"] else ()
        return lr, {key: group[key] for key in keys}
    return 1.0, None


def instability(base: Optimizer, group: dict[str, Any], constants: Constants) -> str | None:
    """Return what to warn of where a group's α is past its limit, or None; also where η is a tensor on a device.

    Args:
        base: the optimizer that moves the weights.
        group: one of its groups, with α.
        constants: FPTT's.
    """
    lr, metric = host_number(group["lr"]), constants.metric
    if group["alpha"] == 0.0 or isinstance(lr, Tensor):
        return None
    scale, dynamics = base_dynamics(base, group, lr, metric)
    if dynamics is None:
        return None
    beta, prox_weight, dual_weight = group["beta"], group["prox_weight"], group["dual_weight"]
    limit = explicit_limit(beta, prox_weight, dual_weight, **dynamics) / scale
    if group["alpha"] <= limit * (1.0 + 1e-6):
        return None
    prox = ', or take update_rule="proximal"' if metric == "euclidean" else ""
    return (
        f"alpha={group['alpha']:g} is past the explicit step's stability limit, alpha < {limit:.3g} for "
        f"{type(base).__name__} with lr={lr:g}, beta={beta:g}, "
        f"prox_weight={prox_weight:g}, dual_weight={dual_weight:g}: the weights will oscillate. "
        f"Lower alpha or the learning rate{prox}"
    )


class StabilityCheck:
    """A look at the groups of an optimizer whenever α, η, β, c, κ or momentum has changed, with one warning at most.

    Args:
        constants: FPTT's.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._seen: list[list[Any]] = []  # what the limit depends on, of each group
        self._done = constants.update_rule != "gradient"

    def check(self, base: Optimizer) -> None:
        """Warn where a group's α is past the explicit step's limit; called by `FPTT.step`.

        Args:
            base: the optimizer that moves the weights.
        """
        if self._done:
            return
        groups = base.param_groups
        keys = (*GROUPED, "momentum", "dampening", "nesterov", "betas")
        seen = [[_comparable(group["lr"]), *map(group.get, keys)] for group in groups]
        if seen == self._seen:
            return
        self._seen = seen
        problems = [instability(base, group, self._constants) for group in groups]
        found = next(filter(None, problems), None)
        if found is not None:
            self._done = True
            warnings.warn(found, stacklevel=5)  # past torch's two wrappers of step


def _comparable(lr: float | Tensor) -> float | int:
    """Return a learning rate, or the identity of one on a device, which is not waited for."""
    value = host_number(lr)
    return id(value) if isinstance(value, Tensor) else value
