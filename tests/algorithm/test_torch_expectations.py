"""Expectations of torch's own tests of optimizers, of FPTT around each of torch's."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from fptt_dist.algorithm import FPTT

from .helpers import advance, noise, parameters, quadratic, same_bits, set_gradients, snapshot

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")
SHAPES = ((3, 4), (2, 3), (4, 1))  # matrices, which Muon needs


@dataclass(frozen=True)
class Case:
    """An optimizer of torch and its options."""

    name: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Optimizer]:
        return getattr(torch.optim, self.name)

    def accepts(self, option: str) -> bool:
        return option in inspect.signature(self.kind).parameters

    @property
    def unset(self) -> dict[str, Any]:
        """The options that choose an implementation, left to torch."""
        return {name: None for name in ("foreach", "fused") if name in self.options}

    def base(self, params: Any, **changed: Any) -> Optimizer:
        return self.kind(params, **{"lr": self.lr, **self.options, **changed})  # type: ignore[call-arg]

    def make(self, params: Any, alpha: float = 0.3, **changed: Any) -> FPTT:
        return FPTT(self.base(params, **changed), alpha=alpha)


CASES = {
    "sgd": Case("SGD", 0.05, {"foreach": False}),
    "sgd foreach": Case("SGD", 0.05, {"momentum": 0.9, "weight_decay": 0.01, "foreach": True}),
    "sgd fused": Case("SGD", 0.05, {"momentum": 0.9, "nesterov": True, "fused": True}),
    "adam": Case("Adam", 0.05, {"foreach": False, "weight_decay": 0.01}),
    "adam foreach": Case("Adam", 0.05, {"foreach": True, "amsgrad": True}),
    "adam fused": Case("Adam", 0.05, {"fused": True}),
    "adamw": Case("AdamW", 0.05, {"weight_decay": 0.1}),
    "adamw fused": Case("AdamW", 0.05, {"amsgrad": True, "fused": True}),
    "rmsprop": Case("RMSprop", 0.02, {"foreach": True, "alpha": 0.9, "centered": True, "momentum": 0.5}),
    "adagrad": Case("Adagrad", 0.1, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "adagrad fused": Case("Adagrad", 0.1, {"fused": True}),
    "adadelta": Case("Adadelta", 1.0, {"foreach": True, "rho": 0.8, "weight_decay": 0.01}),
    "adamax": Case("Adamax", 0.05, {"weight_decay": 0.01}),
    "nadam": Case("NAdam", 0.05, {"foreach": True, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    "radam": Case("RAdam", 0.05, {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    "asgd": Case("ASGD", 0.05, {"foreach": True, "t0": 3, "weight_decay": 0.01}),
    "rprop": Case("Rprop", 0.01, {}),
    "adafactor": Case("Adafactor", 0.05, {"foreach": True, "weight_decay": 0.01}),
    "muon": Case("Muon", 0.05, {"weight_decay": 0.01}),
}
REFUSED = {"LBFGS", "SparseAdam"}  # tested in test_bases.py


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def params_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return parameters(dtype, SHAPES, seed)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def continued(case: Case, optimizer: FPTT, params: list[Parameter], saved: Any, **changed: Any) -> None:
    """A fresh optimizer with the saved state continues as the one that it was saved from."""
    others = params_of(seed=1)
    other = case.make(others, alpha=0.1, **changed)
    other.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    assert [strip(group) for group in other.param_groups] == [strip(group) for group in optimizer.param_groups]
    advance(optimizer, params, 4, 7)
    advance(other, others, 4, 7)
    assert same_bits(snapshot(optimizer, params), snapshot(other, others))


def strip(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def test_every_optimizer_of_torch_is_here_or_refused() -> None:
    found = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)} - {"Optimizer"}
    assert found == {case.name for case in CASES.values()} | REFUSED


def test_no_strength_is_the_base_bit_for_bit(case: Case) -> None:
    params, control = params_of(), params_of()
    optimizer, base = case.make(params, alpha=0.0), case.base(control)
    advance(optimizer, params, 0, 8)
    advance(base, control, 0, 8)
    assert same_bits([p.detach() for p in params], [p.detach() for p in control])
    for p, q in zip(params, control, strict=True):
        for name, value in base.state[q].items():
            assert torch.equal(torch.as_tensor(optimizer.state[p][name]), torch.as_tensor(value)), name


def test_it_minimizes_with_its_own_types(case: Case) -> None:
    """In float32 and float64: the state has the parameters' type, and gradients are not part of it."""
    for dtype in (torch.float32, torch.float64):
        params = params_of(dtype=dtype)
        optimizer = case.make(params)
        losses = []
        for _ in range(20):
            loss = quadratic(optimizer, params, 0)()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        for p in params:
            assert optimizer.state[p]["center"].dtype == optimizer.state[p]["scaled_dual"].dtype == dtype
            assert not any(value.requires_grad for value in optimizer.state[p].values() if isinstance(value, Tensor))


def test_the_implementations_are_one(case: Case) -> None:
    """foreach, the loop over parameters, and the fused one where there is one."""
    ends = []
    for flags in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        if all(map(case.accepts, flags)):
            params = params_of()
            optimizer = case.make(params, **{**case.unset, **flags})
            advance(optimizer, params, 0, 5)
            ends.append([p.detach() for p in params])
    for end in ends[1:]:
        torch.testing.assert_close(ends[0], end, rtol=1e-4, atol=1e-5)


def test_a_state_dict_makes_the_round_trip(case: Case) -> None:
    """Through a file that trusts no code, to a fresh optimizer with other hyper-parameters, which take the saved."""
    params = params_of()
    optimizer = case.make(params)
    advance(optimizer, params, 0, 4)
    before = copy.deepcopy(optimizer.state_dict())
    saved = through_a_file(optimizer.state_dict())
    other = {"weight_decay": 0.5} if case.accepts("weight_decay") else {}
    continued(case, optimizer, params, saved, lr=case.lr / 2, **other)
    assert set(saved) == {"state", "param_groups"}
    assert [sorted(saved["state"][i]) for i in range(3)] == [sorted(before["state"][i]) for i in range(3)]


def test_loading_its_own_state_changes_nothing(case: Case) -> None:
    params, control = params_of(), params_of()
    optimizer, untouched = case.make(params), case.make(control)
    for start in (0, 1, 3):
        optimizer.load_state_dict(optimizer.state_dict())
        given = copy.deepcopy(optimizer.state_dict())
        advance(optimizer, params, start, start + 2)
        optimizer_again = case.make(copy.deepcopy(params))
        optimizer_again.load_state_dict(given)  # is not itself changed by what is loaded into
        advance(untouched, control, start, start + 2)
    assert same_bits(snapshot(optimizer, params), snapshot(untouched, control))


def test_a_state_of_an_older_torch_loads(case: Case) -> None:
    """Without the flags that came later, and with counts that were numbers; the base knows how to read it."""
    if case.name in ("Adafactor", "Muon"):  # younger than the flags
        return
    params = params_of()
    optimizer = case.make(params, **case.unset)
    advance(optimizer, params, 0, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for name in ("maximize", "foreach", "capturable", "differentiable", "fused"):
            group.pop(name, None)
    for entry in saved["state"].values():
        if isinstance(entry.get("step"), Tensor):
            entry["step"] = entry["step"].item()
    others = [Parameter(p.detach().clone()) for p in params]
    other = case.make(others, **case.unset)
    other.load_state_dict(saved)
    advance(optimizer, params, 4, 6)
    advance(other, others, 4, 6)
    assert same_bits(snapshot(optimizer, params), snapshot(other, others))


def test_copies_are_independent_and_equal(case: Case) -> None:
    """Deep copies and pickles: before any step, with slow weights made before any step, and after some."""
    for start in ("fresh", "slow state", "stepped"):
        params = params_of()
        optimizer = case.make(params)
        if start == "slow state":
            optimizer.slow_state()
        advance(optimizer, params, 0, 4 if start == "stepped" else 0)
        copies = [copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))]
        public = {name for name in dir(optimizer) if not name.startswith("_")}
        advance(optimizer, params, 4, 6)
        for other, others in copies:
            assert {name for name in dir(other) if not name.startswith("_")} == public
            assert type(other.base) is type(optimizer.base)
            assert {name: other.base.defaults[name] for name in optimizer.base.defaults} == optimizer.base.defaults
            advance(other, others, 4, 6)
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))


def test_parameters_without_gradients_are_left_alone(case: Case) -> None:
    params = params_of()
    optimizer = case.make(params)
    optimizer.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in params_of()])
    for t in range(3):
        set_gradients(params, [*noise(t, params)[:2], None])
        optimizer.step()
    assert torch.equal(params[2], params_of()[2])
    assert "center" not in optimizer.state.get(params[2], {})
    assert not torch.equal(params[0], params_of()[0])


def test_groups_have_their_own_rates(case: Case) -> None:
    """And so does a group that is added later."""
    params, alone = params_of(), params_of()
    optimizer = case.make([{"params": params[:1]}, {"params": params[1:2], "lr": case.lr / 4}], alpha=0.0)
    bases = [case.base(alone[:1]), case.base(alone[1:2], lr=case.lr / 4), case.base(alone[2:], lr=case.lr / 2)]
    optimizer.add_param_group({"params": params[2:], "lr": case.lr / 2})
    assert [group["alpha"] for group in optimizer.param_groups] == [0.0] * 3
    assert [group["lr"] for group in optimizer.base.param_groups] == [case.lr, case.lr / 4, case.lr / 2]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[:1]})
    assert len(optimizer.param_groups) == 3
    for t in range(4):
        set_gradients(params, noise(t, params))
        set_gradients(alone, noise(t, alone))
        optimizer.step()
        for base in bases:
            base.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in alone])


def test_a_learning_rate_may_be_a_tensor(case: Case) -> None:
    ends = []
    for lr in (case.lr, torch.tensor(case.lr)):
        params = params_of()
        plain = {"foreach": False} if case.accepts("foreach") else {}
        flags = {"fused": True} if case.options.get("fused") else plain
        optimizer = case.make(params, **{**flags, "lr": lr})
        advance(optimizer, params, 0, 4)
        ends.append([p.detach() for p in params])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


SCHEDULES: list[Callable[[Optimizer, dict[str, Any], float], Any]] = [
    lambda o, cycle, lr: schedulers.LambdaLR(o, lambda t: 0.8**t),
    lambda o, cycle, lr: schedulers.OneCycleLR(o, max_lr=lr, total_steps=8, **cycle),
    lambda o, cycle, lr: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1),
    lambda o, cycle, lr: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    lambda o, cycle, lr: schedulers.CyclicLR(o, base_lr=lr / 2, max_lr=lr, step_size_up=2, **cycle),
]


def test_schedulers_drive_it_as_they_drive_the_base(case: Case, subtests: pytest.Subtests) -> None:
    """Two of them each, in turn."""
    cycle: dict[str, Any] = {
        "cycle_momentum": case.name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam") or "momentum" in case.options
    }
    for number in {list(CASES.values()).index(case) % 5, (list(CASES.values()).index(case) + 2) % 5}:
        with subtests.test(number=number):
            schedule = SCHEDULES[number]
            seen: list[list[Any]] = []
            for fptt in (True, False):
                params = params_of()
                optimizer = case.make(params) if fptt else case.base(params)
                scheduler = schedule(optimizer, cycle, case.lr)
                seen.append([])
                for t in range(6):
                    advance(optimizer, params, t, t + 1)
                    scheduler.step(*([1.0] if number == 2 else []))
                    group = optimizer.param_groups[0]
                    seen[-1].append((group["lr"], group.get("betas"), group.get("momentum")))
            assert seen[0] == seen[1]
            assert len(set(map(str, seen[0]))) > 1


def test_a_closure_is_called_once_and_its_loss_returned(case: Case) -> None:
    params, control = params_of(), params_of()
    optimizer, other = case.make(params), case.make(control)
    calls: list[Tensor] = []
    compute = quadratic(optimizer, params, 0)

    def closure() -> Tensor:
        calls.append(compute())
        return calls[-1]

    for t in range(3):
        calls.clear()
        compute = quadratic(optimizer, params, t)
        assert optimizer.step(closure) is calls[0]
        assert len(calls) == 1
    advance(other, control, 0, 3)
    assert same_bits(snapshot(optimizer, params), snapshot(other, control))


def test_gradients_are_cleared(case: Case) -> None:
    params = params_of()
    optimizer = case.make(params)
    for set_to_none in (False, True):
        advance(optimizer, params, 0, 1)
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all(p.grad is None if set_to_none else p.grad is not None and not p.grad.any() for p in params)


def test_it_is_an_optimizer_that_prints_itself_and_shows_in_a_profile(case: Case) -> None:
    params = params_of()
    optimizer = case.make(params)
    assert isinstance(optimizer, Optimizer)
    assert isinstance(optimizer.base, case.kind)
    text = repr(optimizer)
    assert text.startswith("FPTT (\nParameter Group 0\n")
    assert f"    lr: {case.lr}\n" in text
    assert "    alpha: 0.3\n" in text
    set_gradients(params, noise(0, params))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        optimizer.step()
        optimizer.zero_grad()
    names = [event.key for event in seen.key_averages()]
    expected = ["Optimizer.step#FPTT.step", "Optimizer.zero_grad#FPTT.zero_grad"]
    assert set(expected) <= set(names)


def test_hooks_fire_once_in_torchs_order(case: Case) -> None:
    params, found = params_of(), []
    optimizer = case.make(params)
    advance(optimizer, params, 0, 1)

    def note(name: str) -> Callable[..., None]:
        return lambda *given: found.append((name, given[0] is optimizer))

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
        optimizer.register_state_dict_pre_hook(note("save pre")),
        optimizer.register_state_dict_post_hook(note("save post")),
        optimizer.register_load_state_dict_pre_hook(note("load pre")),
        optimizer.register_load_state_dict_post_hook(note("load post")),
        optimizer.register_load_state_dict_pre_hook(note("load first"), prepend=True),
    ]
    try:
        advance(optimizer, params, 1, 2)
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        for handle in handles:
            handle.remove()
    names = ["global pre", "pre", "post", "global post", "save pre", "save post", "load first", "load pre", "load post"]
    assert found == [(name, True) for name in names]
    advance(optimizer, params, 2, 3)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(found) == len(names)


def test_what_it_does_not_do_is_refused(case: Case) -> None:
    for name in ("maximize", "differentiable"):
        if case.accepts(name):
            changed = {n: False for n in ("fused", "foreach") if n in case.options}
            with pytest.raises(ValueError, match=f"{name}=True"):
                case.make(params_of(), **{name: True, **changed})
    for dtype in (torch.bfloat16, torch.float16):
        params = [Parameter(p.detach().to(dtype)) for p in params_of()]
        with pytest.raises(ValueError, match=f"float32.*{dtype}"):
            case.make(params)
    params = params_of()
    optimizer = case.make(params)
    with pytest.raises(ValueError, match=r"float32.*complex64"):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(2, 2, dtype=torch.complex64))]})
    params[0].grad = torch.sparse_coo_tensor(
        torch.tensor([[0], [1]]), torch.ones(1), params[0].shape, check_invariants=True
    )
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in params_of()])


def test_names_of_parameters_are_kept(case: Case) -> None:
    model = nn.ParameterList(params_of())
    optimizer = case.make(model.named_parameters())
    advance(optimizer, list(model), 0, 2)
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"][0]["param_names"] == ["0", "1", "2"]
    for named in (True, False):
        others = nn.ParameterList(params_of(seed=1))
        other = case.make(others.named_parameters() if named else others)
        other.load_state_dict(copy.deepcopy(saved))
        assert other.param_groups[0]["param_names"] == ["0", "1", "2"]


def test_reading_a_fresh_state_for_a_checkpoint_leaves_no_trace(case: Case) -> None:
    """torch.distributed.checkpoint makes a fresh state by a step with rates and gradients of 0."""
    ends = []
    for read in (False, True):
        model = nn.ParameterList(params_of())
        optimizer = case.make(model)
        if read:
            get_state_dict(model, optimizer)
        advance(optimizer, list(model), 0, 3)
        ends.append(snapshot(optimizer, list(model)))
    assert same_bits(*ends)
