"""Whole trajectories against the numpy reference: every variant, base and clip, two groups, α changing."""

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
    "total": {"max_norm": 1.5, "clip": "total"},
    "gradient": {"max_norm": 1.5, "clip": "gradient"},
}
FACTORS = {"beta": 0.6, "dual_weight": 0.8, "prox_weight": 1.2}
UPDATES = 30


def twin(base: Base, optimizer: FPTT, params: list[torch.nn.Parameter]) -> reference.Reference:
    """The numpy reference with the same starting point and settings."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    return reference.Reference(
        numpy_of(params),
        getattr(reference, base.rule),
        [groups[p]["lr"] for p in params],
        [groups[p]["alpha"] for p in params],
        options={**base.options, **base.extra},
        beta=optimizer.beta,
        dual_weight=optimizer.dual_weight,
        prox_weight=optimizer.prox_weight,
        update=optimizer.update,
        metric=optimizer.metric,
        max_norm=optimizer.max_norm,
        clip=optimizer.clip,
    )


def compare(base: Base, dtype: torch.dtype, rtol: float, atol: float, **options: Any) -> None:
    """Drive both for 30 updates, with schedules and two resets on the way, comparing W, W̄ and λ at each."""
    params = parameters(dtype)
    optimizer = two_groups(params, base, **options)
    optimizer.param_groups[1]["alpha"] = 1.7 * options["alpha"]
    expected = twin(base, optimizer, params)
    for t in range(UPDATES):
        for group, index in ((optimizer.param_groups[0], (0, 1)), (optimizer.param_groups[1], (2,))):
            group["alpha"] *= 1.1 if t % 3 else 0.8
            group["lr"] *= 0.98
            for i in index:
                expected.alpha[i], expected.lr[i] = group["alpha"], group["lr"]
        if optimizer.update == "algorithm2":
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
            optimizer.recenter(weights=t == 11)
            expected.recenter(weights=t == 11)
        for i, p in enumerate(params):
            np.testing.assert_allclose(p.detach(), expected.W[i], rtol=rtol, atol=atol)
            np.testing.assert_allclose(optimizer.center(p), expected.center[i], rtol=rtol, atol=atol)
            np.testing.assert_allclose(scaled_dual(optimizer, p), expected.u[i], rtol=rtol, atol=atol)
            np.testing.assert_allclose(optimizer.dual(p), expected.alpha[i] * expected.u[i], rtol=rtol, atol=atol)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("update", ["explicit", "prox", "algorithm2"])
@pytest.mark.parametrize("name", BASES)
def test_float64_is_the_reference(name: str, update: Update, clip: str) -> None:
    compare(BASES[name], torch.float64, 1e-10, 1e-12, alpha=1.5, update=update, **FACTORS, **CLIPS[clip])


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_float64_is_the_reference_in_the_preconditioned_metric(name: str, clip: str) -> None:
    compare(BASES[name], torch.float64, 1e-9, 1e-11, alpha=0.5, metric="preconditioned", **FACTORS, **CLIPS[clip])


@pytest.mark.parametrize("update", ["explicit", "prox", "algorithm2"])
@pytest.mark.parametrize("name", BASES)
def test_float32_is_the_reference_to_rounding(name: str, update: Update) -> None:
    compare(BASES[name], torch.float32, 2e-4, 2e-5, alpha=1.5, update=update, max_norm=1.5)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_float32_is_the_reference_to_rounding_in_the_preconditioned_metric(name: str) -> None:
    compare(BASES[name], torch.float32, 2e-4, 2e-5, alpha=0.5, metric="preconditioned")


@pytest.mark.parametrize(
    "change",
    [
        {"update": "prox"},
        {"update": "algorithm2"},
        {"metric": "preconditioned"},
        {"clip": "gradient"},
        {"max_norm": None},
        {"alpha": 0.0},
        {"beta": 0.7},
        {"dual_weight": 0.5},
        {"prox_weight": 2.0},
    ],
    ids=str,
)
def test_every_choice_changes_the_trajectory(change: dict[str, Any]) -> None:
    """The control of this file: no setting is compared with itself."""
    common = {"alpha": 0.5, "max_norm": 1.5}
    ends = []
    for options in (common, {**common, **change}):
        params = parameters(torch.float64)
        optimizer = two_groups(params, BASES["adam"], **options)
        for t in range(6):
            closure = quadratic(optimizer, params, t)
            optimizer.step(closure)
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    assert (ends[0] - ends[1]).abs().max() > 1e-6
