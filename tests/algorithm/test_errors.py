"""Every bad hyper-parameter is refused when the optimizer is built, by name."""

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from fptt_dist.algorithm import FPTT

from .helpers import Update, parameters

BAD: list[tuple[str, Any]] = [
    *[("alpha", value) for value in (-1e-9, -1.0, math.inf, -math.inf, math.nan)],
    *[("beta", value) for value in (0.0, -0.5, 1.0000001, 2.0, math.inf, math.nan)],
    *[("dual_weight", value) for value in (-0.1, math.inf, math.nan)],
    *[("prox_weight", value) for value in (-0.1, math.inf, math.nan)],
    *[("max_norm", value) for value in (0.0, -1.0, -math.inf, math.nan)],
    *[("update", value) for value in ("implicit", "", None, "Explicit")],
    *[("metric", value) for value in ("riemannian", "", None)],
    *[("clip", value) for value in ("norm", "", None)],
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_a_bad_hyper_parameter_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        FPTT(SGD(parameters(), lr=0.1), **{"alpha": 0.5, name: value})
    assert str(caught.value).startswith(f"{name}={value!r} ")


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": 1e6},
        {"beta": 1.0},
        {"beta": 1e-6},
        {"dual_weight": 0.0},
        {"prox_weight": 0.0},
        {"max_norm": 1e-9},
        {"max_norm": math.inf},
        {"max_norm": None},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_accepted(options: dict[str, Any]) -> None:
    optimizer = FPTT(SGD(parameters(), lr=0.1), **{"alpha": 0.5, **options})
    for name, value in options.items():
        assert (optimizer.param_groups[0] if name == "alpha" else vars(optimizer))[name] == value


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_alpha_of_one_group_is_refused(value: float) -> None:
    params = parameters()
    with pytest.raises(ValueError, match="alpha="):
        FPTT(SGD([{"params": params[:1]}, {"params": params[1:], "alpha": value}], lr=0.1), alpha=0.5)
    optimizer = FPTT(SGD(params[:1], lr=0.1), alpha=0.5)
    with pytest.raises(ValueError, match="alpha="):
        optimizer.add_param_group({"params": params[1:], "alpha": value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "base", [None, [Parameter(torch.zeros(2))], SGD, "sgd"], ids=["none", "parameters", "class", "name"]
)
def test_the_base_must_be_an_optimizer(base: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)^base=.*torch\.optim\.Optimizer"):
        FPTT(base, alpha=0.5)


@pytest.mark.parametrize("make", [SGD, Adagrad])
def test_the_preconditioned_metric_needs_second_moments(make: type) -> None:
    with pytest.raises(ValueError, match=f'metric="preconditioned".*{make.__name__}'):
        FPTT(make(parameters(), lr=0.1), alpha=0.5, metric="preconditioned")


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop])
@pytest.mark.parametrize("update", ["prox", "algorithm2"])
def test_the_preconditioned_metric_is_for_the_explicit_update(make: type, update: Update) -> None:
    with pytest.raises(ValueError, match=f'metric="preconditioned".*{update}'):
        FPTT(make(parameters(), lr=0.1), alpha=0.5, metric="preconditioned", update=update)


def test_algorithm2_needs_an_alpha_above_zero() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.0 .*algorithm2"):
        FPTT(SGD(parameters(), lr=0.1), alpha=0.0, update="algorithm2")


def test_alpha_has_no_default_and_the_rest_is_by_name() -> None:
    base = SGD(parameters(), lr=0.1)
    with pytest.raises(TypeError, match="alpha"):
        FPTT(base)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        FPTT(base, 0.5)  # type: ignore[misc]


def test_a_state_of_another_shape_is_refused() -> None:
    """As torch does: groups and their sizes must agree."""
    optimizer = FPTT(SGD(parameters(), lr=0.1), alpha=0.5)
    other = FPTT(SGD(parameters()[:2], lr=0.1), alpha=0.5)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(other.state_dict())
