"""Hooks fire once per call, in torch's order, whether they are of all optimizers, of FPTT, or of its base."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fptt_dist.algorithm import FPTT

from .helpers import advance, noise, parameters, same_bits, set_gradients


@pytest.fixture
def fired() -> Iterator[list[str]]:
    """The steps around which torch's global hooks were called."""
    found: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: found.append(f"global pre {type(o).__name__}")),
        register_optimizer_step_post_hook(lambda o, a, k: found.append(f"global post {type(o).__name__}")),
    ]
    yield found
    for handle in handles:
        handle.remove()


def step(optimizer: Optimizer, t: int = 0) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    set_gradients(params, noise(t, params))
    optimizer.step()


def note(found: list[str], name: str, result: Any = None) -> Callable[..., Any]:
    def hook(*_: Any) -> Any:
        found.append(name)
        return result

    return hook


def test_step_hooks_fire_once_in_torchs_order(fired: list[str]) -> None:
    optimizer = FPTT(Adam(parameters(), lr=0.1), alpha=0.5)
    for name, each in (("FPTT", optimizer), ("Adam", optimizer.base)):
        each.register_step_pre_hook(note(fired, f"pre {name}"))
        each.register_step_post_hook(note(fired, f"post {name}"))
    step(optimizer)
    around = ["global pre FPTT", "pre FPTT", "pre Adam", "post Adam", "post FPTT", "global post FPTT"]
    assert fired == around
    for handle in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        handle.clear()
    fired.clear()
    step(optimizer)
    assert fired == ["global pre FPTT", "pre Adam", "post Adam", "global post FPTT"]


def test_a_scheduler_on_the_base_does_not_double_them(fired: list[str]) -> None:
    """It replaces the base's `step`, and looks whether that was called."""
    base = SGD(parameters(), lr=0.1)
    scheduler = LambdaLR(base, lambda t: 0.5**t)
    optimizer = FPTT(base, alpha=0.5)
    step(optimizer)
    scheduler.step()  # warns of a step that was not made
    assert fired == ["global pre FPTT", "global post FPTT"]
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_step_that_others_replaced_is_called(fired: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their wrapper does is done, also where it looks like torch's: global hooks then fire as in the base."""
    for where in ("object", "class"):
        base = SGD(parameters(), lr=0.1)
        holder: Any = base if where == "object" else type("Other", (SGD,), {"step": SGD.step})
        inner, calls = holder.step, []

        def replaced(*arguments: Any, inner: Any = inner, calls: list[int] = calls) -> None:
            calls.append(1)
            inner(*arguments)

        replaced.__dict__.update(getattr(inner, "__dict__", {}), __wrapped__=inner)
        holder.step = replaced
        optimizer = FPTT(base if where == "object" else holder(parameters(), lr=0.1), alpha=0.5)
        step(optimizer)
        assert calls == [1]


def test_global_hooks_change_no_bit_and_a_pre_hook_of_the_base_may_change_the_arguments() -> None:
    ends = []
    for with_hooks in (True, False):
        params, losses = parameters(), []
        optimizer = FPTT(Adam(params, lr=0.1), alpha=0.5)
        optimizer.base.register_step_pre_hook(lambda o, a, k, seen=losses: ((*a, note(seen, "closure", 1.0)), k))
        handle = register_optimizer_step_pre_hook(note([], "")) if with_hooks else None
        advance(optimizer, params, 0, 3)
        if handle is not None:
            handle.remove()
        assert losses == ["closure"] * 3
        ends.append([p.detach().clone() for p in params])
    assert same_bits(*ends)


def test_hooks_of_the_state_dict_fire_once_also_the_bases_and_in_the_order_of_registration() -> None:
    found: list[str] = []
    base = SGD(parameters(), lr=0.1, momentum=0.9)
    base.register_state_dict_post_hook(note(found, "post base"))
    base.register_load_state_dict_pre_hook(note(found, "load pre base"))
    optimizer = FPTT(base, alpha=0.5)
    step(optimizer)
    optimizer.register_state_dict_pre_hook(note(found, "pre"))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "more": 1})
    optimizer.register_load_state_dict_pre_hook(note(found, "load pre"))
    optimizer.register_load_state_dict_post_hook(note(found, "load post"))
    base.register_load_state_dict_post_hook(note(found, "load post base"))
    saved = optimizer.state_dict()
    assert found == ["pre", "post base"]
    assert saved["more"] == 1
    found.clear()
    optimizer.load_state_dict(saved)
    assert found == ["load pre base", "load pre", "load post", "load post base"]


def test_a_copy_has_none_and_shares_those_of_its_own_base() -> None:
    optimizer = FPTT(SGD(parameters(), lr=0.1), alpha=0.5)
    found: list[str] = []
    optimizer.register_state_dict_pre_hook(note(found, "original"))
    other = copy.deepcopy(optimizer)
    other.base.register_state_dict_pre_hook(note(found, "copy"))
    other.state_dict()
    assert found == ["copy"]
    optimizer.state_dict()
    assert found == ["copy", "original"]
