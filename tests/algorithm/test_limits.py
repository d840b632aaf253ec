"""α = 0 is the base optimizer bit for bit, in float32, at tolerance 0."""

from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from fptt_dist.algorithm import FPTT

from .helpers import ADAPTIVE, BASES, Base, noise, parameters, same_bits, set_gradients, snapshot, two_groups

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "proximal": {"update_rule": "proximal"},
    "gradient clip": {"clip_scope": "gradient"},
    "other factors": {"beta": 0.9, "dual_weight": 0.5, "prox_weight": 2.0},
}


def plain(base: Base, max_norm: float | None) -> list[torch.Tensor]:
    """The weights that torch alone reaches in 20 updates."""
    params = parameters()
    optimizer = base.make([{"params": params[:-1]}, {"params": params[-1:], "lr": 0.025}], lr=0.05, **base.options)
    for t in range(20):
        set_gradients(params, noise(t, params))
        if max_norm is not None:
            clip_grad_norm_(params, max_norm)
        optimizer.step()
    return [p.detach() for p in params]


def wrapped(base: Base, **options: Any) -> tuple[FPTT, list[torch.nn.Parameter]]:
    """FPTT after the same 20 updates."""
    params = parameters()
    optimizer = two_groups(params, base, **options)
    for t in range(20):
        set_gradients(params, noise(t, params))
        optimizer.step()
    return optimizer, params


def test_no_force_is_the_base_optimizer(subtests: pytest.Subtests) -> None:
    """Each base with each variant and each norm, and each variant with each norm."""
    for (i, name), (j, variant) in product(enumerate(BASES), enumerate(VARIANTS)):
        max_norm = (None, 0.7, 1e9, float("inf"))[(i + j) % 4]
        with subtests.test(name=name, variant=variant, max_norm=max_norm):
            _, params = wrapped(BASES[name], alpha=0.0, max_norm=max_norm, **VARIANTS[variant])
            assert same_bits([p.detach() for p in params], plain(BASES[name], max_norm))
    for name in ADAPTIVE:
        with subtests.test(name=name, metric="preconditioned"):
            _, params = wrapped(BASES[name], alpha=0.0, metric="preconditioned", max_norm=0.7)
            assert same_bits([p.detach() for p in params], plain(BASES[name], 0.7))


def test_a_force_is_not_the_base_optimizer(subtests: pytest.Subtests) -> None:
    """The control: α > 0 moves the weights visibly elsewhere."""
    for name, update in product(BASES, ("gradient", "proximal")):
        with subtests.test(name=name, update=update):
            _, params = wrapped(BASES[name], alpha=0.5, update_rule=update)
            assert (params[0].detach() - plain(BASES[name], None)[0]).abs().max() > 1e-4


def test_the_slow_variables_are_kept_without_a_force() -> None:
    """So that α may grow from 0; they obey the same recursion."""
    optimizer, params = wrapped(BASES["adam"], alpha=0.0)
    center, u = optimizer.center(params[0]).clone(), optimizer.state[params[0]]["scaled_dual"].clone()
    assert (center - params[0]).abs().max() > 1e-3
    assert u.abs().max() > 1e-3
    set_gradients(params, noise(20, params))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[params[0]]["scaled_dual"], u - (params[0].detach() - center))


def test_an_alpha_of_zero_in_one_group_leaves_that_group_to_the_base() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    optimizer.param_groups[1]["alpha"] = 0.0
    for t in range(20):
        set_gradients(params, noise(t, params))
        optimizer.step()
    expected = plain(BASES["adam"], None)
    assert torch.equal(params[2], expected[2])
    assert not torch.equal(params[0], expected[0])


def test_the_first_update_feels_no_force() -> None:
    """W̄ = W and u = 0 before anything moves."""
    ends = []
    for alpha in (0.0, 3.0):
        params = parameters()
        optimizer = two_groups(params, BASES["sgd"], alpha=alpha)
        set_gradients(params, noise(0, params))
        optimizer.step()
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)
