"""Linear recurrences h_t = a_t ∘ h_{t−1} + b_t over a whole window.

    window   | block 1: 8 steps | block 2 | … | block n | rest |
    1. each block's product of a and last h from h = 0      8 steps for all blocks at once
    2. the h at every block's end                           the same recurrence over n blocks
    3. every h, each block from where the one before ended  8 steps for all blocks at once, then the rest

A window of S steps is O(log S) operations, on tensors of n steps each, that add and multiply what the recurrence does
and nothing else: no logarithm, no quotient, no product of more than the window's a. Backwards it is the same recurrence
from the last step to the first.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 8  # steps of a block
SHORT = 4 * BLOCK  # steps up to which one after another is no more operations than in blocks


def scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """h_t = a_t ∘ h_{t−1} + b_t at every step, with gradients of the first order.

    Computed in the widest type of the three, so that a start of float32 keeps the recurrence out of half precision.

    Args:
        a: (S, B, H), or (H,) where it is the same at every step; real or complex.
        b: (S, B, H), at least one step.
        start: h_0 (B, H).

    Returns:
        h (S, B, H).
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), start.dtype)
    a, b, start = a.to(dtype), b.to(dtype), start.to(dtype)
    return torch.addcmul(b, a, start[None]) if len(b) == 1 else _Scan.apply(a, b, start)


class _Scan(torch.autograd.Function):
    """With g the gradient of h: λ_t = g_t + ā_{t+1} ∘ λ_{t+1}, ∂b = λ, ∂a_t = λ_t ∘ h̄_{t−1}, ∂start = ā_1 ∘ λ_1."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
        h = torch.empty_like(b)
        _fill(h, a, b, start, reverse=False)
        ctx.save_for_backward(a, h, start)
        return h

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        a, h, start = ctx.saved_tensors
        constant, conjugate = a.ndim == 1, a.conj().resolve_conj()
        multiplier = torch.empty_like(h)
        multiplier[-1] = g[-1]
        _fill(multiplier[:-1], conjugate if constant else conjugate[1:], g[:-1], g[-1], reverse=True)
        of_a = of_start = None
        if ctx.needs_input_grad[0]:
            of_a = torch.empty_like(h)
            torch.mul(multiplier[0], start.conj(), out=of_a[0])
            torch.mul(multiplier[1:], h[:-1].conj(), out=of_a[1:])
            of_a = of_a.sum((0, 1)) if constant else of_a
        if ctx.needs_input_grad[2]:
            of_start = (conjugate if constant else conjugate[0]) * multiplier[0]
        return of_a, multiplier, of_start


def _fill(h: Tensor, a: Tensor, b: Tensor, start: Tensor, *, reverse: bool) -> None:
    """Write the recurrence's values into h, from the first step on or from the last step back."""
    steps, constant = len(b), a.ndim == 1
    if steps <= SHORT:
        for t in reversed(range(steps)) if reverse else range(steps):
            start = torch.addcmul(b[t], a if constant else a[t], start, out=h[t])
        return
    blocks = steps // BLOCK
    rest = steps - blocks * BLOCK
    whole, left = (slice(rest, None), slice(rest)) if reverse else (slice(-rest or None), slice(steps - rest, None))
    h_r, b_r = (part[whole].unflatten(0, (blocks, BLOCK)).unbind(1) for part in (h, b))  # (n, B, H) at r-th steps
    a_r = (a,) * BLOCK if constant else a[whole].unflatten(0, (blocks, BLOCK)).unbind(1)
    order = list(reversed(range(BLOCK)) if reverse else range(BLOCK))
    first, last = order[0], order[-1]

    product, end = a_r[first], b_r[first]
    for r in order[1:]:
        product, end = a_r[r] * product, torch.addcmul(b_r[r], a_r[r], end)
    _fill(h_r[last], product, end, start, reverse=reverse)

    beginning, later, earlier = (-1, slice(-1), slice(1, None)) if reverse else (0, slice(1, None), slice(-1))
    a_0, a_later = (a, a) if constant else (a_r[first][beginning], a_r[first][later])
    torch.addcmul(b_r[first][beginning], a_0, start, out=h_r[first][beginning])
    torch.addcmul(b_r[first][later], a_later, h_r[last][earlier], out=h_r[first][later])
    for before, r in pairwise(order[:-1]):
        torch.addcmul(b_r[r], a_r[r], h_r[before], out=h_r[r])
    if rest:
        edge = h_r[last][0 if reverse else -1]
        _fill(h[left], a if constant else a[left], b[left], edge, reverse=reverse)
