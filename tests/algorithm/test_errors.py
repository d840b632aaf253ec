"""Every bad hyper-parameter is refused when the optimizer is built, by name."""

import math
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from fptt_dist.algorithm import FPTT

from .helpers import parameters

BAD: list[tuple[str, Any]] = [
    *[("alpha", value) for value in (-1e-9, -1.0, math.inf, -math.inf, math.nan)],
    *[("beta", value) for value in (0.0, -0.5, 1.0000001, 2.0, math.inf, math.nan)],
    *[("dual_weight", value) for value in (-0.1, math.inf, math.nan)],
    *[("prox_weight", value) for value in (-0.1, math.inf, math.nan)],
    *[("max_norm", value) for value in (0.0, -1.0, -math.inf, math.nan)],
    *[("update_rule", value) for value in ("implicit", "", None, "Explicit")],
    *[("metric", value) for value in ("riemannian", "", None)],
    *[("clip_scope", value) for value in ("norm", "", None)],
]


def test_a_bad_hyper_parameter_is_refused_by_name_and_value(subtests: pytest.Subtests) -> None:
    for name, value in BAD:
        with subtests.test(name=name, value=value):
            with pytest.raises(ValueError) as caught:
                FPTT(SGD(parameters(), lr=0.1), **{"alpha": 0.5, name: value})
            assert str(caught.value).startswith(f"{name}={value!r} ")


def test_the_ends_of_every_range_are_accepted(subtests: pytest.Subtests) -> None:
    for options in (
        {"alpha": 0.0},
        {"alpha": 1e6},
        {"beta": 1.0},
        {"beta": 1e-6},
        {"dual_weight": 0.0},
        {"prox_weight": 0.0},
        {"max_norm": 1e-9},
        {"max_norm": math.inf},
        {"max_norm": None},
    ):
        with subtests.test(options=options):
            optimizer = FPTT(SGD(parameters(), lr=0.1), **{"alpha": 0.5, **options})
            for name, value in options.items():
                assert {**optimizer.param_groups[0], **asdict(optimizer.constants)}[name] == value


def test_a_bad_alpha_of_one_group_is_refused(subtests: pytest.Subtests) -> None:
    for value in (-1.0, math.nan, math.inf):
        with subtests.test(value=value):
            params = parameters()
            with pytest.raises(ValueError, match="alpha="):
                FPTT(SGD([{"params": params[:1]}, {"params": params[1:], "alpha": value}], lr=0.1), alpha=0.5)
            optimizer = FPTT(SGD(params[:1], lr=0.1), alpha=0.5)
            with pytest.raises(ValueError, match="alpha="):
                optimizer.add_param_group({"params": params[1:], "alpha": value})
            assert len(optimizer.param_groups) == 1


def test_the_base_must_be_an_optimizer(subtests: pytest.Subtests) -> None:
    wrong: list[Any] = [None, [Parameter(torch.zeros(2))], SGD, "sgd"]
    for base in wrong:
        with subtests.test(base=base), pytest.raises(ValueError, match=r"(?s)^base=.*torch\.optim\.Optimizer"):
            FPTT(base, alpha=0.5)


@pytest.mark.parametrize("make", [SGD, Adagrad])
def test_the_preconditioned_metric_needs_second_moments(make: type) -> None:
    with pytest.raises(ValueError, match=f'metric="preconditioned".*{make.__name__}'):
        FPTT(make(parameters(), lr=0.1), alpha=0.5, metric="preconditioned")


def test_the_preconditioned_metric_is_for_the_explicit_update(subtests: pytest.Subtests) -> None:
    for update, make in product(("proximal", "second_gradient"), (Adam, AdamW, RMSprop)):
        refused = pytest.raises(ValueError, match=f'metric="preconditioned".*{update}')
        with subtests.test(update=update, make=make), refused:
            FPTT(make(parameters(), lr=0.1), alpha=0.5, metric="preconditioned", update_rule=update)


def test_second_gradient_needs_an_alpha_above_zero() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.0 .*second_gradient"):
        FPTT(SGD(parameters(), lr=0.1), alpha=0.0, update_rule="second_gradient")


def test_alpha_has_no_default_and_the_rest_is_by_name() -> None:
    base = SGD(parameters(), lr=0.1)
    with pytest.raises(TypeError, match="alpha"):
        FPTT(base)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        FPTT(base, 0.5)  # type: ignore[misc]


def test_a_state_of_another_shape_is_refused() -> None:
    """As torch does: groups and their sizes must match."""
    optimizer = FPTT(SGD(parameters(), lr=0.1), alpha=0.5)
    other = FPTT(SGD(parameters()[:2], lr=0.1), alpha=0.5)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(other.state_dict())
