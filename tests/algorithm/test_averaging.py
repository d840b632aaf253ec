"""The mean of the weights over updates, and when it begins."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.averaging import NonMonotonicTrigger, WeightAverage


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) + 0.1 * p.detach()
    optimizer.step()


def fptt(params: list[nn.Parameter], alpha: float = 0.3, update: str = "gradient") -> FPTT:
    return FPTT(torch.optim.SGD(params, lr=0.1), alpha=alpha, update_rule=update)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_it_is_the_mean_of_the_weights_after_each_update(update: str) -> None:
    params = parameters()
    optimizer = fptt(params, update=update)
    average = WeightAverage(optimizer)
    seen: list[list[np.ndarray]] = []
    for number in range(9):
        if number == 4:
            average.begin()
            assert not average.started
        step(optimizer, params, number)
        if number >= 4:
            seen.append([p.detach().double().numpy().copy() for p in params])
        assert average.started == (number >= 4)
    for i, value in enumerate(average.values()):
        np.testing.assert_allclose(value, np.mean([weights[i] for weights in seen], axis=0), rtol=1e-6)


def test_it_is_torchs_averaged_sgd() -> None:
    """At a constant rate: torch.optim.ASGD with λ = α = 0 averages from update t0 + 2 on."""
    ours, theirs = parameters(), parameters()
    optimizer = fptt(ours, alpha=0.0)
    average = WeightAverage(optimizer)
    reference = torch.optim.ASGD(theirs, lr=0.1, lambd=0.0, alpha=0.0, t0=4)
    for number in range(12):
        if number == 5:
            average.begin()
        step(optimizer, ours, number)
        step(reference, theirs, number)
    expected: list[Tensor] = [reference.state[p]["ax"] for p in theirs]
    for value, other in zip(average.values(), expected, strict=True):
        torch.testing.assert_close(value, other)


def test_it_changes_no_weight() -> None:
    ours, others = parameters(), parameters()
    with_, without = fptt(ours), fptt(others)
    WeightAverage(with_).begin()
    for number in range(5):
        step(with_, ours, number)
        step(without, others, number)
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


def test_it_goes_on_from_a_state_dict() -> None:
    straight, parts = parameters(), parameters()
    one, other = fptt(straight), fptt(parts)
    average, first = WeightAverage(one), WeightAverage(other)
    for number in range(4):
        step(one, straight, number)
        step(other, parts, number)
        if number == 1:
            average.begin()
            first.begin()
    saved = copy.deepcopy(other.state_dict())
    again = fptt(parts)
    second = WeightAverage(again)
    again.load_state_dict(saved)
    for number in range(4, 7):
        step(one, straight, number)
        step(again, parts, number)
    assert all(torch.equal(a, b) for a, b in zip(average.values(), second.values(), strict=True))


def test_a_parameter_without_a_gradient_is_its_own_mean() -> None:
    params = parameters()
    optimizer = fptt(params)
    average = WeightAverage(optimizer)
    average.begin()
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(average.values()[1], params[1])


def test_it_begins_when_the_best_is_long_ago() -> None:
    """patience 2: a value that is worse than the best of all but the two before it."""
    trigger = NonMonotonicTrigger(2, higher_is_better=False)
    assert [trigger(value) for value in (9, 8, 7, 7.5, 6, 6.5, 6.4, 6.3, 6.2)] == [False] * 7 + [True, True]
    rising = NonMonotonicTrigger(2, higher_is_better=True)
    assert [rising(-value) for value in (9, 8, 7, 7.5, 6, 6.5, 6.4, 6.3, 6.2)] == [False] * 7 + [True, True]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 6))
def test_it_never_begins_while_values_fall(values: list[int], patience: int) -> None:
    trigger = NonMonotonicTrigger(patience, higher_is_better=False)
    assert not any(trigger(value) for value in sorted(values, reverse=True))
