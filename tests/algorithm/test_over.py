"""Classes constructed as the base optimizer is: `FPTT.over`."""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch.optim import SGD, Adam, RMSprop

from fptt_dist import FPTT

from .helpers import BASES, advance, parameters, same_bits, snapshot, two_groups


def test_it_is_fptt_around_the_base() -> None:
    made: Any = FPTT.over(Adam, alpha=0.3, metric="preconditioned", max_norm=1.0)
    params, others = parameters(), parameters()
    groups = [{"params": params[:-1]}, {"params": [params[-1]], "lr": 0.025}]
    optimizer = made(groups, lr=0.05, weight_decay=0.01)
    by_hand = two_groups(others, BASES["adam"], alpha=0.3, metric="preconditioned", max_norm=1.0)
    advance(optimizer, params, 0, 5)
    advance(by_hand, others, 0, 5)
    assert isinstance(optimizer, FPTT)
    assert isinstance(optimizer.base, Adam)
    assert same_bits(snapshot(optimizer, params), snapshot(by_hand, others))


def test_its_name_and_its_arguments_can_be_read() -> None:
    made = FPTT.over(RMSprop, alpha=0.3)
    assert made.__name__ == "FPTTRMSprop"
    assert repr(made(parameters(), lr=0.1)).startswith("FPTTRMSprop (")
    assert made.__doc__ == "`FPTT(RMSprop(params, …), alpha=0.3)`; the arguments are those of `RMSprop`."
    assert list(inspect.signature(made).parameters) == list(inspect.signature(RMSprop).parameters)


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_the_class_and_its_instances_can_be_pickled(module: Any) -> None:
    made = FPTT.over(Adam, alpha=0.3)
    again: Any = module.loads(module.dumps(made))
    assert again.__name__ == made.__name__
    params = parameters()
    optimizer: Any = made(params, lr=0.05)
    advance(optimizer, params, 0, 3)
    other, others = module.loads(module.dumps((optimizer, params)))
    assert type(other).__name__ == "FPTTAdam"
    advance(other, others, 3, 5)
    advance(optimizer, params, 3, 5)
    assert same_bits(snapshot(other, others), snapshot(optimizer, params))


def test_a_deep_copy_is_of_the_same_class() -> None:
    made = FPTT.over(SGD, alpha=0.3)
    assert copy.deepcopy(made) is made
    assert type(copy.deepcopy(made(parameters(), lr=0.1))) is made


def test_an_optimizer_in_the_backward_pass() -> None:
    """One for each parameter, stepped by a hook; Euclidean and unclipped, parameters do not depend on each other."""
    made = FPTT.over(SGD, alpha=0.3)
    torch.manual_seed(0)
    model = torch.nn.LSTM(2, 4)
    whole = copy.deepcopy(model)
    optimizers = {p: made([p], lr=0.1) for p in model.parameters()}

    def step(p: torch.Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    optimizer = made(whole.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.randn(3, 5, 2)
        model(x)[0].square().sum().backward()
        whole(x)[0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # as torch.distributed.optim is imported
def test_inside_of_a_zero_redundancy_optimizer(tmp_path: Path) -> None:
    """The nesting that works: the wrapper outside, which shards W̄ and u too."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        params, others = parameters(), parameters()
        made = FPTT.over(Adam, alpha=0.3)
        optimizer = ZeroRedundancyOptimizer(params, made, lr=0.05)
        alone: Any = made(others, lr=0.05)
        advance(optimizer, params, 0, 4)
        advance(alone, others, 0, 4)
        assert same_bits([p.detach() for p in params], [p.detach() for p in others])
        optimizer.consolidate_state_dict()
        assert {"center", "scaled_dual", "exp_avg"} <= set(optimizer.state_dict()["state"][0])
    finally:
        torch.distributed.destroy_process_group()


def test_mistakes_are_told_at_once(subtests: pytest.Subtests) -> None:
    adam = Adam(parameters())
    for base, options, message in (
        (Adam, {}, r"over\(Adam, …\): missing a required argument: 'alpha'; the options are alpha, beta, "),
        (Adam, {"alpha": 0.3, "lr": 0.1}, r"unexpected keyword argument 'lr'; the options are alpha, beta, "),
        (adam, {"alpha": 0.3}, "such as torch.optim.Adam, not an object of type Adam"),
        (int, {"alpha": 0.3}, "such as torch.optim.Adam, not int"),
        (FPTT, {"alpha": 0.3}, "base=FPTT is FPTT already"),
    ):
        with subtests.test(base=base, options=options), pytest.raises(TypeError, match=message):
            FPTT.over(base, **options)  # type: ignore[arg-type]
