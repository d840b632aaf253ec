"""Starting again from replaced weights, and parameters that hold W̄ between calls of `eval` and `train`."""

import copy
import io
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT

from .helpers import BASES, advance, noise, parameters, same_bits, snapshot, two_groups

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {"max_norm": 2.0},
    "preconditioned": {"metric": "preconditioned"},
    "second_gradient": {"update_rule": "second_gradient"},
}


def run(base: str = "adam", updates: int = 5, **options: Any) -> tuple[FPTT, list[Parameter]]:
    params = parameters()
    optimizer = two_groups(params, BASES[base], **{"alpha": 0.5, **options})
    advance(optimizer, params, 0, updates)
    return optimizer, params


def replace(params: list[Parameter]) -> None:
    with torch.no_grad():
        for p, value in zip(params, noise(99, params), strict=True):
            p.copy_(value)


def test_replaced_weights_draw_back_to_the_old_ones_unless_it_is_said(subtests: pytest.Subtests) -> None:
    """After `reset_to_weights` all is as in a new FPTT around the same base optimizer, bit for bit."""
    for name, variant in product(("sgd", "sgd_momentum", "adamw"), VARIANTS):
        if name != "adamw" and variant == "preconditioned":
            continue
        with subtests.test(name=name, variant=variant):
            optimizer, params = run(name, **VARIANTS[variant])
            for group in optimizer.param_groups:
                group["lr"] *= 0.01  # so that the preconditioned metric would divide by an older rate
            replace(params)
            unsaid, others = copy.deepcopy((optimizer, params))
            base_alone, fresh_params = copy.deepcopy((optimizer.base, params))
            for state in base_alone.state.values():
                for key in ("center", "scaled_dual", "reference_rate"):
                    state.pop(key, None)
            for group in base_alone.param_groups:
                group.pop("alpha_of_dual", None)
            fresh = FPTT(base_alone, alpha=0.5, **VARIANTS[variant])
            optimizer.reset_to_weights()
            assert all(torch.equal(optimizer.center(p), p) for p in params)
            assert not any(optimizer.dual(p).any() for p in params)
            for one, of_one in ((optimizer, params), (fresh, fresh_params), (unsaid, others)):
                advance(one, of_one, 5, 9)
            assert same_bits(snapshot(optimizer, params), snapshot(fresh, fresh_params))
            assert not torch.equal(others[0], params[0])


def test_reset_to_weights_copies_in_place_and_needs_a_step_before() -> None:
    optimizer, params = run(updates=0)
    optimizer.reset_to_weights()
    assert len(optimizer.state) == 0
    advance(optimizer, params, 0, 2)
    center, dual = optimizer.state[params[0]]["center"], optimizer.state[params[0]]["scaled_dual"]
    optimizer.reset_to_weights()
    assert optimizer.state[params[0]]["center"] is center
    assert optimizer.state[params[0]]["scaled_dual"] is dual
    kept = params[0].detach().clone()
    advance(optimizer, params, 2, 3)
    assert not torch.equal(params[0], kept)


def test_eval_and_train_change_no_bit_of_a_run(subtests: pytest.Subtests) -> None:
    for name, variant in product(("sgd", "adam"), VARIANTS):
        if name == "sgd" and variant == "preconditioned":
            continue
        with subtests.test(name=name, variant=variant):
            optimizer, params = run(name, updates=0, **VARIANTS[variant])
            plain, others = run(name, updates=0, **VARIANTS[variant])
            for t in range(4):
                optimizer.eval()
                optimizer.eval()
                assert same_bits([p.detach() for p in params], [plain.center(p) for p in others])
                optimizer.train()
                optimizer.train()
                assert same_bits(snapshot(optimizer, params), snapshot(plain, others))
                advance(optimizer, params, t, t + 1)
                advance(plain, others, t, t + 1)


def _saved_and_loaded(optimizer: FPTT, params: list[Parameter]) -> tuple[FPTT, list[Parameter]]:
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], buffer)
    buffer.seek(0)
    state, weights = torch.load(buffer, weights_only=True)
    other, others = run(updates=0)
    other.load_state_dict(state)
    with torch.no_grad():
        for p, value in zip(others, weights, strict=True):
            p.copy_(value)
    return other, others


@pytest.mark.parametrize(
    "copied", [_saved_and_loaded, lambda *both: copy.deepcopy(both), lambda *both: pickle.loads(pickle.dumps(both))]
)
def test_what_is_saved_after_eval_is_the_center_and_resumes_exactly(copied: Callable[..., Any]) -> None:
    optimizer, params = run()
    before = snapshot(optimizer, params)
    optimizer.eval()
    other, others = copied(optimizer, params)
    assert same_bits([p.detach() for p in others], [optimizer.center(p) for p in params])
    with pytest.raises(RuntimeError, match="train"):
        other.step()
    other.train()
    assert same_bits(snapshot(other, others), before)
    advance(other, others, 5, 8)
    optimizer.train()
    advance(optimizer, params, 5, 8)
    assert same_bits(snapshot(other, others), snapshot(optimizer, params))


@pytest.mark.parametrize("model_first", [True, False])
def test_loading_after_eval_forgets_the_weights_before(model_first: bool) -> None:
    optimizer, params = run()
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    before = snapshot(optimizer, params)
    advance(optimizer, params, 5, 7)
    optimizer.eval()
    if not model_first:
        optimizer.load_state_dict(saved)
    with torch.no_grad():
        for p, value in zip(params, weights, strict=True):
            p.copy_(value)
    if model_first:
        optimizer.load_state_dict(saved)
    optimizer.train()
    assert same_bits(snapshot(optimizer, params), before)


def test_what_was_replaced_after_eval_stays_and_starts_again() -> None:
    optimizer, params = run()
    before = snapshot(optimizer, params)
    optimizer.eval()
    with torch.no_grad():
        params[0].fill_(3.0)
        params[1][0] = 3.0
    optimizer.train()
    assert torch.equal(params[0], torch.full_like(params[0], 3.0))
    assert torch.equal(optimizer.center(params[0]), params[0])
    assert not optimizer.dual(params[0]).any()
    assert params[1][0] == optimizer.center(params[1])[0] == 3.0
    assert torch.equal(params[1][1:], before[1][1:])
    assert optimizer.dual(params[1])[0] == 0.0
    assert optimizer.dual(params[1])[1:].all()
    assert torch.equal(params[2], before[2])


def test_what_would_be_lost_is_refused(subtests: pytest.Subtests) -> None:
    for name, call in {
        "step": lambda o: o.step(),
        "reset_to_center": lambda o: o.reset_to_center(),
        "reset_to_weights": lambda o: o.reset_to_weights(),
    }.items():
        with subtests.test(call=name):
            optimizer, params = run()
            optimizer.eval()
            before = snapshot(optimizer, params)
            with pytest.raises(RuntimeError, match=rf"{name}\(\) after eval\(\).*call train\(\) of the"):
                call(optimizer)
            assert same_bits(snapshot(optimizer, params), before)
    for name, call in {"eval": FPTT.eval, "train": FPTT.train, "reset_to_weights": FPTT.reset_to_weights}.items():
        with subtests.test(call=name, within="at_center"):
            optimizer, params = run()
            before = snapshot(optimizer, params)
            with optimizer.at_center(), pytest.raises(RuntimeError, match=rf"{name}\(\) inside at_center\(\)"):
                call(optimizer)
            assert same_bits(snapshot(optimizer, params), before)


def test_at_center_after_eval_changes_nothing() -> None:
    optimizer, params = run()
    optimizer.eval()
    before = snapshot(optimizer, params)
    with optimizer.at_center():
        assert same_bits(snapshot(optimizer, params), before)
    assert same_bits(snapshot(optimizer, params), before)


def test_a_center_in_higher_precision_survives_eval() -> None:
    """A state saved in float64, loaded for float32 weights."""
    optimizer, params = run()
    state = optimizer.state_dict()
    for of_one in state["state"].values():
        of_one["center"] = of_one["center"].double() + 1e-12
    optimizer.load_state_dict(state)
    before = snapshot(optimizer, params)
    assert before[len(params)].dtype == torch.float64
    optimizer.eval()
    optimizer.train()
    assert same_bits(snapshot(optimizer, params), before)


class Tied(nn.Module):
    """Two tied layers, a buffer, and a layer that no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)))


@pytest.mark.parametrize("evaluating", [False, True])
def test_center_state_dict_is_the_models_with_the_center(evaluating: bool) -> None:
    model = Tied()
    optimizer = FPTT(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    expected = {name: optimizer.center(p).clone() for name, p in model.named_parameters(remove_duplicate=False)}
    expected |= {name: b.clone() for name, b in model.named_buffers()}
    weights = copy.deepcopy(model.state_dict())
    if evaluating:
        optimizer.eval()
    found = optimizer.center_state_dict(model)
    optimizer.train()
    torch.testing.assert_close(dict(found), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert not torch.equal(found["first.weight"], weights["first.weight"])
    optimizer.step()
    torch.testing.assert_close(dict(found), expected, rtol=0, atol=0)  # copies
    Tied().load_state_dict(found)
    assert found._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]  # versions of the modules


def test_what_was_saved_after_eval_is_loaded_in_either_order() -> None:
    """Also by objects that hold that very W̄ at the time, and a refused state changes nothing."""
    for model_first in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = FPTT(torch.optim.Adam(model.parameters(), lr=0.1), alpha=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.rand(4, 3)).square().sum().backward()
            optimizer.step()
        params = list(model.parameters())
        before = [t.detach().clone() for p in params for t in (p, optimizer.center(p), optimizer.dual(p))]
        optimizer.eval()
        shown = [p.detach().clone() for p in params]
        weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with pytest.raises(ValueError, match="different number of parameter groups"):
            optimizer.load_state_dict({"state": {}, "param_groups": []})
        assert all(map(torch.equal, params, shown))
        if model_first:
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        else:
            optimizer.load_state_dict(state)
            model.load_state_dict(weights)
        optimizer.train()
        after = [t for p in params for t in (p, optimizer.center(p), optimizer.dual(p))]
        assert all(map(torch.equal, after, before))
