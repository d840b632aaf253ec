"""Whole trajectories against the numpy reference: every variant, base and clip, two groups, α changing."""

from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from fptt_dist.algorithm import FPTT

from . import reference
from .helpers import (
    ADAPTIVE,
    BASES,
    Base,
    Update,
    noise,
    numpy_of,
    parameters,
    quadratic,
    scaled_dual,
    set_gradients,
    two_groups,
)

CLIPS: dict[str, dict[str, Any]] = {
    "unclipped": {},
    "total": {"max_norm": 1.5, "clip_scope": "total"},
    "gradient": {"max_norm": 1.5, "clip_scope": "gradient"},
}
FACTORS = {"beta": 0.6, "dual_weight": 0.8, "prox_weight": 1.2}
UPDATES: tuple[Update, ...] = ("gradient", "proximal", "second_gradient")


def twin(base: Base, optimizer: FPTT, params: list[torch.nn.Parameter]) -> reference.Reference:
    """The numpy reference with the same starting point and settings."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    return reference.Reference(
        numpy_of(params),
        getattr(reference, base.rule),
        [groups[p]["lr"] for p in params],
        [groups[p]["alpha"] for p in params],
        options={**base.options, **base.extra},
        **{name: optimizer.defaults[name] for name in ("beta", "dual_weight", "prox_weight")},
        **asdict(optimizer.constants),
    )


def compare(base: Base, dtype: torch.dtype, rtol: float, atol: float, **options: Any) -> None:
    """Drive both for 30 updates, with schedules and two resets on the way, comparing W, W̄ and λ at each."""
    params = parameters(dtype)
    optimizer = two_groups(params, base, **options)
    optimizer.param_groups[1]["alpha"] = 1.7 * options["alpha"]
    expected = twin(base, optimizer, params)
    for t in range(30):
        for group, index in ((optimizer.param_groups[0], (0, 1)), (optimizer.param_groups[1], (2,))):
            group["alpha"] *= 1.1 if t % 3 else 0.8
            group["lr"] *= 0.98
            for i in index:
                expected.alpha[i], expected.lr[i] = group["alpha"], group["lr"]
        if optimizer.constants.update_rule == "second_gradient":
            targets = numpy_of(noise(t, params))

            def slope(weights: list[np.ndarray], targets: list[np.ndarray] = targets) -> list[np.ndarray]:
                return [(i + 1) * (w - c) for i, (w, c) in enumerate(zip(weights, targets, strict=True))]

            optimizer.step(quadratic(optimizer, params, t))
            expected.step(slope(expected.W), second=slope)
        else:
            gradients = noise(t, params, scale=3.0 if t % 4 == 0 else 0.3)
            set_gradients(params, gradients)
            optimizer.step()
            expected.step(numpy_of(gradients))
        if t in (11, 20):
            optimizer.reset_to_center(weights=t == 11)
            expected.reset_to_center(weights=t == 11)
        found, wanted = [], []
        for i, p in enumerate(params):
            found += [p, optimizer.center(p), scaled_dual(optimizer, p), optimizer.dual(p)]
            wanted += [expected.W[i], expected.center[i], expected.u[i], expected.alpha[i] * expected.u[i]]
        one, other = (np.concatenate([each.ravel() for each in arrays]) for arrays in (numpy_of(found), wanted))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def test_float64_is_the_reference(subtests: pytest.Subtests) -> None:
    """Each base with each update and each clip, and each update with each clip."""
    for (i, name), (j, update) in product(enumerate(BASES), enumerate(UPDATES)):
        clip = list(CLIPS)[(i + j) % 3]
        with subtests.test(name=name, update=update, clip=clip):
            compare(BASES[name], torch.float64, 1e-10, 1e-12, alpha=1.5, update_rule=update, **FACTORS, **CLIPS[clip])


def test_float64_is_the_reference_in_the_preconditioned_metric(subtests: pytest.Subtests) -> None:
    keys: dict[str, Any] = {"alpha": 0.5, "metric": "preconditioned", **FACTORS}
    for name, clip in product(ADAPTIVE, CLIPS):
        with subtests.test(name=name, clip=clip):
            compare(BASES[name], torch.float64, 1e-9, 1e-11, **keys, **CLIPS[clip])


def test_float32_is_the_reference_to_rounding(subtests: pytest.Subtests) -> None:
    for i, name in enumerate(BASES):
        with subtests.test(name=name):
            compare(BASES[name], torch.float32, 2e-4, 2e-5, alpha=1.5, update_rule=UPDATES[i % 3], max_norm=1.5)
    for name in ADAPTIVE:
        with subtests.test(name=name, metric="preconditioned"):
            compare(BASES[name], torch.float32, 2e-4, 2e-5, alpha=0.5, metric="preconditioned")


CHANGES: list[dict[str, Any]] = [
    {"update_rule": "proximal"},
    {"update_rule": "second_gradient"},
    {"metric": "preconditioned"},
    {"clip_scope": "gradient"},
    {"max_norm": None},
    {"alpha": 0.0},
    {"beta": 0.7},
    {"dual_weight": 0.5},
    {"prox_weight": 2.0},
]


def test_every_choice_changes_the_trajectory(subtests: pytest.Subtests) -> None:
    """The control of this file: no setting is compared with itself."""
    ends = []
    for change in ({}, *CHANGES):
        params = parameters(torch.float64)
        optimizer = two_groups(params, BASES["adam"], **{"alpha": 0.5, "max_norm": 1.5, **change})
        for t in range(6):
            optimizer.step(quadratic(optimizer, params, t))
        ends.append(torch.cat([p.detach().flatten() for p in params]))
        with subtests.test(change=change):
            assert not change or (ends[0] - ends[-1]).abs().max() > 1e-6
