"""FPTT's update as elementwise operations on lists of tensors.

    F   = α [c (W − W̄) − κ u]                      the force (`force`)
    u'  = u − (W' − W̄)                             the dual's recursion (`renew`)
    W̄'  = (1 − β) W̄ + β (W' − u')                  the slow variable (`renew`)
    W'  = (Ŵ + ηα (c W̄ + κ u)) / (1 + ηα c)        the implicit step (`implicit_step`)

Nothing here knows an optimizer, a graph or a process: the same code runs on whole tensors, flat shards and DTensors.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


def gradients(params: Iterable[Tensor]) -> Tensors:
    """The gradients of those parameters that have one."""
    return [p.grad for p in params if p.grad is not None]


def force(
    weights: Tensors, centers: Tensors, duals: Tensors, *, alpha: float, prox_weight: float, dual_weight: float
) -> Tensors:
    """The pull α [c (W − W̄) − κ u] towards the slow variable, corrected by the scaled dual u = λ/α."""
    pull = torch._foreach_sub(weights, centers)
    torch._foreach_mul_(pull, alpha * prox_weight)
    torch._foreach_add_(pull, duals, alpha=-alpha * dual_weight)
    return list(pull)


def renew(weights: Tensors, centers: Tensors, duals: Tensors, *, beta: float) -> None:
    """Renew u, then W̄, in place, after the weights have moved to W'."""
    torch._foreach_sub_(duals, torch._foreach_sub(weights, centers))
    renew_centers(weights, centers, duals, beta=beta)


def renew_centers(weights: Tensors, centers: Tensors, duals: Tensors, *, beta: float) -> None:
    """W̄ ← (1 − β) W̄ + β (W' − u') in place."""
    torch._foreach_mul_(centers, 1.0 - beta)
    torch._foreach_add_(centers, torch._foreach_sub(weights, duals), alpha=beta)


def implicit_step(
    weights: Tensors,
    centers: Tensors,
    duals: Tensors,
    *,
    lr: float | Tensor,
    alpha: float,
    prox_weight: float,
    dual_weight: float,
) -> None:
    """Solve the pull exactly after the base optimizer's step: W ← (Ŵ + ηα(c W̄ + κ u)) / (1 + ηα c) in place."""
    target = torch._foreach_mul(centers, prox_weight)
    torch._foreach_add_(target, duals, alpha=dual_weight)
    torch._foreach_mul_(target, lr * alpha)
    torch._foreach_add_(weights, target)
    torch._foreach_div_(weights, 1.0 + lr * alpha * prox_weight)


def copy(into: Tensors, values: Iterable[Tensor]) -> None:
    """Copy tensor by tensor, in place: DTensors have no multi-tensor copy."""
    for target, value in zip(into, values, strict=True):
        target.copy_(value)


def global_norm(
    tensors: Sequence[Tensor],
    reduce: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The 2-norm over all elements of all tensors, a 0-dimensional tensor.

    Args:
        tensors: local tensors (whole, or this process's shards).
        reduce: maps the local sum of squares (float64) to the global one, for shards.
        device: where the norm of no tensors lives.
    """
    norm = torch.nn.utils.get_total_norm(list(tensors)) if tensors else torch.zeros((), device=device)
    if reduce is None:
        return norm
    return reduce(norm.double().square()).sqrt().to(norm.dtype)
