"""α, β, κ and c are a group's: two groups in one optimizer are two optimizers."""

import copy
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from fptt_dist.algorithm import FPTT
from fptt_dist.parallel.sync.averaged_dual import AveragedDual

from .helpers import BASES, advance, noise, parameters, same_bits, set_gradients, snapshot

FIRST: dict[str, Any] = {"alpha": 0.4, "beta": 0.5, "dual_weight": 1.0, "prox_weight": 1.0}
SECOND: dict[str, Any] = {"alpha": 0.5, "beta": 0.8, "dual_weight": 0.5, "prox_weight": 1.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "proximal": {"update_rule": "proximal"},
    "second_gradient": {"update_rule": "second_gradient"},
    "preconditioned": {"metric": "preconditioned"},
}
COMBINATIONS = [*product(("sgd_momentum", "adam", "rmsprop"), ("gradient", "proximal", "second_gradient"))]
COMBINATIONS += [("adamw", "preconditioned"), ("rmsprop_centered", "preconditioned")]


class Beta(Optimizer):
    """A base whose own hyper-parameter is called "beta", and changes at each step."""

    def __init__(self, params: Iterable[Tensor], lr: float, beta: float = 0.25) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] * group["beta"])
            group["beta"] *= 0.5


def alone_and_together(name: str, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Weights that two groups of one optimizer reach in 8 updates, and those of two optimizers.

    Rates fall by a factor of 100 on the way, and the second group's β changes.
    """
    base, ends = BASES[name], []
    for together in (True, False):
        params = parameters()
        parts = [[params[:2], params[2:]]] if together else [[params[:2]], [params[2:]]]
        optimizers = [
            FPTT(base.make([{"params": part} for part in own], lr=0.05, **base.options), alpha=0.1, **options)
            for own in parts
        ]
        groups = [group for each in optimizers for group in each.param_groups]
        for group, own in zip(groups, (FIRST, SECOND), strict=True):
            group.update(own)
        for t in range(8):
            groups = [group for each in optimizers for group in each.param_groups]
            for group in groups:
                group["lr"] = 0.05 if t < 4 else 0.0005
            groups[1]["beta"] = 0.6 if t > 5 else SECOND["beta"]
            for each in optimizers:
                each.step(closure_of(params, noise(t, params)))
        ends.append([t for p in params for each in optimizers if p in each.state for t in snapshot(each, [p])])
    return ends[0], ends[1]


def closure_of(params: list[Any], targets: list[Tensor]) -> Callable[[], None]:
    def closure() -> None:
        set_gradients(params, [p.detach() - target for p, target in zip(params, targets, strict=True)])

    return closure


def test_two_groups_are_two_optimizers(subtests: pytest.Subtests) -> None:
    for name, variant in COMBINATIONS:
        with subtests.test(name=name, variant=variant):
            together, alone = alone_and_together(name, **VARIANTS[variant])
            assert same_bits(together, alone)


@pytest.mark.slow
def test_fused_too() -> None:
    together, _ = alone_and_together("adam", metric="preconditioned", fused=True)
    plain, _ = alone_and_together("adam", metric="preconditioned")
    torch.testing.assert_close(together, plain, rtol=3e-6, atol=3e-6)


def test_they_are_in_the_groups_of_the_state_dict() -> None:
    params, others = parameters(), parameters(seed=1)
    optimizer = FPTT(Adam([{"params": params[:2]}, {"params": params[2:], **SECOND}], lr=0.05), **FIRST)
    optimizer.add_param_group({"params": [extra := torch.nn.Parameter(torch.ones(2))], "beta": 0.9})
    names = list(FIRST)
    found = [{name: group[name] for name in names} for group in optimizer.param_groups]
    assert found == [FIRST, SECOND, {**FIRST, "beta": 0.9}]
    optimizer.param_groups.pop()
    assert extra not in optimizer.state

    advance(optimizer, params, 0, 3)
    other = FPTT(Adam([{"params": others[:2]}, {"params": others[2:]}], lr=0.01), alpha=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [{name: group[name] for name in names} for group in other.param_groups] == [FIRST, SECOND]
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    advance(optimizer, params, 3, 5)
    advance(other, others, 3, 5)
    assert same_bits(snapshot(optimizer, params), snapshot(other, others))


def test_a_state_that_lacks_them_leaves_them() -> None:
    """Of the base alone, or of a version where they were not a group's."""
    params = parameters()
    optimizer = FPTT(RMSprop(params, lr=0.05, alpha=0.8), **SECOND)
    optimizer.load_state_dict(RMSprop(params, lr=0.02, alpha=0.9).state_dict())
    group = optimizer.param_groups[0]
    assert ({name: group[name] for name in FIRST}, group["base_alpha"], group["lr"]) == (SECOND, 0.9, 0.02)
    state = optimizer.state_dict()
    optimizer.load_state_dict(
        {**state, "param_groups": [{k: v for k, v in g.items() if k != "beta"} for g in state["param_groups"]]}
    )
    assert optimizer.param_groups[0]["beta"] == 0.8


def test_a_value_out_of_range_is_refused_by_group() -> None:
    params = parameters()
    for name, value in (("beta", 0.0), ("dual_weight", -1.0), ("prox_weight", float("nan"))):
        with pytest.raises(ValueError, match=f"{name}="):
            FPTT(SGD([{"params": params[:1]}, {"params": params[1:], name: value}], lr=0.1), alpha=0.5)
        optimizer = FPTT(SGD(params[:1], lr=0.1), alpha=0.5)
        with pytest.raises(ValueError, match=f"{name}="):
            optimizer.add_param_group({"params": params[1:], name: value})
        assert len(optimizer.param_groups) == 1


def test_a_bases_own_beta_is_its_own() -> None:
    params, control = parameters(), parameters()
    optimizer, base = FPTT(Beta(params, lr=0.1), alpha=0.0, beta=0.75), Beta(control, lr=0.1)
    for t in range(3):
        set_gradients(params, noise(t, params))
        set_gradients(control, noise(t, control))
        optimizer.step()
        base.step()
    assert same_bits([p.detach() for p in params], [p.detach() for p in control])
    group = optimizer.param_groups[0]
    assert (group["beta"], group["base_beta"]) == (0.75, 0.25 / 8)


def test_the_warning_looks_at_the_groups_own() -> None:
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "beta": 0.7, "prox_weight": 2.0}]
    optimizer = FPTT(SGD(groups, lr=0.1, momentum=0.9), alpha=2.0)  # αη = 0.2: limits of 3.17 and 0.18
    set_gradients(params, noise(0, params))
    with pytest.warns(UserWarning, match=r"alpha < 1\.[78]\d* .*beta=0\.7, prox_weight=2"):
        optimizer.step()


def test_workers_that_send_the_weights_alone_have_the_means_of_w_bar_and_u() -> None:
    """Slow weights that follow from the mean of W, with each group's β."""
    workers = []
    for seed in (0, 1):
        params = parameters()
        optimizer = FPTT(SGD([{"params": params[:2]}, {"params": params[2:], **SECOND}], lr=0.1), **FIRST)
        rule = AveragedDual("average", slow=True, each_window=True, compressed=False)
        rule.attach(optimizer, ["a", "b", "c"])
        set_gradients(params, noise(seed, params))
        optimizer.step()
        workers.append((optimizer, rule))
    slow = [[t.clone() for part in optimizer.slow_state() for t in part] for optimizer, _ in workers]
    means = [(a + b) / 2 for a, b in zip(*slow, strict=True)]
    for optimizer, rule in workers:
        rule.apply(means[:3], torch.zeros(0))
        torch.testing.assert_close([t for part in optimizer.slow_state() for t in part], means)
