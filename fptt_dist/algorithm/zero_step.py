"""The step with learning rates and gradients of 0 by which torch.distributed.checkpoint makes an optimizer's state."""

from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from fptt_dist.algorithm.metric import host_number


def only_makes_state(active: list[tuple[dict[str, Any], list[Tensor]]]) -> bool:
    """Tell that step from others: learning rates and gradients are all 0.

    Args:
        active: groups, each with its parameters that have a gradient.
    """
    if any(host_number(group["lr"]) != 0.0 for group, _ in active):
        return False
    return not any(bool(p.grad.any()) for _, params in active for p in params if p.grad is not None)


def forget_step(base: Optimizer, state: dict[str, Any]) -> None:
    """Bring a state that only should be made back to 0, so that a copy saved of it is the state before any step."""
    if isinstance(base, SGD | Adam | RMSprop):
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
