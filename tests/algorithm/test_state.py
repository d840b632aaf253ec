"""The state: when it is created, what it holds, and that saving and loading lose no bit."""

import io
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam

from fptt_dist.algorithm import FPTT

from .helpers import BASES, advance, noise, parameters, same_bits, scaled_dual, set_gradients, snapshot, two_groups

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {"alpha": 0.5, "max_norm": 2.0},
    "proximal": {"alpha": 0.5, "update_rule": "proximal"},
    "second_gradient": {"alpha": 0.5, "update_rule": "second_gradient"},
    "preconditioned": {"alpha": 0.5, "metric": "preconditioned"},
}
COMBINATIONS = [(n, v) for n in BASES for v in VARIANTS if v != "preconditioned" or not n.startswith("sgd")]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """The state after torch.save and a load that trusts no code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_the_base_creates_its_own_state_first() -> None:
    """Adam initializes its moments where a parameter's state is empty: FPTT must not have filled it before."""
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.1, amsgrad=True), alpha=0.5)
    assert len(optimizer.state) == 0
    set_gradients(params, noise(0, params))
    optimizer.step()
    names = ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "center", "scaled_dual"]
    assert [list(optimizer.state[p]) for p in params] == [names] * 3


def test_the_center_starts_at_the_weights_before_the_first_update() -> None:
    p = Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FPTT(SGD([p], lr=0.125), alpha=0.5, beta=0.25)
    p.grad = torch.tensor([8.0, 8.0])
    optimizer.step()  # W̄' = ¾ W̄ + ¼ (W' − u') with W' = W − 1 and u' = 1
    assert torch.equal(p.detach(), torch.tensor([0.0, -3.0]))
    assert torch.equal(optimizer.center(p), torch.tensor([0.5, -2.5]))
    assert torch.equal(optimizer.state[p]["scaled_dual"], torch.tensor([1.0, 1.0]))


def test_the_state_dict_has_the_shape_of_every_torch_optimizer(subtests: pytest.Subtests) -> None:
    for name in BASES:
        with subtests.test(name=name):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5)
            advance(optimizer, params, 0, 3)
            state = optimizer.state_dict()
            assert set(state) == {"state", "param_groups"}
            assert [group["params"] for group in state["param_groups"]] == [[0, 1], [2]]
            assert [group["alpha"] for group in state["param_groups"]] == [0.5, 0.5]
            assert set(state["state"]) == {0, 1, 2}
            for i, p in enumerate(params):
                assert torch.equal(state["state"][i]["center"], optimizer.center(p))
                assert torch.equal(state["state"][i]["scaled_dual"], optimizer.state[p]["scaled_dual"])


def test_a_saved_run_continues_bit_for_bit(subtests: pytest.Subtests) -> None:
    for name, variant in COMBINATIONS:
        with subtests.test(name=name, variant=variant):
            params = parameters()
            optimizer = two_groups(params, BASES[name], **VARIANTS[variant])
            advance(optimizer, params, 0, 5)
            for group in optimizer.param_groups:
                group["alpha"], group["lr"] = 0.3, 0.04
            weights, saved = [p.detach().clone() for p in params], through_a_file(optimizer.state_dict())
            advance(optimizer, params, 5, 9)

            resumed = parameters(seed=1)
            other = two_groups(resumed, BASES[name], **{**VARIANTS[variant], "alpha": 0.9})
            advance(other, resumed, 40, 42)  # a state of its own, to be replaced
            other.load_state_dict(saved)
            with torch.no_grad():
                for p, w in zip(resumed, weights, strict=True):
                    p.copy_(w)
            advance(other, resumed, 5, 9)
            assert same_bits(snapshot(other, resumed), snapshot(optimizer, params))
            assert len(snapshot(optimizer, params)) >= 9


def test_a_forgotten_state_is_noticed() -> None:
    """The control: without loading, the continuation differs."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    advance(optimizer, params, 0, 5)
    resumed = [Parameter(p.detach().clone()) for p in params]
    advance(optimizer, params, 5, 7)
    advance(two_groups(resumed, BASES["adam"], alpha=0.5), resumed, 5, 7)
    assert (resumed[0] - params[0]).abs().max() > 1e-4


def test_base_and_wrapper_share_state_and_groups_after_loading() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    advance(optimizer, params, 0, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.base.state is optimizer.state
    assert optimizer.base.param_groups is optimizer.param_groups
    step = optimizer.state[params[0]]["step"].item()
    advance(optimizer, params, 2, 3)
    assert optimizer.state[params[0]]["step"].item() == step + 1


def test_an_engine_may_replace_state_and_groups() -> None:
    """DeepSpeed and FSDP assign new dictionaries; the base follows at the next step."""
    params, control = parameters(), parameters()
    optimizer, plain = two_groups(params, BASES["adam"], alpha=0.5), two_groups(control, BASES["adam"], alpha=0.5)
    advance(optimizer, params, 0, 3)
    advance(plain, control, 0, 3)
    copied = {p: dict(state) for p, state in optimizer.state.items()}
    optimizer.state = type(optimizer.state)(dict, copied)
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    for o in (optimizer, plain):
        o.param_groups[0]["lr"] = 0.01
    advance(optimizer, params, 3, 6)
    advance(plain, control, 3, 6)
    assert same_bits(snapshot(optimizer, params), snapshot(plain, control))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slow_variables_have_the_parameters_precision_and_keep_it(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = FPTT(Adam(params, lr=0.1), alpha=0.5)
    advance(optimizer, params, 0, 3)
    saved = through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    for i, p in enumerate(params):
        for name in ("center", "scaled_dual"):
            assert optimizer.state[p][name].dtype == dtype
            assert torch.equal(optimizer.state[p][name], saved["state"][i][name])


def test_loading_into_parameters_cast_to_bfloat16_keeps_the_slow_variables_in_float32() -> None:
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.1), alpha=0.5)
    advance(optimizer, params, 0, 3)
    saved = optimizer.state_dict()
    for p in params:
        p.data = p.data.bfloat16()
    optimizer.load_state_dict(saved)
    for i, p in enumerate(params):
        for name in ("center", "scaled_dual"):
            assert optimizer.state[p][name].dtype == torch.float32
            assert torch.equal(optimizer.state[p][name], saved["state"][i][name])
            assert not torch.equal(saved["state"][i][name].bfloat16().float(), saved["state"][i][name])


def test_a_hook_that_rewrites_the_loaded_state_reaches_the_slow_variables() -> None:
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.1), alpha=0.5)
    advance(optimizer, params, 0, 3)

    def hook(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {i: {k: v + 1.0 for k, v in s.items()} for i, s in state["state"].items()}}

    saved = optimizer.state_dict()
    expected = {k: v + 1.0 for k, v in saved["state"][0].items()}
    optimizer.register_load_state_dict_pre_hook(hook)
    optimizer.load_state_dict(saved)
    for name, value in expected.items():
        assert torch.equal(optimizer.state[params[0]][name], value), name


def test_loading_copies() -> None:
    """Neither the saved dictionary nor the optimizer it came from moves with the one that loaded it."""
    params, others = parameters(), parameters(seed=1)
    optimizer, other = FPTT(SGD(params, lr=0.1), alpha=0.5), FPTT(SGD(others, lr=0.1), alpha=0.5)
    advance(optimizer, params, 0, 3)
    saved = optimizer.state_dict()
    before = snapshot(optimizer, params)
    other.load_state_dict(saved)
    advance(other, others, 3, 6)
    assert same_bits(snapshot(optimizer, params), before)
    assert torch.equal(saved["state"][0]["center"], optimizer.center(params[0]))
    assert not torch.equal(other.center(others[0]), optimizer.center(params[0]))


def test_a_state_of_the_base_alone_may_be_continued() -> None:
    """Loading what a plain optimizer saved keeps its moments; W̄ and u start at the next step."""
    params = parameters()
    base = Adam(params, lr=0.1)
    advance(base, params, 0, 3)
    start = params[0].detach().clone()
    optimizer = FPTT(base, alpha=0.5)
    moment = optimizer.state[params[0]]["exp_avg"].clone()
    assert torch.equal(optimizer.center(params[0]), start)
    set_gradients(params, [torch.zeros_like(p) for p in params])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[params[0]]["exp_avg"], 0.9 * moment)
    assert torch.equal(scaled_dual(optimizer, params[0]), -(params[0].detach() - start))
    assert optimizer.state[params[0]]["step"].item() == 4
