"""Schedules of α: "starting with small values we gradually increase α" (Kag & Saligrama 2021).

λ = αu jumps with α by design: it is u that is kept.
"""

import math
from collections.abc import Callable

LARGEST = 1e28  # of α, so that a float32 times α does not overflow

AlphaSchedule = Callable[[float, float], float]
"""α from (progress in [0, 1], current learning rate / first learning rate)."""


def constant(alpha: float) -> AlphaSchedule:
    """α, always."""
    return lambda progress, lr_ratio: alpha


def linear(alpha: float, start: float) -> AlphaSchedule:
    """From `start` at the first batch to `alpha` at the last, in a straight line."""
    return lambda progress, lr_ratio: start + (alpha - start) * progress


def cosine(alpha: float, start: float) -> AlphaSchedule:
    """From `start` to `alpha` along half a cosine: slow at both ends."""
    return lambda progress, lr_ratio: start + (alpha - start) * 0.5 * (1.0 - math.cos(math.pi * progress))


def inverse_lr(alpha: float, maximum: float | None = None) -> AlphaSchedule:
    """α η₀/η_t: the regularizer keeps its strength relative to the step as the learning rate falls; at most `maximum`,
    or `LARGEST` without one."""

    def schedule(progress: float, lr_ratio: float) -> float:
        limit = LARGEST if maximum is None else maximum
        if lr_ratio <= 0.0:
            return alpha if maximum is None else maximum
        return min(alpha / lr_ratio, limit)

    return schedule
