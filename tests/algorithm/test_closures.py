"""`step(closure)`: how often it is called, in which mode, and what second_gradient makes of the second gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from fptt_dist.algorithm import FPTT

from .helpers import (
    BASES,
    Clip,
    Update,
    advance,
    noise,
    parameters,
    quadratic,
    same_bits,
    set_gradients,
    snapshot,
    two_groups,
)


def counted(closure: Callable[[], Tensor], calls: list[bool]) -> Callable[[], Tensor]:
    """The closure, noting at each call whether gradients are enabled."""

    def wrapped() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return closure()

    return wrapped


@pytest.mark.parametrize(("update", "times"), [("gradient", 1), ("proximal", 1), ("second_gradient", 2)])
def test_the_closure_is_called_with_gradients_enabled_and_its_first_loss_is_returned(
    update: Update, times: int
) -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule=update)
    for t in range(3):
        calls: list[bool] = []
        expected = quadratic(optimizer, params, t)().detach()
        with torch.no_grad():
            loss = optimizer.step(counted(quadratic(optimizer, params, t), calls))
            assert not torch.is_grad_enabled()
        assert calls == [True] * times
        assert torch.equal(loss.detach(), expected)


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_a_closure_is_the_same_as_gradients_computed_before(update: Update) -> None:
    ends = []
    for use in (True, False):
        params = parameters()
        optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule=update)
        for t in range(5):
            closure = quadratic(optimizer, params, t)
            if use:
                optimizer.step(closure)
            else:
                closure()
                assert optimizer.step() is None
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)


@pytest.mark.parametrize("clip", ["total", "gradient"])
def test_the_dual_is_the_second_gradient_unclipped(clip: Clip) -> None:
    params = parameters()
    optimizer = two_groups(
        params, BASES["sgd"], alpha=0.5, update_rule="second_gradient", max_norm=0.01, clip_scope=clip
    )
    for t in range(3):
        optimizer.step(quadratic(optimizer, params, t))
        targets = noise(t, params)
        for i, p in enumerate(params):
            second = (i + 1) * (p.detach() - targets[i])
            torch.testing.assert_close(optimizer.dual(p), second)
            assert second.norm() > 0.1


def test_a_closure_that_forgets_to_clear_the_gradients_still_gives_the_second_alone() -> None:
    p = Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FPTT(SGD([p], lr=0.1), alpha=0.5, update_rule="second_gradient")

    def closure() -> Tensor:
        loss = 0.5 * p.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, -1.8]))
    torch.testing.assert_close(optimizer.dual(p), p.detach())


def test_second_gradient_without_a_closure_is_refused_before_anything_moves() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule="second_gradient")
    set_gradients(params, noise(0, params))
    with pytest.raises(RuntimeError, match=r'update_rule="second_gradient".*closure'):
        optimizer.step()
    assert len(optimizer.state) == 0
    assert same_bits([p.detach() for p in params], [p.detach() for p in parameters()])


def test_second_gradient_without_a_closure_is_allowed_where_no_group_can_move() -> None:
    """What torch.distributed.checkpoint does; one group that can move is enough to refuse."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule="second_gradient")
    set_gradients(params, [torch.zeros_like(p) for p in params])
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in parameters()])


@pytest.mark.parametrize(("update", "factor"), [("second_gradient", 0.25), ("gradient", 1.0)])
def test_a_change_of_alpha_rescales_the_stored_dual_in_second_gradient_alone(update: Update, factor: float) -> None:
    """The regularizer in the next update, SGD at lr 1: W − W' − g = α' [(W − W̄) − u α/α'] in second_gradient."""
    p = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = FPTT(SGD([p], lr=0.125), alpha=0.5, update_rule=update)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * p.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    w, center, u = p.detach().clone(), optimizer.center(p).clone(), optimizer.state[p]["scaled_dual"].clone()
    optimizer.param_groups[0]["alpha"] = 2.0
    optimizer.step(closure)
    regularizer = (w - p.detach()) / 0.125 - w
    torch.testing.assert_close(regularizer, 2.0 * (w - center - factor * u))
    assert u.abs().min() > 1e-3


def test_a_change_of_alpha_in_second_gradient_survives_a_checkpoint() -> None:
    """Saved at one α, changed while loading: the dual is rescaled from the α that made it."""
    options: dict[str, Any] = {"alpha": 0.5, "update_rule": "second_gradient"}
    params, others = parameters(), parameters()
    optimizer, other = two_groups(params, BASES["adam"], **options), two_groups(others, BASES["adam"], **options)
    advance(optimizer, params, 0, 3)
    advance(other, others, 0, 3)
    other.load_state_dict(other.state_dict())
    for o in (optimizer, other):
        o.param_groups[0]["alpha"] = 2.0
    advance(optimizer, params, 3, 5)
    advance(other, others, 3, 5)
    assert same_bits(snapshot(optimizer, params), snapshot(other, others))


def test_an_alpha_of_zero_on_the_way_is_refused_by_second_gradient() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["sgd"], alpha=0.5, update_rule="second_gradient")
    advance(optimizer, params, 0, 1)
    optimizer.param_groups[0]["alpha"] = 0.0
    with pytest.raises(ValueError, match=r"alpha.*second_gradient"):
        optimizer.step(quadratic(optimizer, params, 1))
