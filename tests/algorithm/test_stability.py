"""Where the explicit regularizer becomes unstable: the formula, the function, and what FPTT does on either side."""

import math
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.stability import explicit_limit, spectral_radius

ADAM = {"momentum": 0.9, "dampening": 0.9}


def closed_form(beta: float, c: float, kappa: float) -> float:
    """The limit of αη for SGD without momentum."""
    bounds = [math.inf]
    if kappa + c * (2 - 3 * beta) > 0:
        bounds.append((4 - 3 * beta) / (kappa + c * (2 - 3 * beta)))
    if beta * c > kappa:
        bounds.append(beta / (beta * c - kappa))
    if beta < 1:
        bounds.append((1 + 1 / (1 - beta)) / c)
    return min(bounds)


def test_the_limit_without_momentum_is_the_closed_form(subtests: pytest.Subtests) -> None:
    for kappa, c, beta in product((0.5, 1.0, 1.5), (0.5, 1.0, 2.0), (0.1, 0.3, 0.5, 0.7, 0.9)):
        with subtests.test(kappa=kappa, c=c, beta=beta):
            assert explicit_limit(beta, c, kappa) == pytest.approx(closed_form(beta, c, kappa), rel=1e-6)


def test_the_limit_is_the_published_value(subtests: pytest.Subtests) -> None:
    for limit, arguments in (
        (1.67, {"beta": 0.5}),
        (1.25, {"beta": 0.5, "prox_weight": 2.0}),
        (3.17, {"beta": 0.5, "momentum": 0.9}),
        (2.38, {"beta": 0.5, "prox_weight": 2.0, "momentum": 0.9}),
        (0.18, {"beta": 0.7, "prox_weight": 2.0, "momentum": 0.9}),
        (0.10, {"beta": 0.5, "prox_weight": 2.0, "dual_weight": 0.5, "momentum": 0.9}),
        (31.7, {"beta": 0.5, **ADAM}),
        (23.8, {"beta": 0.5, "prox_weight": 2.0, **ADAM}),
        (1.75, {"beta": 0.7, "prox_weight": 2.0, **ADAM}),
        (0.196, {"beta": 0.1, **ADAM}),
    ):
        with subtests.test(limit=limit, arguments=arguments):
            digits = 0.05 if limit > 10 else 0.0007 if limit == 0.196 else 0.005
            assert explicit_limit(**arguments) == pytest.approx(limit, abs=1.01 * digits)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_with_momentum_the_first_bound_is_the_limit_where_the_others_are_slack(m: float) -> None:
    """(1 + m)(4 − 3β) / (κ + c(2 − 3β)) at β = ½, c = κ = 1."""
    assert explicit_limit(0.5, momentum=m) == pytest.approx((1 + m) * 5 / 3, rel=1e-6)


def test_the_radius_crosses_one_at_the_limit_and_nowhere_below() -> None:
    limit = explicit_limit(0.5, 2.0, 0.5, 0.9)
    setting: dict[str, Any] = {"beta": 0.5, "prox_weight": 2.0, "dual_weight": 0.5, "momentum": 0.9}
    below = spectral_radius(torch.linspace(1e-3, limit * 0.999, 200), **setting)
    above = spectral_radius(torch.tensor([limit * 1.01]), **setting)
    assert below.max() <= 1.0 + 1e-9 < above.item()


SETTINGS: list[tuple[int, float, float, float, dict[str, Any]]] = [  # updates, β, c, κ
    (600, 0.5, 1.0, 1.0, {}),
    (600, 0.5, 2.0, 1.0, {}),
    (600, 0.7, 1.0, 0.5, {}),
    (600, 0.5, 1.0, 1.0, {"momentum": 0.9}),
    (1500, 0.7, 2.0, 1.0, {"momentum": 0.9}),
    (1500, 0.5, 2.0, 0.5, {"momentum": 0.9}),
    (600, 0.5, 1.0, 1.0, {"momentum": 0.6, "dampening": 0.4}),
    (600, 0.5, 1.0, 1.0, {"momentum": 0.5, "nesterov": True}),
]


def distance_after(updates: int, optimizer: FPTT, p: Parameter, curvature: float = 0.0) -> float:
    """‖W − W̄‖ after one kick and `updates` updates with the gradient `curvature` · W; infinity once beyond 10⁶."""
    for t in range(updates + 1):
        p.grad = torch.ones_like(p) if t == 0 else curvature * p.detach()
        optimizer.step()
        if t % 50 == 0 and (p - optimizer.center(p)).norm() > 1e6:
            return math.inf
    return (p - optimizer.center(p)).norm().item()


def test_below_the_limit_the_weights_settle_and_above_they_diverge(subtests: pytest.Subtests) -> None:
    for updates, beta, c, kappa, options in SETTINGS:
        with subtests.test(updates=updates, beta=beta, c=c, kappa=kappa, options=options):
            lr, limit = 0.1, explicit_limit(beta, c, kappa, **options)
            ends = {}
            for factor in (0.95, 1.05):
                p = Parameter(torch.zeros(2, dtype=torch.float64))
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    base, alpha = SGD([p], lr=lr, **options), factor * limit / lr
                    optimizer = FPTT(base, alpha=alpha, beta=beta, prox_weight=c, dual_weight=kappa)
                    ends[factor] = distance_after(updates, optimizer, p)
                assert len(caught) == (1 if factor > 1 else 0)
            assert ends[0.95] < 0.01
            assert ends[1.05] > 10.0


@pytest.mark.parametrize("m", [0.0, 0.9])
def test_curvature_of_the_data_lowers_the_limit(m: float) -> None:
    """The first bound times 1 − ηL / (2(1 + m))."""
    lr, curvature = 0.1, 8.0
    limit = explicit_limit(0.5, momentum=m) * (1 - lr * curvature / (2 * (1 + m)))
    ends = []
    for factor in (0.95, 1.05):
        p = Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = FPTT(SGD([p], lr=lr, momentum=m), alpha=factor * limit / lr)
        ends.append(distance_after(800, optimizer, p, curvature))
    assert ends[0] < 0.01
    assert ends[1] > 10.0


def test_the_exact_pull_is_stable_for_any_strength(subtests: pytest.Subtests) -> None:
    for momentum, alpha in product((0.0, 0.9), (1.0, 1e2, 1e6)):
        with subtests.test(momentum=momentum, alpha=alpha):
            p = Parameter(torch.zeros(2, dtype=torch.float64))
            optimizer = FPTT(SGD([p], lr=0.1, momentum=momentum), alpha=alpha, update_rule="proximal")
            assert distance_after(600, optimizer, p) < 1e-3


Make = Callable[..., Optimizer]
PAST: list[tuple[Make, dict[str, Any], float, str]] = [
    (lambda p: SGD(p, lr=0.5), {}, 3.4, "3.33"),
    (lambda p: SGD(p, lr=0.5, momentum=0.9), {"prox_weight": 2.0}, 4.8, "4.75"),
    (lambda p: Adam(p, lr=1e-3), {"metric": "preconditioned"}, 32.0, "31.7"),
    (lambda p: AdamW(p, lr=1e-3), {"metric": "preconditioned", "prox_weight": 2.0}, 24.0, "23.8"),
    (lambda p: Adam(p, lr=1e-3), {"metric": "preconditioned", "beta": 0.7, "prox_weight": 2.0}, 1.8, "1.75"),
    (lambda p: RMSprop(p, lr=1e-3), {"metric": "preconditioned"}, 1.7, "1.67"),
]
UNLIMITED: dict[str, tuple[Make, dict[str, Any]]] = {
    "adam": (lambda p: Adam(p, lr=0.1), {}),
    "rmsprop": (lambda p: RMSprop(p, lr=0.1), {}),
    "proximal": (lambda p: SGD(p, lr=0.1), {"update_rule": "proximal"}),
    "lr 0": (lambda p: SGD(p, lr=0.0), {}),
}


def test_past_the_limit_one_warning_gives_its_number(subtests: pytest.Subtests) -> None:
    for base, options, alpha, number in PAST:
        with subtests.test(options=options, number=number):
            for value, warned in ((alpha, 1), (0.95 * alpha, 0)):
                p = Parameter(torch.zeros(2))
                optimizer = FPTT(base([p]), alpha=value, **options)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    for _ in range(3):
                        p.grad = torch.zeros(2)
                        optimizer.step()
                assert len(caught) == warned
                assert all(w.category is UserWarning and f"alpha < {number} " in str(w.message) for w in caught)


def test_the_warning_comes_when_a_schedule_crosses_the_limit() -> None:
    p = Parameter(torch.zeros(2))
    optimizer = FPTT(SGD([p], lr=0.1), alpha=1.0)
    p.grad = torch.zeros(2)
    optimizer.step()
    optimizer.param_groups[0]["alpha"] = 17.0
    with pytest.warns(UserWarning, match=r"alpha=17 .* alpha < 16\.7 .*lr=0\.1"):
        optimizer.step()


def test_no_limit_no_warning(subtests: pytest.Subtests) -> None:
    for name, (base, options) in UNLIMITED.items():
        with subtests.test(name=name):
            p = Parameter(torch.zeros(2))
            optimizer = FPTT(base([p]), alpha=1e6, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(2):
                    p.grad = torch.zeros(2)
                    optimizer.step()


def test_the_warning_comes_when_momentum_changes_the_limit() -> None:
    p = Parameter(torch.ones(2))
    optimizer = FPTT(SGD([p], lr=1e-2, momentum=0.9), alpha=200.0)
    for momentum in (0.9, 0.0):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = torch.ones(2)
        if momentum:
            optimizer.step()
            continue
        with pytest.warns(UserWarning, match="stability limit"):
            optimizer.step()
