"""What is true of W, W̄ and λ whatever the data, checked on trajectories of the torch implementation."""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer, RMSprop

from fptt_dist.algorithm import FPTT

from .helpers import noise, parameters, scaled_dual, set_gradients

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


class Scripted(Optimizer):
    """Moves every parameter by the same given displacements, whatever the gradients."""

    def __init__(self, params: list[Parameter], moves: list[Tensor]) -> None:
        super().__init__(params, {"lr": 1.0})
        self.moves = iter(moves)

    def step(self, closure: Callable | None = None) -> Any:
        """The next displacement."""
        move = next(self.moves)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(move)


class ArgMin(Optimizer):
    """One Newton step with Hessian A + α: exact on a quadratic with FPTT's quadratic regularizer on top."""

    def __init__(self, params: list[Parameter], hessian: Tensor) -> None:
        super().__init__(params, {"lr": 1.0})
        self.hessian = hessian

    def step(self, closure: Callable | None = None) -> Any:
        """W ← W − (A + α)⁻¹ v."""
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(torch.linalg.solve(self.hessian + group["alpha"] * torch.eye(len(p)), p.grad))


@pytest.fixture(autouse=True)
def double_by_default() -> Iterator[None]:
    """Identities are checked in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_at_half_the_center_looks_ahead_by_the_old_dual(subtests: pytest.Subtests) -> None:
    """β = ½: W̄_{t+1} = W_{t+1} − λ_t/(2α)."""
    for make, update in product((SGD, Adam, RMSprop), ("gradient", "proximal")):
        with subtests.test(make=make, update=update):
            for beta, holds in ((0.5, True), (0.6, False)):
                params = parameters(torch.float64)
                options = {"beta": beta, "update_rule": update, "dual_weight": 0.7, "max_norm": 1.0}
                optimizer = FPTT(make(params, lr=0.05), alpha=1.5, **options)
                found = []
                for t in range(12):
                    set_gradients(params, noise(t, params))
                    before = [optimizer.dual(p) for p in params]
                    optimizer.step()
                    found += [
                        torch.allclose(optimizer.center(p), p - lam / 3.0, **CLOSE)
                        for p, lam in zip(params, before, strict=True)
                    ]
                assert all(found) is holds


def test_the_center_is_a_combination_of_old_center_new_weights_and_old_dual(subtests: pytest.Subtests) -> None:
    """W̄' = (1 − 2β) W̄ + 2β W' − β u, through changes of α too."""
    for beta in (0.1, 0.5, 0.7, 1.0):
        with subtests.test(beta=beta):
            params = parameters(torch.float64)
            optimizer = FPTT(Adam(params, lr=0.05), alpha=0.4, beta=beta)
            set_gradients(params, noise(0, params))
            optimizer.step()
            for t in range(1, 12):
                centers = [optimizer.center(p).clone() for p in params]
                duals = [scaled_dual(optimizer, p) for p in params]
                optimizer.param_groups[0]["alpha"] *= 1.2
                set_gradients(params, noise(t, params))
                optimizer.step()
                for p, center, u in zip(params, centers, duals, strict=True):
                    torch.testing.assert_close(
                        optimizer.center(p), (1 - 2 * beta) * center + 2 * beta * p.detach() - beta * u, **CLOSE
                    )
                    assert (optimizer.center(p) - p).abs().max() > 1e-6


@pytest.mark.parametrize("beta", [0.5, 0.7])
def test_given_the_steps_the_centers_path_does_not_depend_on_alpha(beta: float) -> None:
    moves = [noise(t, [torch.zeros(5)])[0] for t in range(25)]
    paths, duals = [], []
    for alpha in (0.0, 0.01, 10.0):
        p = Parameter(torch.zeros(5))
        optimizer = FPTT(Scripted([p], moves), alpha=alpha, beta=beta)
        path = []
        for _ in moves:
            p.grad = torch.zeros(5)
            optimizer.step()
            path.append(optimizer.center(p).clone())
        paths.append(torch.stack(path))
        duals.append(optimizer.dual(p))
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(paths[0], paths[2])
    torch.testing.assert_close(duals[2], 1000.0 * duals[1])
    assert duals[0].abs().max() == 0.0 < duals[1].abs().max()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_without_steps_the_center_returns_with_poles_of_modulus_root_one_minus_beta(beta: float) -> None:
    """With W at rest, e = W − W̄ obeys a second-order recursion; both its roots have modulus √(1 − β)."""
    p = Parameter(torch.zeros(4))
    moves = [torch.tensor([1.0, -2.0, 0.5, 3.0])] + [torch.zeros(4)] * 12
    optimizer = FPTT(Scripted([p], moves), alpha=1.0, beta=beta)
    distance = []
    for _ in moves:
        p.grad = torch.zeros(4)
        optimizer.step()
        distance.append((p - optimizer.center(p)).detach().numpy().copy())
    e = np.array(distance)[:, 0]
    system = np.stack([e[1:-1], e[:-2]], axis=1)
    a, b = np.linalg.lstsq(system, e[2:], rcond=None)[0]
    np.testing.assert_allclose(system @ [a, b], e[2:], atol=1e-12)
    np.testing.assert_allclose(np.abs(np.roots([1.0, -a, -b])), math.sqrt(1 - beta), rtol=1e-8)


def minimise(alphas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """W_{t+1} and g_t = ∇ℓ_t(W_{t+1}) of exact minimisation on four quadratics in turn."""
    hessian = torch.diag(torch.tensor([1.0, 2.0, 0.5]))
    targets = noise(7, [torch.zeros(4, 3)])[0]
    p = Parameter(torch.zeros(3))
    optimizer = FPTT(ArgMin([p], hessian), alpha=1.0)
    weights, gradients = [], []
    for t, alpha in enumerate(alphas):
        optimizer.param_groups[0]["alpha"] = alpha
        p.grad = hessian @ (p.detach() - targets[t % 4])
        optimizer.step()
        weights.append(p.detach().numpy().copy())
        gradients.append((hessian @ (p.detach() - targets[t % 4])).numpy())
    return np.array(weights), np.array(gradients)


@pytest.mark.parametrize("alpha", [1.0, 5.0, 50.0])
def test_exact_minimisation_filters_the_gradients(alpha: float) -> None:
    """W_{t+2} = W_{t+1} − (1/α)[g_{t+1} − g_t + ½ g_{t−1}]."""
    w, g = minimise([alpha] * 60)
    expected = w[1:-1] - (g[2:] - g[1:-1] + 0.5 * g[:-2]) / alpha
    np.testing.assert_allclose(w[2:], expected, atol=1e-12)
    assert np.abs(w[2:] - (w[1:-1] - g[2:] / alpha)).max() > 1e-4


def test_exact_minimisation_leaves_the_last_gradient_in_the_dual() -> None:
    hessian = torch.diag(torch.tensor([1.0, 2.0]))
    p = Parameter(torch.tensor([1.0, -3.0]))
    optimizer = FPTT(ArgMin([p], hessian), alpha=2.0)
    for t in range(8):
        target = noise(t, [p])[0]
        p.grad = hessian @ (p.detach() - target)
        optimizer.step()
        torch.testing.assert_close(optimizer.dual(p), hessian @ (p.detach() - target), **CLOSE)


def test_a_constant_alpha_sends_the_mean_gradient_to_zero_but_keeps_cycling_until_alpha_grows() -> None:
    w, g = minimise([5.0] * 1200)
    grown, _ = minimise([5.0 + 0.25 * t for t in range(1200)])
    cycle, quieter = np.ptp(w[-4:], axis=0).max(), np.ptp(grown[-4:], axis=0).max()
    assert np.abs(g[-400:].mean(0)).max() < 1e-3 < np.abs(g[-4:]).max()
    assert quieter < 0.1 * cycle


@pytest.mark.parametrize(("alpha", "lr"), [(1.0, 0.1), (4.0, 0.2), (0.5, 0.01)])
def test_a_constant_gradient_leaves_a_fraction_of_itself_in_the_dual(alpha: float, lr: float) -> None:
    """SGD, β = ½: λ → g · 2αη / (1 + αη)."""
    p = Parameter(torch.zeros(2))
    optimizer = FPTT(SGD([p], lr=lr), alpha=alpha)
    g = torch.tensor([1.0, -0.3])
    for _ in range(400):
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(optimizer.dual(p), g * 2 * alpha * lr / (1 + alpha * lr), rtol=1e-9, atol=1e-12)


def test_the_mean_of_the_slow_variables_is_driven_by_the_mean_of_the_weights() -> None:
    """Workers with different data, α, c, κ, η, metric and base; the same β."""
    settings = [
        FPTT(SGD(parameters(), lr=0.1), alpha=0.3, beta=0.7),
        FPTT(Adam(parameters(), lr=0.02), alpha=0.5, beta=0.7, metric="preconditioned", prox_weight=0.5),
        FPTT(Adam(parameters(), lr=0.03, amsgrad=True), alpha=2.0, beta=0.7, dual_weight=0.4),
        FPTT(SGD(parameters(), lr=0.05, momentum=0.5), alpha=1.0, beta=0.7, update_rule="proximal", max_norm=1.0),
    ]
    for worker in settings:  # one start for all
        with torch.no_grad():
            for p, value in zip(worker.param_groups[0]["params"], parameters(torch.float64), strict=True):
                p.data = value.detach().clone()
    groups = [worker.param_groups[0]["params"] for worker in settings]

    def mean(read: Callable[[FPTT, Parameter], Tensor], i: int) -> Tensor:
        return torch.stack([read(w, g[i]).detach() for w, g in zip(settings, groups, strict=True)]).mean(0)

    centers = [p.detach().clone() for p in groups[0]]
    duals = [torch.zeros_like(p) for p in centers]
    for t in range(15):
        for r, (worker, params) in enumerate(zip(settings, groups, strict=True)):
            set_gradients(params, noise(100 * r + t, params))
            worker.step()
        for i in range(len(centers)):
            w = mean(lambda _, p: p, i)
            duals[i] = duals[i] - (w - centers[i])
            centers[i] = 0.3 * centers[i] + 0.7 * (w - duals[i])
            torch.testing.assert_close(mean(lambda o, p: o.center(p), i), centers[i], **CLOSE)
            torch.testing.assert_close(mean(scaled_dual, i), duals[i], **CLOSE)
    assert (groups[0][0] - groups[1][0]).abs().max() > 1e-3
