"""FPTT's update as elementwise operations on lists of tensors.

    F   = α [c (W − W̄) − κ u]                      the regularizer's gradient (`regularizer_gradient`)
    u'  = u − (W' − W̄)                             the dual's recursion (`update_dual_and_center`)
    W̄'  = (1 − β) W̄ + β (W' − u')                  the slow weights (`update_center`)
    W'  = (Ŵ + ηα (c W̄ + κ u)) / (1 + ηα c)        the implicit step (`proximal_step`)

Independent of optimizers, graphs and process groups: the same code runs on full tensors, flat shards and DTensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]
GROUPED = ("alpha", "beta", "dual_weight", "prox_weight")  # FPTT's own hyper-parameters of a group


@dataclass(frozen=True)
class Constants:
    """FPTT's own hyper-parameters that are equal for all groups; see `FPTT`."""

    update_rule: str
    metric: str
    max_norm: float | None
    clip_scope: str


def weights_of(group: Mapping[str, Any]) -> dict[str, float]:
    """Return c and κ of a group, as keyword arguments."""
    return {"prox_weight": group["prox_weight"], "dual_weight": group["dual_weight"]}


def gradients(params: Iterable[Tensor]) -> Tensors:
    """The gradients of those parameters that have one."""
    return [p.grad for p in params if p.grad is not None]


def regularizer_gradient(
    weights: Tensors, centers: Tensors, duals: Tensors, *, alpha: float, prox_weight: float, dual_weight: float
) -> Tensors:
    """Return the regularizer's gradient α [c (W − W̄) − κ u], with the slow weights W̄ and the scaled dual u = λ/α."""
    gradient = torch._foreach_sub(weights, centers)
    torch._foreach_mul_(gradient, alpha * prox_weight)
    torch._foreach_add_(gradient, duals, alpha=-alpha * dual_weight)
    return list(gradient)


def update_dual_and_center(weights: Tensors, centers: Tensors, duals: Tensors, *, beta: float) -> None:
    """Update u, then W̄, in place, after the weights have become W'."""
    torch._foreach_sub_(duals, torch._foreach_sub(weights, centers))
    update_center(weights, centers, duals, beta=beta)


def update_center(weights: Tensors, centers: Tensors, duals: Tensors, *, beta: float) -> None:
    """W̄ ← (1 − β) W̄ + β (W' − u') in place."""
    torch._foreach_mul_(centers, 1.0 - beta)
    torch._foreach_add_(centers, torch._foreach_sub(weights, duals), alpha=beta)


def proximal_step(
    weights: Tensors,
    centers: Tensors,
    duals: Tensors,
    *,
    lr: float | Tensor,
    alpha: float,
    prox_weight: float,
    dual_weight: float,
) -> None:
    """Solve the regularizer exactly after the base optimizer's step: W ← (Ŵ + ηα(c W̄ + κ u)) / (1 + ηα c) in place."""
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
        tensors: local tensors (full, or this worker's shards).
        reduce: maps the local sum of squares (float64) to the global one, for shards.
        device: where the norm of no tensors lives.
    """
    norm = torch.nn.utils.get_total_norm(list(tensors)) if tensors else torch.zeros((), device=device)
    if reduce is None:
        return norm
    return reduce(norm.double().square()).sqrt().to(norm.dtype)
