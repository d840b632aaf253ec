"""State that engines read and write: the slow weights, made before the first step or not, and the base's scale."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, RMSprop

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.diagnostics import mean_squared_scale, norms

from .helpers import (
    ADAPTIVE,
    BASES,
    advance,
    noise,
    parameters,
    same_bits,
    scaled_dual,
    set_gradients,
    snapshot,
    two_groups,
)
from .test_state import COMBINATIONS, VARIANTS, through_a_file

SLOW = {"center", "scaled_dual"}


def test_slow_gives_the_states_own_tensors_in_the_order_of_the_groups() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    advance(optimizer, params, 0, 3)
    before = snapshot(optimizer, params)
    given, centers, duals = optimizer.slow_state()
    assert [id(p) for p in given] == [id(p) for p in params]
    for p, center, dual in zip(params, centers, duals, strict=True):
        assert center is optimizer.state[p]["center"]
        assert dual is optimizer.state[p]["scaled_dual"]
    assert same_bits(snapshot(optimizer, params), before)


def test_slow_before_the_first_step_is_the_weights_and_zero(subtests: pytest.Subtests) -> None:
    for name in BASES:
        with subtests.test(name=name):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5)
            _, centers, duals = optimizer.slow_state()
            for p, center, dual in zip(params, centers, duals, strict=True):
                assert torch.equal(center, p)
                assert center.data_ptr() != p.data_ptr()
                assert not center.requires_grad
                assert not dual.any()
                assert set(optimizer.state[p]) == SLOW
                assert torch.equal(optimizer.center(p), p)
                assert not optimizer.dual(p).any()
            assert all(
                same_bits(one, other) for one, other in zip(optimizer.slow_state(), optimizer.slow_state(), strict=True)
            )


def test_slow_before_the_first_step_changes_no_bit(subtests: pytest.Subtests) -> None:
    for i, (name, variant) in enumerate(COMBINATIONS):
        with subtests.test(name=name, variant=variant):
            params, control = parameters(), parameters()
            optimizer, plain = (two_groups(ps, BASES[name], **VARIANTS[variant]) for ps in (params, control))
            for _ in range(1 + i % 2):
                optimizer.slow_state()
            for t in range(6):
                advance(optimizer, params, t, t + 1)
                advance(plain, control, t, t + 1)
                assert same_bits(snapshot(optimizer, params), snapshot(plain, control))
                assert all(set(optimizer.state[p]) == set(plain.state[q]) for p, q in zip(params, control, strict=True))


def test_slow_between_two_parameters_first_steps_changes_no_bit(subtests: pytest.Subtests) -> None:
    for name in BASES:
        with subtests.test(name=name):
            params, control = parameters(), parameters()
            optimizer, plain = two_groups(params, BASES[name], alpha=0.5), two_groups(control, BASES[name], alpha=0.5)
            for t in range(6):
                for o, ps in ((optimizer, params), (plain, control)):
                    first, *others = noise(t, ps)
                    set_gradients(ps, [first, *([None, None] if t < 2 else others)])
                    o.step()
                optimizer.slow_state()
                assert same_bits(snapshot(optimizer, params[:1]), snapshot(plain, control[:1]))
                if t < 2:
                    assert [set(optimizer.state[p]) for p in params[1:]] == [SLOW, SLOW]
                    assert same_bits([p.detach() for p in params[1:]], [p.detach() for p in parameters()[1:]])
            assert same_bits(snapshot(optimizer, params), snapshot(plain, control))


def load_into_another(
    optimizer: FPTT, params: list[Parameter], name: str, **options: Any
) -> tuple[FPTT, list[Parameter]]:
    """A second optimizer with the state of the first, that went through a file, and the same weights."""
    others = [Parameter(p.detach().clone()) for p in params]
    other = two_groups(others, BASES[name], **options)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return other, others


def test_saved_between_slow_and_the_first_step(subtests: pytest.Subtests) -> None:
    for name, variant in COMBINATIONS:
        with subtests.test(name=name, variant=variant):
            params, control = parameters(), parameters()
            optimizer, plain = (two_groups(ps, BASES[name], **VARIANTS[variant]) for ps in (params, control))
            optimizer.slow_state()
            other, others = load_into_another(optimizer, params, name, **VARIANTS[variant])
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))
            advance(other, others, 0, 5)
            advance(plain, control, 0, 5)
            assert same_bits(snapshot(other, others), snapshot(plain, control))


def test_saved_where_only_some_parameters_had_a_step(subtests: pytest.Subtests) -> None:
    """The parameter with the moments may be the first or the last that the base finds."""
    for first, name in product((0, 2), BASES):
        with subtests.test(first=first, name=name):
            params, control = parameters(), parameters()
            optimizer, plain = (two_groups(ps, BASES[name], alpha=0.5) for ps in (params, control))
            for o, ps in ((optimizer, params), (plain, control)):
                set_gradients(ps, [g if i == first else None for i, g in enumerate(noise(0, ps))])
                o.step()
            optimizer.slow_state()
            other, others = load_into_another(optimizer, params, name, alpha=0.5)
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))
            advance(other, others, 1, 5)
            advance(plain, control, 1, 5)
            assert same_bits(snapshot(other, others), snapshot(plain, control))


def test_a_saved_pull_that_no_step_has_felt_is_kept(subtests: pytest.Subtests) -> None:
    """W̄ and u that a sync moved before the parameter's own first step."""
    for name in ("sgd", "adam", "rmsprop"):
        with subtests.test(name=name):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5)
            _, centers, duals = optimizer.slow_state()
            with torch.no_grad():
                for moved in (*centers, *duals):
                    moved.add_(torch.linspace(0.5, 1.0, moved.numel()).view_as(moved))
            other, others = load_into_another(optimizer, params, name, alpha=0.5)
            advance(optimizer, params, 0, 4)
            advance(other, others, 0, 4)
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))


def test_a_center_and_a_dual_of_others_pull_in_the_first_step() -> None:
    """By hand: v = g + α (W − W̄ − u), W' = W − η v, u' = u − (W' − W̄), W̄' = ¾ W̄ + ¼ (W' − u')."""
    p = Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FPTT(SGD([p], lr=0.125), alpha=0.5, beta=0.25)
    _, [center], [dual] = optimizer.slow_state()
    center.copy_(torch.tensor([3.0, -2.0]))
    dual.copy_(torch.tensor([2.0, 4.0]))
    p.grad = torch.tensor([8.0, 8.0])
    found = norms(optimizer)
    assert found["regularizer"].item() == pytest.approx(math.hypot(2.0, 2.0))
    optimizer.step()
    assert p.grad is not None
    assert torch.equal(p.grad, torch.tensor([6.0, 6.0]))
    assert torch.equal(p.detach(), torch.tensor([0.25, -2.75]))
    assert torch.equal(scaled_dual(optimizer, p), torch.tensor([4.75, 4.75]))
    assert torch.equal(optimizer.center(p), torch.tensor([1.125, -3.375]))


def test_the_first_step_feels_a_center_that_was_moved(subtests: pytest.Subtests) -> None:
    """As with a gradient of g + r where the regularizer is explicit; with another result than without for all."""
    for update, name in product(("gradient", "proximal"), BASES):
        with subtests.test(update=update, name=name):
            params, control = parameters(), parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, update_rule=update)
            plain = two_groups(control, BASES[name], alpha=0.0 if update == "gradient" else 0.5, update_rule=update)
            _, centers, duals = optimizer.slow_state()
            with torch.no_grad():
                for moved in (*centers, *duals):
                    moved.add_(torch.linspace(0.5, 1.0, moved.numel()).view_as(moved))
            regularizer = [0.5 * (p.detach() - c - u) for p, c, u in zip(params, centers, duals, strict=True)]
            gradients = noise(0, params)
            set_gradients(params, gradients)
            optimizer.step()
            added = regularizer if update == "gradient" else [torch.zeros_like(f) for f in regularizer]
            set_gradients(control, [g + f for g, f in zip(gradients, added, strict=True)])
            plain.step()
            for p, q in zip(params, control, strict=True):
                if update == "gradient":
                    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
                else:
                    assert (p - q).abs().max() > 1e-3


def test_the_preconditioned_force_has_no_unit_before_the_first_step(subtests: pytest.Subtests) -> None:
    """Without second moments there is nothing to divide by: the same first step as without a regularizer."""
    for name in ADAPTIVE:
        with subtests.test(name=name):
            params, control = parameters(), parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, metric="preconditioned")
            plain = two_groups(control, BASES[name], alpha=0.0, metric="preconditioned")
            _, centers, _ = optimizer.slow_state()
            with torch.no_grad():
                for center in centers:
                    center.add_(1.0)
            for o, ps in ((optimizer, params), (plain, control)):
                set_gradients(ps, noise(0, ps))
                o.step()
            assert all(torch.isfinite(p).all() for p in params)
            assert same_bits([p.detach() for p in params], [p.detach() for p in control])


def test_an_error_of_the_base_leaves_the_slow_variables_there() -> None:
    class Breaking(SGD):
        def step(self, closure: Any = None) -> Any:
            raise ArithmeticError

    params = parameters()
    optimizer = FPTT(Breaking(params, lr=0.1), alpha=0.5)
    _, centers, _ = optimizer.slow_state()
    set_gradients(params, noise(0, params))
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert all(optimizer.center(p) is center for p, center in zip(params, centers, strict=True))


def test_slow_ends_a_state_that_was_only_made() -> None:
    """torch.distributed.checkpoint steps with learning rates and gradients of 0; what it made is not a first step."""
    params, control = parameters(), parameters()
    optimizer, plain = FPTT(Adam(params, lr=0.0), alpha=0.5), FPTT(Adam(control, lr=0.1), alpha=0.5)
    set_gradients(params, [torch.zeros_like(p) for p in params])
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with torch.no_grad():
        for p, q in zip(params, control, strict=True):
            p.add_(1.0)
            q.add_(1.0)
    _, centers, duals = optimizer.slow_state()
    assert same_bits(centers, [p.detach() for p in params])
    assert not any(dual.any() for dual in duals)
    advance(optimizer, params, 0, 4)
    advance(plain, control, 0, 4)
    assert same_bits(snapshot(optimizer, params), snapshot(plain, control))


def scale(optimizer: FPTT) -> float:
    found = mean_squared_scale(optimizer)
    assert found.shape == (1,)
    assert found.dtype == torch.float64
    return found.item()


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 1.0), (0.9, 0.01), (0.5, 0.25)])
def test_sgds_scale(momentum: float, expected: float) -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["sgd"], alpha=0.5)
    for group in optimizer.param_groups:
        group["momentum"] = momentum
    for _ in range(2):
        assert scale(optimizer) == pytest.approx(expected, rel=1e-12)
        advance(optimizer, params, 0, 2)


def test_groups_have_their_own_momentum() -> None:
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "momentum": 0.5}]
    optimizer = FPTT(SGD(groups, lr=0.1), alpha=0.5)
    sizes = [p.numel() for p in params]
    assert scale(optimizer) == pytest.approx((sizes[0] + sizes[1] + 0.25 * sizes[2]) / sum(sizes), rel=1e-12)


def second_moment(name: str, state: dict[str, Any]) -> Tensor:
    """v̂ in float64, from torch's documentation of each optimizer."""
    options, get = BASES[name].options, {key: value.double() for key, value in state.items()}
    if "rmsprop" in name:
        return get["square_avg"] - (get["grad_avg"].square() if options.get("centered") else 0.0)
    second = get["max_exp_avg_sq"] if options.get("amsgrad") else get["exp_avg_sq"]
    return second / (1.0 - options.get("betas", (0.9, 0.999))[1] ** get["step"])


def test_the_scale_of_adaptive_optimizers_is_the_mean_of_their_second_moments(subtests: pytest.Subtests) -> None:
    for name in ADAPTIVE:
        with subtests.test(name=name):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5)
            assert scale(optimizer) == 0.0
            optimizer.slow_state()
            assert scale(optimizer) == 0.0
            damping = (1.0 - BASES[name].options.get("momentum", 0.0)) ** 2
            for t in range(3):
                advance(optimizer, params, t, t + 1)
                before = snapshot(optimizer, params)
                found = scale(optimizer)
                moments = [second_moment(name, optimizer.state[p]) * damping for p in params]
                assert found == pytest.approx(torch.cat([m.flatten() for m in moments]).mean().item(), rel=1e-6)
                assert found > 0.0
                assert same_bits(snapshot(optimizer, params), before)


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop])
def test_a_parameter_without_a_step_has_the_scale_zero_and_counts(make: Any) -> None:
    params, first = parameters(), parameters()[:1]
    optimizer, alone = FPTT(make(params, lr=0.1), alpha=0.5), FPTT(make(first, lr=0.1), alpha=0.5)
    set_gradients(params, [noise(0, params)[0], None, None])
    set_gradients(first, [noise(0, params)[0]])
    optimizer.step()
    alone.step()
    expected = scale(alone) * first[0].numel() / sum(p.numel() for p in params)
    assert scale(optimizer) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.0


def test_the_scale_is_in_the_gradients_units() -> None:
    """Gradients a hundred times as large: a scale ten thousand times as large."""
    found = []
    for factor in (1.0, 128.0):
        params = parameters()
        optimizer = FPTT(Adam(params, lr=0.1, eps=0.0), alpha=0.0)
        set_gradients(params, noise(0, params, factor))
        optimizer.step()
        found.append(scale(optimizer))
    assert found[1] == pytest.approx(128.0**2 * found[0], rel=1e-6)
