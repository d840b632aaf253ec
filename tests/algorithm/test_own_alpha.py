"""RMSprop (and ASGD) call one of their own constants "alpha"; it stays theirs, beside FPTT's."""

import copy

import pytest
import torch
from torch.optim import ASGD, RMSprop

from fptt_dist.algorithm import FPTT

from .helpers import advance, noise, parameters, same_bits, set_gradients, snapshot


def test_the_bases_alpha_is_untouched_and_fptts_takes_its_name_in_the_groups() -> None:
    params = parameters()
    groups = [{"params": params[:1], "alpha": 0.7}, {"params": params[1:]}]
    optimizer = FPTT(RMSprop(groups, lr=0.1, alpha=0.9), alpha=0.25)
    assert [(g["alpha"], g["base_alpha"]) for g in optimizer.param_groups] == [(0.25, 0.7), (0.25, 0.9)]
    gradients = noise(0, params)
    set_gradients(params, gradients)
    optimizer.step()
    for p, g, smoothing in zip(params, gradients, (0.7, 0.9, 0.9), strict=True):
        torch.testing.assert_close(optimizer.state[p]["square_avg"], (1 - smoothing) * g.square())
    assert [(g["alpha"], g["base_alpha"]) for g in optimizer.param_groups] == [(0.25, 0.7), (0.25, 0.9)]


@pytest.mark.parametrize("make", [RMSprop, ASGD])
def test_a_schedule_of_fptts_alpha_does_not_reach_the_base(make: type) -> None:
    """At α = 0 for three updates, then α > 0: the first three are the base's own."""
    params, control = parameters(), parameters()
    optimizer, plain = FPTT(make(params, lr=0.02), alpha=0.0), make(control, lr=0.02)
    for t in range(4):
        if t == 3:
            optimizer.param_groups[0]["alpha"] = 0.5
        assert same_bits([p.detach() for p in params], [p.detach() for p in control])
        set_gradients(params, noise(t, params))
        set_gradients(control, noise(t, control))
        optimizer.step()
        plain.step()
    assert not torch.equal(params[0], control[0])
    assert plain.param_groups[0]["alpha"] == optimizer.param_groups[0]["base_alpha"]


def test_both_alphas_travel_through_the_state_dict() -> None:
    params, others = parameters(), parameters(seed=1)
    optimizer = FPTT(RMSprop(params, lr=0.05, alpha=0.8), alpha=0.25)
    advance(optimizer, params, 0, 3)
    optimizer.param_groups[0]["alpha"] = 0.75
    other = FPTT(RMSprop(others, lr=0.05), alpha=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    advance(other, others, 3, 5)
    advance(optimizer, params, 3, 5)
    assert same_bits(snapshot(other, others), snapshot(optimizer, params))
    assert (other.param_groups[0]["alpha"], other.param_groups[0]["base_alpha"]) == (0.75, 0.8)


def test_the_alphas_are_back_after_a_base_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    base = RMSprop(params, lr=0.05, alpha=0.8)
    optimizer = FPTT(base, alpha=0.25)

    def fail() -> None:
        assert base.param_groups[0]["alpha"] == 0.8
        raise FloatingPointError

    monkeypatch.setattr(base, "step", fail)
    set_gradients(params, noise(0, params))
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert (optimizer.param_groups[0]["alpha"], optimizer.param_groups[0]["base_alpha"]) == (0.25, 0.8)


def test_a_group_added_later_gets_both() -> None:
    params = parameters()
    optimizer = FPTT(RMSprop(params[:1], lr=0.05, alpha=0.8), alpha=0.25)
    optimizer.add_param_group({"params": params[1:2], "alpha": 0.5})
    optimizer.add_param_group({"params": params[2:], "base_alpha": 0.6})
    assert [(g["alpha"], g["base_alpha"]) for g in optimizer.param_groups] == [(0.25, 0.8), (0.5, 0.8), (0.25, 0.6)]
