"""An update per step as other programs make it: the recipe of docs/frameworks.md, beside the equations.

At each step t of a sequence, with n the number of a parameter's elements and s the recurrent state:

    s'  = f(W, s),  g  = ∇ℓ_t at (W, s)
    W'  = W − η (g + α/n (W − W̄) − λ/(2n))      the gradient of ℓ_t + α/2 mean((W − W̄ − λ/(2α))²)
    λ'  = ∇ℓ_t at (W', s')                       from the advanced state
    W̄'  = (W̄ + W')/2 − λ'/(2α)

The last step renews neither λ nor W̄, and λ is 0 at each sequence's start.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fptt_dist import FPTT

N, INPUTS, STEPS, ALPHA, RATE, MOMENTUM = 4, 3, 5, 0.7, 0.05, 0.9


def cell(w: Tensor, r: Tensor, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(x @ w.T + h @ r.T)


def reference(weights: list[Tensor], x: Tensor, y: Tensor, sequences: int, momentum: float) -> list[Tensor]:
    """W and W̄ after some sequences, from the equations alone."""

    def gradient(at: list[Tensor], x: Tensor, y: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
        leaves = [p.clone().requires_grad_() for p in at]
        after = cell(leaves[0], leaves[1], x, h)
        return list(torch.autograd.grad((after - y).square().mean(), leaves)), after.detach()

    center, buffers = [p.clone() for p in weights], [torch.zeros_like(p) for p in weights]
    for s in range(sequences):
        h, dual = torch.zeros_like(y[0, 0]), [torch.zeros_like(p) for p in weights]
        for t in range(STEPS):
            grads, h = gradient(weights, x[s, t], y[s, t], h)
            for i, g in enumerate(grads):
                n = weights[i].numel()
                v = g + ALPHA / n * (weights[i] - center[i]) - dual[i] / (2 * n)
                buffers[i] = momentum * buffers[i] + v
                weights[i] = weights[i] - RATE * buffers[i]
            if t < STEPS - 1:
                dual, _ = gradient(weights, x[s, t], y[s, t], h)
                center = [(c + p) / 2 - d / (2 * ALPHA) for c, p, d in zip(center, weights, dual, strict=True)]
    return [*weights, *center]


def test_an_update_per_step_with_a_mean_penalty() -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(N, size, dtype=torch.float64)) for size in (INPUTS, N)]
    x, y = (torch.randn(3, STEPS, 6, size, dtype=torch.float64) for size in (INPUTS, N))
    expected = reference([p.detach().clone() for p in params], x, y, 3, MOMENTUM)

    groups = [{"params": [p], "prox_weight": 1 / p.numel(), "dual_weight": 1 / (2 * p.numel())} for p in params]
    base = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    optimizer = FPTT(base, alpha=ALPHA, beta=0.5, update_rule="second_gradient")
    states: list[Tensor] = []

    def closure(s: int, t: int) -> Tensor:
        optimizer.zero_grad()
        after = cell(params[0], params[1], x[s, t], states[-1])
        loss = (after - y[s, t]).square().mean()
        loss.backward()
        states.append(after.detach())
        return loss

    for s in range(3):
        optimizer.reset_to_center(weights=False)
        states.append(torch.zeros_like(y[0, 0]))
        for t in range(STEPS):
            _, centers, _ = optimizer.slow_state()
            kept = [center.clone() for center in centers]
            optimizer.step(partial(closure, s, t))
            states.pop()  # of the second run
            if t == STEPS - 1:
                for center, value in zip(centers, kept, strict=True):
                    center.copy_(value)

    found = [p.detach() for p in params] + [optimizer.center(p) for p in params]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert (found[0] - found[2]).abs().max() > 1e-3
