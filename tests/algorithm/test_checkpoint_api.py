"""torch.distributed.checkpoint: asking a fresh optimizer for its state makes a zero step, which leaves no trace."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import SGD

from fptt_dist.algorithm import FPTT

from .helpers import BASES, advance, parameters, same_bits, snapshot, two_groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {"alpha": 0.5, "max_norm": 2.0},
    "proximal": {"alpha": 0.5, "update_rule": "proximal"},
    "second_gradient": {"alpha": 0.5, "update_rule": "second_gradient"},
    "preconditioned": {"alpha": 0.5, "metric": "preconditioned"},
}
NAMES = ("sgd", "sgd_momentum", "sgd_nesterov", "adam", "adamw", "amsgrad", "rmsprop", "rmsprop_centered")
COMBINATIONS = [(n, v) for n in NAMES for v in VARIANTS if v != "preconditioned" or not n.startswith("sgd")]


class Weights(nn.Module):
    """Nothing but parameters, with names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters(seed=seed))


def build(name: str, variant: str, seed: int = 0) -> tuple[Weights, list[nn.Parameter], FPTT]:
    """A fresh model, its parameters and their optimizer."""
    model = Weights(seed)
    params = list(model.parameters())
    return model, params, two_groups(params, BASES[name], **VARIANTS[variant])


def test_reading_a_fresh_state_changes_nothing(subtests: pytest.Subtests) -> None:
    for name, variant in COMBINATIONS:
        with subtests.test(name=name, variant=variant):
            model, params, optimizer = build(name, variant)
            weights = [p.detach().clone() for p in params]
            _, state = get_state_dict(model, optimizer)
            assert "weights.0" in state["state"]
            assert same_bits([p.detach() for p in params], weights)
            assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025]
            assert all(p.grad is None for p in params)
            assert same_bits([optimizer.center(p) for p in params], weights)
            assert all(not optimizer.dual(p).any() for p in params)

            _, control, untouched = build(name, variant)
            advance(optimizer, params, 0, 6)
            advance(untouched, control, 0, 6)
            assert same_bits(snapshot(optimizer, params), snapshot(untouched, control))


def test_a_state_travels_through_the_checkpoint_api(subtests: pytest.Subtests) -> None:
    for name, variant in COMBINATIONS:
        with subtests.test(name=name, variant=variant):
            model, params, optimizer = build(name, variant)
            advance(optimizer, params, 0, 4)
            optimizer.param_groups[1]["alpha"] = 0.3
            advance(optimizer, params, 4, 5)
            # A copy, as through a file: torch loads the moments without one.
            weights, state = copy.deepcopy(get_state_dict(model, optimizer))
            other_model, others, other = build(name, variant, seed=1)
            set_state_dict(other_model, other, model_state_dict=weights, optim_state_dict=state)
            assert other.param_groups[1]["alpha"] == 0.3
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))
            advance(other, others, 5, 9)
            advance(optimizer, params, 5, 9)
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))


def test_a_late_parameter_of_a_read_state_still_starts_at_its_own_first_step() -> None:
    ends = []
    for read in (False, True):
        model, params, optimizer = build("adam", "preconditioned")
        if read:
            get_state_dict(model, optimizer)
        for t in range(6):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, 1.0 + t) if i < 2 or t > 2 else None
            optimizer.step()
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)
    assert (ends[0][2] - ends[0][0].mean()).abs().max() > 0.0


def test_weights_loaded_after_reading_a_fresh_state_are_where_the_center_starts() -> None:
    """A warm start: W̄ is created at the first step with a gradient of the data, not by the checkpoint's zero step."""
    ends = []
    for read in (False, True):
        model, params, optimizer = build("sgd", "gradient")
        if read:
            get_state_dict(model, optimizer)
        with torch.no_grad():
            for p in params:
                p.add_(5.0)
        advance(optimizer, params, 0, 3)
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)


def test_reading_a_fresh_state_changes_nothing_with_dampening() -> None:
    ends = []
    for read in (False, True):
        params = list((model := Weights()).parameters())
        optimizer = two_groups(params, BASES["sgd_dampening"], alpha=0.5)
        if read:
            get_state_dict(model, optimizer)
        advance(optimizer, params, 0, 3)
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)


class Early(SGD):
    """A base that makes its state at construction and nowhere else, as Adagrad does in older versions of torch."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, lr=lr)
        for p in params:
            self.state[p]["steps"] = torch.tensor(5)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p]["steps"] += 1
        super().step(closure)


def test_a_base_that_has_its_state_from_the_start_keeps_it() -> None:
    """The effect of a zero step on it is undone; neither that nor `slow_state()` drops it."""
    ends = []
    for before in ("nothing", "zero step", "slow_state", "both"):
        params = parameters()
        optimizer = FPTT(Early(params, lr=0.0), alpha=0.5)
        if before in ("zero step", "both"):
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        if before in ("slow_state", "both"):
            optimizer.slow_state()
        optimizer.param_groups[0]["lr"] = 0.1
        advance(optimizer, params, 0, 3)
        assert [int(optimizer.state[p]["steps"]) for p in params] == [8] * 3
        ends.append([p.detach() for p in params])
    assert all(same_bits(ends[0], end) for end in ends)


def test_an_ordinary_first_step_with_zero_gradients_counts() -> None:
    """Only learning rates and gradients of 0 together are the checkpoint's zero step."""
    _, params, optimizer = build("adam", "gradient")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 1
