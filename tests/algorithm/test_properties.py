"""Any shapes, groups and hyper-parameters: the float64 torch implementation is the numpy reference."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fptt_dist.algorithm import FPTT

from . import reference
from .helpers import ADAPTIVE, BASES, noise, numpy_of, parameters, scaled_dual, set_gradients

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)
rates = st.floats(1e-3, 0.1)
# At steps near W's rounding, W - W̄ is made of rounding errors, which the reference need not share:
# see test_preconditioned.py.
falls = st.sampled_from([1.0, 0.97, 0.5, 0.1, 1e-2, 0.0])
factors = st.floats(0.0, 2.0)
QUIET = pytest.mark.filterwarnings("ignore:alpha=.*stability limit:UserWarning")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A base, shapes distributed over groups, which gradients are there, and every hyper-parameter."""
    name = draw(st.sampled_from(sorted(BASES)))
    metric = draw(st.sampled_from(["euclidean", "preconditioned"])) if name in ADAPTIVE else "euclidean"
    sizes = draw(shapes)
    group_of = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    return {
        "name": name,
        "shapes": sizes,
        "group_of": group_of,
        "lr": draw(st.tuples(rates, rates, rates)),
        "falls": draw(st.lists(falls, min_size=8, max_size=8)),  # of the rates, by update
        "alpha": draw(st.tuples(*[st.one_of(st.just(0.0), st.floats(0.01, 1.0))] * 3)),
        "missing": draw(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 7)), max_size=6)),
        "options": {
            "beta": draw(st.floats(0.1, 1.0)),
            "dual_weight": draw(factors),
            "prox_weight": draw(factors),
            "update_rule": "gradient"
            if metric == "preconditioned"
            else draw(st.sampled_from(["gradient", "proximal"])),
            "metric": metric,
            "max_norm": draw(st.one_of(st.none(), st.floats(0.01, 10.0))),
            "clip_scope": draw(st.sampled_from(["total", "gradient"])),
        },
    }


@QUIET
@given(cases())
@settings(max_examples=150)
def test_float64_is_the_reference(case: dict[str, Any]) -> None:
    base, group_of = BASES[case["name"]], case["group_of"]
    params = parameters(torch.float64, case["shapes"])
    groups = [
        {"params": [p for p, i in zip(params, group_of, strict=True) if i == g], "lr": case["lr"][g]} for g in range(3)
    ]
    optimizer = FPTT(base.make(groups, **base.options), alpha=0.5, **case["options"])
    for group, alpha in zip(optimizer.param_groups, case["alpha"], strict=True):
        group["alpha"] = alpha
    expected = reference.Reference(
        numpy_of(params),
        getattr(reference, base.rule),
        [case["lr"][g] for g in group_of],
        [case["alpha"][g] for g in group_of],
        options={**base.options, **base.extra},
        **case["options"],
    )
    for t, factor in enumerate(case["falls"]):
        for group, lr in zip(optimizer.param_groups, case["lr"], strict=True):
            group["lr"] = factor * lr
        expected.lr = [factor * case["lr"][g] for g in group_of]
        gradients = [None if (i, t) in case["missing"] else g for i, g in enumerate(noise(t, params))]
        set_gradients(params, gradients)
        optimizer.step()
        expected.step([None if g is None else g.numpy().copy() for g in gradients])
    for i, p in enumerate(params):
        np.testing.assert_allclose(p.detach(), expected.W[i], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(optimizer.center(p), expected.center.get(i, expected.W[i]), rtol=1e-8, atol=1e-10)
        if i in expected.u:
            np.testing.assert_allclose(scaled_dual(optimizer, p), expected.u[i], rtol=1e-8, atol=1e-10)
