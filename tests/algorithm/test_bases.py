"""Base optimizers that FPTT refuses, and what it says; the order of nesting that works; a base's own loading."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, Optimizer, SparseAdam

from fptt_dist.algorithm import FPTT

from .helpers import advance, noise, parameters, same_bits, set_gradients


class Lookahead(Optimizer):
    """A wrapper as third parties write them: its groups are a property."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.state = optimizer, optimizer.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure)


class Several(Optimizer):
    """A wrapper of several optimizers in a list."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        super().__init__([p for each in optimizers for group in each.param_groups for p in group["params"]], {})
        self.optimizers = optimizers

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.optimizers:
            each.step()


class GroupsElsewhere(SGD):
    """An optimizer whose groups cannot be replaced."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.__dict__["elsewhere"]

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.__dict__["elsewhere"] = value


class OwnStateDict(SGD):
    """An optimizer that saves more than torch does."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "more": 1}


class NoRate(Optimizer):
    """An optimizer without a learning rate."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"momentum": 0.9})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


class Counting(SGD):
    """SGD with a count in int64, which torch's `load_state_dict` turns into a float and its own does not."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["count"] = self.state[p].get("count", torch.tensor(0)) + 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for i, p in enumerate(self.param_groups[0]["params"]):
            if i in state_dict["state"]:
                self.state[p]["count"] = state_dict["state"][i]["count"].clone()


REFUSED: dict[str, tuple[Any, str]] = {
    "lookahead": (lambda p: Lookahead(SGD(p, lr=0.1)), r"Lookahead wraps .*SGD.*Lookahead\(FPTT\(SGD\(…\)"),
    "several": (lambda p: Several([SGD(p[:1], lr=0.1), Adam(p[1:])]), r"Several wraps .*Several\(FPTT\(SGD\(…\)"),
    "fptt": (lambda p: FPTT(SGD(p, lr=0.1), alpha=0.5), r"is an FPTT already.*base\.base"),
    "property": (lambda p: GroupsElsewhere(p, lr=0.1), "GroupsElsewhere keeps its state or its groups where"),
    "state_dict": (lambda p: OwnStateDict(p, lr=0.1), r"OwnStateDict has a state_dict\(\) of its own"),
    "lbfgs": (LBFGS, r"LBFGS\.step\(\) needs closure"),
    "sparse_adam": (SparseAdam, "SparseAdam takes sparse gradients alone.*sparse=False"),
    "no_rate": (NoRate, '"lr"'),
    "differentiable": (lambda p: SGD(p, lr=0.1, differentiable=True), "differentiable=True.*False"),
}


def test_a_base_that_cannot_work_is_refused_at_construction(subtests: pytest.Subtests) -> None:
    for name, (make, message) in REFUSED.items():
        with subtests.test(name=name):
            base = make(parameters())
            keys = [sorted(group) for group in base.param_groups]
            with pytest.raises(ValueError, match=message):
                FPTT(base, alpha=0.5)
            assert [sorted(group) for group in base.param_groups] == keys


def test_a_differentiable_group_is_refused_later_too() -> None:
    optimizer = FPTT(SGD(parameters()[:1], lr=0.1), alpha=0.5)
    with pytest.raises(ValueError, match="differentiable=True"):
        optimizer.add_param_group({"params": parameters()[1:], "differentiable": True})
    assert len(optimizer.param_groups) == 1


def test_a_wrapper_around_fptt_is_fptt() -> None:
    params, control = parameters(), parameters()
    wrapper = Several([FPTT(Adam(params, lr=0.05), alpha=0.5)])
    optimizer = FPTT(Adam(control, lr=0.05), alpha=0.5)
    advance(wrapper, params, 0, 4)
    advance(optimizer, control, 0, 4)
    assert same_bits([p.detach() for p in params], [p.detach() for p in control])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.TorchScript.:DeprecationWarning")
@pytest.mark.usefixtures("one_process")
def test_zero_redundancy_goes_around_fptt() -> None:
    """Its own state is its inner optimizer's, so that FPTT around it saves none; what the message advises is whole."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params, control = parameters(), parameters()
    with pytest.raises(ValueError, match=r"ZeroRedundancyOptimizer wraps .*Adam.*FPTT\.over\(Adam, alpha=…\)"):
        FPTT(ZeroRedundancyOptimizer(params, Adam, lr=0.05), alpha=0.3)
    optimizer = FPTT(Adam(control, lr=0.05), alpha=0.3)
    sharded = ZeroRedundancyOptimizer(params, FPTT.over(Adam, alpha=0.3), lr=0.05)
    for t in range(3):
        set_gradients(params, noise(t, params))
        set_gradients(control, noise(t, control))
        sharded.step()
        optimizer.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in control])
    sharded.consolidate_state_dict()
    assert set(sharded.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "center", "scaled_dual"}


def test_a_bases_own_loading_loads() -> None:
    params, others = parameters(), parameters(seed=1)
    optimizer, other = FPTT(Counting(params, lr=0.05), alpha=0.5), FPTT(Counting(others, lr=0.05), alpha=0.5)
    advance(optimizer, params, 0, 3)
    saved, calls = copy.deepcopy(optimizer.state_dict()), []
    other.register_load_state_dict_post_hook(lambda each: calls.append(each))
    other.load_state_dict(saved)
    assert calls == [other]
    assert other.base.state is other.state
    assert other.base.param_groups is other.param_groups
    assert other.state[others[0]]["count"].dtype == torch.int64
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    advance(optimizer, params, 3, 5)
    advance(other, others, 3, 5)
    assert same_bits([p.detach() for p in params], [p.detach() for p in others])
    assert same_bits([optimizer.center(p) for p in params], [other.center(p) for p in others])
    assert other.state[others[0]]["count"] == 5


def test_a_bases_own_loading_sees_no_state_of_fptt_alone() -> None:
    params = [Parameter(torch.ones(2))]
    optimizer = FPTT(Counting(params, lr=0.05), alpha=0.5)
    optimizer.slow_state()[1][0].fill_(3.0)
    other = FPTT(Counting([Parameter(torch.zeros(2))], lr=0.05), alpha=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.slow_state()[1][0], torch.full((2,), 3.0))
