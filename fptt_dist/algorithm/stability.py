"""How strong the explicit pull may be before it throws the weights about instead of holding them.

Without a data gradient one explicit update is linear in q (the momentum buffer), e = W − W̄ and u. With a = αη,
F = a (c e − κ u), momentum m and dampening d:

    q' = m q + (1 − d) F          D = W' − W = −q'   (Nesterov: −(F + m q'))
    e' = (1 − 2β)(e + D) + β u    u' = u − (e + D)

The pull is stable while the spectral radius of that 3×3 matrix stays at 1 or below.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from fptt_dist.algorithm.metric import host_number


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
    pull = a[..., None] * (prox_weight * e - dual_weight * u)
    buffer = momentum * q + (1.0 - dampening) * pull
    moved = e - (pull + momentum * buffer if nesterov else buffer)
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
    """The smallest αη at which the explicit pull becomes unstable; infinity where none is found below 10⁴.

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


def pull_dynamics(
    base: Optimizer, group: dict[str, Any], lr: float, metric: str
) -> tuple[float, dict[str, Any] | None]:
    """What `explicit_limit` needs to know of a base optimizer.

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


def instability(
    base: Optimizer, group: dict[str, Any], metric: str, beta: float, *, prox_weight: float, dual_weight: float
) -> str | None:
    """Return what to warn of where a group's α is past its limit, or None; also where η is a tensor on a device.

    Args:
        base: the optimizer that moves the weights.
        group: one of its groups, with α.
        metric: "euclidean" or "preconditioned".
        beta: β.
        prox_weight: c.
        dual_weight: κ.
    """
    lr = host_number(group["lr"])
    if group["alpha"] == 0.0 or isinstance(lr, Tensor):
        return None
    scale, dynamics = pull_dynamics(base, group, lr, metric)
    if dynamics is None:
        return None
    limit = explicit_limit(beta, prox_weight, dual_weight, **dynamics) / scale
    if group["alpha"] <= limit * (1.0 + 1e-6):
        return None
    prox = ', or take update="prox"' if metric == "euclidean" else ""
    return (
        f"alpha={group['alpha']:g} is past the explicit step's stability limit, alpha < {limit:.3g} for "
        f"{type(base).__name__} with lr={lr:g}, beta={beta:g}, prox_weight={prox_weight:g}, "
        f"dual_weight={dual_weight:g}: the weights will oscillate. Lower alpha or the learning rate{prox}"
    )
