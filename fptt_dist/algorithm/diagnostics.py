"""Norms of an update, and the scale of the base optimizer's step, for logs and for consensus."""

import torch
from torch import Tensor

from fptt_dist.algorithm import preconditioner
from fptt_dist.algorithm import update as updates
from fptt_dist.algorithm.fptt import FPTT
from fptt_dist.algorithm.plain_update import regularizer_gradient

NORMS = ("gradient", "regularizer", "center_distance", "dual")


@torch.no_grad()
def norms(optimizer: FPTT) -> dict[str, Tensor]:
    """Return 2-norms over all parameters, as 0-dim tensors; to be read between backward() and step().

    Returns:
        "gradient" ‖g‖, "regularizer" ‖D α [c (W − W̄) − κ u]‖ (of parameters with a gradient), "center_distance"
        ‖W − W̄‖, "dual" ‖λ‖.
    """
    slow, constants, groups = optimizer.slow, optimizer.constants, optimizer.param_groups
    if constants.update_rule == "second_gradient":
        for group in groups:
            slow.follow_alpha(group)
    with_gradient = [[p for p in group["params"] if p.grad is not None] for group in groups]
    regularizer = [
        regularizer_gradient(slow, constants, group, params)[1]
        for group, params in zip(groups, with_gradient, strict=True)
    ]
    started = slow.started
    centers, _ = slow.of(started)
    values = {
        "gradient": updates.gradients(slow.params),
        "regularizer": [tensor for of_group in regularizer for tensor in of_group],
        "center_distance": torch._foreach_sub(started, centers) if started else [],
        "dual": [optimizer.dual(p) for p in started],
    }
    return {name: updates.global_norm(tensors, optimizer.norm_reduce) for name, tensors in values.items()}


@torch.no_grad()
def mean_squared_scale(optimizer: FPTT) -> Tensor:
    """Return s², the square of what the base optimizer divides a gradient by, a mean over all elements (1,), float64.

    1 for SGD, (1 − momentum)² with momentum, the mean of v̂ for Adam, AdamW and RMSprop (0 before their first step).
    """
    params = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    each = torch.stack([preconditioner.mean_squared_scale(optimizer.base, group, p) for group, p in params])
    weights = torch.tensor([p.numel() for _, p in params], dtype=each.dtype, device=each.device)
    return ((each * weights).sum() / weights.sum()).reshape(1)
