"""Refusals of the optimizer: hyper-parameters out of range, and parameters that it cannot train."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, SparseAdam

from fptt_dist.algorithm.preconditioner import has_second_moments
from fptt_dist.algorithm.update import GROUPED, Constants

WIDE = (torch.float32, torch.float64)


def check_base(base: Any) -> None:
    """Refuse a base optimizer that FPTT cannot step, or whose state it could not save.

    Raises:
        ValueError: with the order of nesting that works, where there is one.
    """
    if not isinstance(base, Optimizer):
        raise ValueError(f"base={base!r} must be a torch.optim.Optimizer")
    kind, inner = type(base).__name__, next(_optimizers_within(base), None)
    if inner is not None:
        of = type(inner).__name__
        raise ValueError(
            f"base: {kind} wraps another optimizer, {of}, whose state FPTT could neither save nor load. Nest them the "
            f"other way round, {kind}(FPTT({of}(…), alpha=…), …), or, where {kind} makes its optimizer itself, give it "
            f"FPTT.over({of}, alpha=…) as the class to make"
        )
    if not {"state", "param_groups"} <= vars(base).keys():
        raise ValueError(f"base: {kind} keeps its state or its groups where FPTT cannot share them; give it an FPTT")
    if type(base).state_dict is not Optimizer.state_dict:
        raise ValueError(f"base: {kind} has a state_dict() of its own, and what it adds to torch's FPTT would not save")
    needed = [
        name
        for name, argument in list(inspect.signature(type(base).step).parameters.items())[1:]
        if argument.default is argument.empty and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"base: {kind}.step() needs {', '.join(needed)}, and FPTT makes one step from the gradients that there "
            "are: take an optimizer whose step() needs no argument"
        )
    if isinstance(base, SparseAdam):
        raise ValueError(
            "base: SparseAdam takes sparse gradients alone, which FPTT does not support: take Adam, and build the "
            "embedding with sparse=False"
        )


def _optimizers_within(base: Optimizer) -> Iterator[Optimizer]:
    """The optimizers that another one holds."""
    for value in vars(base).values():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        yield from (each for each in held if isinstance(each, Optimizer))


def check_options(base: Optimizer, values: Mapping[str, Any], constants: Constants) -> None:
    """Refuse what `FPTT` cannot be made of; `values` are those of its arguments that a group may have of its own.

    Raises:
        ValueError: a hyper-parameter out of range (named), a metric that the base optimizer cannot serve, or a group
            that cannot be trained.
    """
    max_norm, update_rule, metric = constants.max_norm, constants.update_rule, constants.metric
    alpha, clip_scope = values["alpha"], constants.clip_scope
    check_values(values)
    require(
        "update_rule",
        update_rule,
        update_rule in ("gradient", "proximal", "second_gradient"),
        '"gradient", "proximal" or "second_gradient"',
    )
    require("metric", metric, metric in ("euclidean", "preconditioned"), '"euclidean" or "preconditioned"')
    require("clip_scope", clip_scope, clip_scope in ("total", "gradient"), '"total" or "gradient"')
    bounded = max_norm is None or (isinstance(max_norm, int | float) and max_norm > 0.0)
    require("max_norm", max_norm, bounded, "> 0, or None for no clipping")
    if metric == "preconditioned":
        if not has_second_moments(base):
            raise ValueError(
                f'metric="preconditioned" needs second moments, which {type(base).__name__} does not keep: '
                'use Adam, AdamW or RMSprop, or metric="euclidean"'
            )
        if update_rule != "gradient":
            raise ValueError(
                f'metric="preconditioned" works with update_rule="gradient" only, not update_rule="{update_rule}"'
            )
    if update_rule == "second_gradient":
        require("alpha", alpha, alpha > 0.0, '> 0 with update_rule="second_gradient", whose dual is u = g/α')
    for group in base.param_groups:
        check_group(group)


def check_group(group: dict[str, Any]) -> None:
    """Refuse a group that cannot be trained.

    Raises:
        ValueError: a half-precision or complex parameter, `maximize=True`, `differentiable=True`, or no "lr".
    """
    if group.get("maximize"):
        raise ValueError("maximize=True: FPTT minimizes; negate the loss instead")
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True: FPTT updates W̄ and u in place, outside autograd, so that gradients through its steps "
            "would be wrong: set differentiable=False"
        )
    if "lr" not in group:
        raise ValueError('a group without "lr": FPTT needs a base optimizer with a learning rate')
    for p in group["params"]:
        require_wide(p)


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse values of FPTT's hyper-parameters of a group.

    Raises:
        ValueError: one out of range, with what is allowed.
    """
    for name in GROUPED:
        value = values[name]
        if name == "beta":
            require(name, value, _is_number(value) and 0.0 < value <= 1.0, "in (0, 1]")
        else:
            require(name, value, _is_number(value) and value >= 0.0, "a finite number ≥ 0")


def require(name: str, value: Any, valid: bool, allowed: str) -> None:
    """Refuse a value.

    Raises:
        ValueError: `valid` is false; with the name, the value and what is `allowed`.
    """
    if not valid:
        raise ValueError(f"{name}={value!r} must be {allowed}")


def require_wide(param: Tensor) -> None:
    """Refuse a parameter in half precision.

    Raises:
        ValueError: it is neither in float32 nor in float64.
    """
    if param.dtype not in WIDE:
        raise ValueError(
            f"FPTT keeps parameters in float32 or float64, got one of {param.dtype} and shape {tuple(param.shape)}: "
            "keep the weights in float32 and use torch.autocast for speed"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
