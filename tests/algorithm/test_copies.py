"""Copies of the optimizer: deep copies, pickles, and a run that resumes in another process."""

import copy
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, NAdam, RMSprop
from torch.optim.lr_scheduler import LambdaLR

import fptt_dist
from fptt_dist.algorithm import FPTT, ConsensusTerm

from . import helpers
from .helpers import BASES, advance, parameters, same_bits, set_gradients, snapshot, two_groups

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {"alpha": 0.5, "max_norm": 2.0},
    "proximal": {"alpha": 0.5, "update_rule": "proximal", "beta": 0.7},
    "second_gradient": {"alpha": 0.5, "update_rule": "second_gradient"},
}


def test_a_copy_continues_identically_and_alone(subtests: pytest.Subtests) -> None:
    for name, variant, pickled in product(("sgd_momentum", "adamw", "rmsprop"), VARIANTS, (False, True)):
        with subtests.test(name=name, variant=variant, pickled=pickled):
            params = parameters()
            optimizer = two_groups(params, BASES[name], **VARIANTS[variant])
            advance(optimizer, params, 0, 4)
            pair = optimizer, params
            other, others = pickle.loads(pickle.dumps(pair)) if pickled else copy.deepcopy(pair)
            start = snapshot(optimizer, params)
            advance(other, others, 4, 8)
            assert same_bits(snapshot(optimizer, params), start)
            advance(optimizer, params, 4, 8)
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))
            assert other.base.state is other.state
            assert other.base.param_groups is other.param_groups


def test_a_copy_of_a_fresh_optimizer_is_fresh() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    other, others = copy.deepcopy((optimizer, params))
    advance(optimizer, params, 0, 3)
    advance(other, others, 0, 3)
    assert same_bits(snapshot(other, others), snapshot(optimizer, params))


def test_a_copy_of_slow_weights_that_were_made_before_any_step(subtests: pytest.Subtests) -> None:
    """The base's own state is not there yet, or, of Adagrad, is; the copies' W̄ and u are those of the original."""
    for make, pickled in product((SGD, Adam, RMSprop, Adagrad, NAdam), (False, True)):
        with subtests.test(make=make, pickled=pickled):
            params = parameters()
            optimizer = FPTT(make(params, lr=0.01), alpha=0.5)
            optimizer.slow_state()[1][0].add_(0.25)
            pair = optimizer, params
            other, others = pickle.loads(pickle.dumps(pair)) if pickled else copy.deepcopy(pair)
            thirds = parameters()
            third = FPTT(make(thirds, lr=0.01), alpha=0.5)
            third.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for each, own in (pair, (other, others), (third, thirds)):
                advance(each, own, 0, 3)
                assert each.base.state is each.state
                assert each.base.param_groups is each.param_groups
            assert same_bits(snapshot(other, others), snapshot(optimizer, params))
            assert same_bits(snapshot(third, thirds), snapshot(optimizer, params))


def test_a_copy_of_a_state_that_was_only_made() -> None:
    params, control = parameters(), parameters()
    optimizer, plain = FPTT(Adam(params, lr=0.0), alpha=0.5), FPTT(Adam(control, lr=0.05), alpha=0.5)
    set_gradients(params, [torch.zeros_like(p) for p in params])
    optimizer.step()
    other, others = copy.deepcopy((optimizer, params))
    other.param_groups[0]["lr"] = 0.05
    advance(other, others, 0, 3)
    advance(plain, control, 0, 3)
    assert same_bits(snapshot(other, others), snapshot(plain, control))


def test_a_shallow_copy_shares_state_and_parameters() -> None:
    params, control = parameters(), parameters()
    optimizer, plain = FPTT(Adam(params, lr=0.05), alpha=0.5), FPTT(Adam(control, lr=0.05), alpha=0.5)
    other = copy.copy(optimizer)
    for t in range(4):
        advance(other if t % 2 else optimizer, params, t, t + 1)
    advance(plain, control, 0, 4)
    assert same_bits(snapshot(optimizer, params), snapshot(plain, control))


def test_a_copy_takes_no_seams_hooks_or_schedulers_along() -> None:
    """They hold process groups and other optimizers."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    optimizer.norm_reduce = lambda squares: squares
    optimizer.consensus_term = ConsensusTerm({}, {}, {})
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    LambdaLR(optimizer, lambda t: 0.9**t)
    other, others = pickle.loads(pickle.dumps((optimizer, params)))  # the hook and the lambdas could not be pickled
    assert other.norm_reduce is None
    assert other.consensus_term is None
    advance(other, others, 0, 1)
    assert calls == []
    advance(optimizer, params, 0, 1)
    assert calls == [1]


@pytest.mark.slow
def test_runs_continue_bit_for_bit_in_a_fresh_process(tmp_path: Path) -> None:
    runs, saved = [], []
    for name, variant in (("adamw", "gradient"), ("rmsprop", "second_gradient")):
        params = parameters()
        optimizer = two_groups(params, BASES[name], **VARIANTS[variant])
        advance(optimizer, params, 0, 5)
        state = copy.deepcopy(optimizer.state_dict())
        weights = [p.detach().clone() for p in params]
        saved.append({"weights": weights, "base": name, "options": VARIANTS[variant], "optimizer": state})
        runs.append((optimizer, params))
    torch.save(saved, tmp_path / "saved.pt")
    package = Path(fptt_dist.__path__[0]).parent
    subprocess.run(
        [sys.executable, helpers.__file__, str(tmp_path / "saved.pt"), str(tmp_path / "result.pt"), "5", "9"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(package)},
        timeout=120,
    )
    resumed = torch.load(tmp_path / "result.pt", weights_only=True)
    for other, (optimizer, params) in zip(resumed, runs, strict=True):
        advance(optimizer, params, 5, 9)
        assert same_bits(other, snapshot(optimizer, params))
