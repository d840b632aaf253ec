"""What drives optimizers in torch drives FPTT: schedulers, GradScaler, hooks; and no graph grows on the state."""

from collections import defaultdict
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from fptt_dist.algorithm import FPTT

from .helpers import (
    BASES,
    Update,
    advance,
    noise,
    parameters,
    quadratic,
    same_bits,
    set_gradients,
    snapshot,
    two_groups,
)

UPDATES = ("gradient", "proximal", "second_gradient")


def test_a_scheduler_sets_the_learning_rate_of_both(subtests: pytest.Subtests) -> None:
    for name, update in product(("sgd_momentum", "adam", "rmsprop"), UPDATES):
        with subtests.test(name=name, update=update):
            params, control = parameters(), parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, update_rule=update)
            by_hand = two_groups(control, BASES[name], alpha=0.5, update_rule=update)
            scheduler = LambdaLR(optimizer, lambda t: 0.7**t)
            for t in range(5):
                advance(optimizer, params, t, t + 1)
                scheduler.step()
                for group, lr in zip(by_hand.param_groups, (0.05, 0.025), strict=True):
                    group["lr"] = lr * 0.7**t
                advance(by_hand, control, t, t + 1)
            assert same_bits(snapshot(optimizer, params), snapshot(by_hand, control))
            assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**5)


def test_a_plateau_lowers_the_learning_rate() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    for t in range(2):
        advance(optimizer, params, t, t + 1)
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0025])


@pytest.mark.parametrize("name", ["sgd_momentum", "adam"])
def test_schedulers_that_cycle_momentum_find_it(name: str) -> None:
    params = parameters()
    optimizer = two_groups(params, BASES[name], alpha=0.5)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=6)
    read = (lambda g: g["momentum"]) if name == "sgd_momentum" else (lambda g: g["betas"][0])
    seen = set()
    for t in range(5):
        advance(optimizer, params, t, t + 1)
        scheduler.step()
        seen.add(round(read(optimizer.base.param_groups[0]), 6))
    assert len(seen) > 2


def test_a_scheduler_made_on_the_base_before_wrapping_drives_the_wrapper() -> None:
    params = parameters()
    base = torch.optim.Adam(params, lr=0.1)
    scheduler = CosineAnnealingLR(base, T_max=4)
    optimizer = FPTT(base, alpha=0.5)
    for t in range(4):
        advance(optimizer, params, t, t + 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["sgd_momentum", "adamw", "rmsprop"])
def test_a_learning_rate_may_be_a_tensor(name: str) -> None:
    for update in ("gradient", "proximal"):
        ends = []
        for lr in (0.0625, torch.tensor(0.0625)):
            params = parameters()
            base = BASES[name]
            optimizer = FPTT(base.make(params, lr=lr, **base.options, foreach=False), alpha=0.5, update_rule=update)
            advance(optimizer, params, 0, 5)
            ends.append(snapshot(optimizer, params))
        torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_the_scaler_unscales_before_the_force_and_the_clip(update: Update) -> None:
    params, control = parameters(), parameters()
    options: dict[str, Any] = {"alpha": 0.5, "update_rule": update, "max_norm": 1.0}
    optimizer, plain = two_groups(params, BASES["adam"], **options), two_groups(control, BASES["adam"], **options)
    scaler = GradScaler("cpu", init_scale=64.0)
    for t in range(5):
        targets = noise(t, params)
        optimizer.zero_grad()
        losses = [0.5 * (i + 1) * (p - c).square().sum() for i, (p, c) in enumerate(zip(params, targets, strict=True))]
        scaler.scale(torch.stack(losses).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    advance(plain, control, 0, 5)
    assert same_bits(snapshot(optimizer, params), snapshot(plain, control))


def test_the_scaler_skips_the_whole_update_on_overflow(subtests: pytest.Subtests) -> None:
    for bad, started in product((float("inf"), float("nan")), (True, False)):
        with subtests.test(bad=bad, started=started):
            params = parameters()
            optimizer = two_groups(params, BASES["adam"], alpha=0.5)
            scaler = GradScaler("cpu", init_scale=64.0)
            advance(optimizer, params, 0, 3 if started else 0)
            before = snapshot(optimizer, params)
            optimizer.zero_grad()
            scaler.scale(torch.stack([p.sum() for p in params]).sum()).backward()
            assert params[1].grad is not None
            params[1].grad[2] = bad
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == 32.0
            assert same_bits(snapshot(optimizer, params), before)
            optimizer.zero_grad()
            scaler.scale(torch.stack([p.sum() for p in params]).sum()).backward()
            scaler.step(optimizer)
            assert not same_bits(snapshot(optimizer, params), before)


@pytest.mark.parametrize("update", UPDATES)
def test_hooks_of_both_fire_once_per_update(update: Update) -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule=update)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.base.register_step_post_hook(lambda *_: calls.append("base"))
    advance(optimizer, params, 0, 2)
    assert calls == ["before", "base", "after"] * 2


def test_no_graph_grows_on_weights_gradients_or_state(subtests: pytest.Subtests) -> None:
    for name, update in product(("sgd_momentum", "adam", "rmsprop_centered"), UPDATES):
        with subtests.test(name=name, update=update):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, update_rule=update, max_norm=1.0)
            for t in range(3):
                optimizer.step(quadratic(optimizer, params, t))
            optimizer.reset_to_center()
            for p in params:
                assert p.is_leaf
                assert p.requires_grad
                assert p.grad is not None
                for tensor in (p.grad, optimizer.center(p), optimizer.dual(p), *optimizer.state[p].values()):
                    assert tensor.grad_fn is None
                    assert not tensor.requires_grad


def test_addresses_of_weights_and_slow_variables_never_change() -> None:
    """Flat buffers, cuDNN's weights and captured graphs hold them."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule="proximal", max_norm=1.0)
    advance(optimizer, params, 0, 1)

    def addresses() -> list[int]:
        slow = [optimizer.state[p][name] for p in params for name in ("center", "scaled_dual")]
        return [t.data_ptr() for t in (*params, *slow)]

    before = addresses()
    advance(optimizer, params, 1, 4)
    optimizer.reset_to_center()
    with optimizer.at_center():
        assert addresses() == before
    assert addresses() == before


def test_a_recurrent_net_trains_windowed_and_its_force_is_outside_the_graph() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(2, 4)
    optimizer = FPTT(torch.optim.Adam(model.parameters(), lr=0.02), alpha=0.5, metric="preconditioned", max_norm=1.0)
    x, losses = torch.randn(12, 3, 2), []
    for _ in range(30):
        state, loss = None, torch.zeros(())
        for part in x.split(4):
            y, state = model(part, state)
            loss = (y - 0.5).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            state = tuple(s.detach() for s in state)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_base_follows_gradients_set_by_hand() -> None:
    """`.grad` afterwards holds gradient + regularizer."""
    params = parameters()
    optimizer = two_groups(params, BASES["sgd"], alpha=0.5)
    advance(optimizer, params, 0, 1)
    regularizers = [0.5 * ((p - optimizer.center(p)) - optimizer.state[p]["scaled_dual"]).detach() for p in params]
    gradients = noise(1, params)
    set_gradients(params, gradients)
    optimizer.step()
    for p, g, regularizer in zip(params, gradients, regularizers, strict=True):
        torch.testing.assert_close(p.grad, g + regularizer)
        assert regularizer.abs().max() > 1e-4


def test_a_state_that_was_replaced_from_outside_is_read_at_once() -> None:
    """As engines do: W̄ is then W until the next step, and nothing is read from the old state."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    advance(optimizer, params, 0, 3)
    assert not same_bits([optimizer.center(p) for p in params], [p.detach() for p in params])
    optimizer.state = defaultdict(dict)
    assert same_bits([optimizer.center(p) for p in params], [p.detach() for p in params])
    assert not any(optimizer.dual(p).any() for p in params)
    with optimizer.at_center():
        assert same_bits([optimizer.center(p) for p in params], [p.detach() for p in params])
    groups = [{**group, "params": group["params"][:1]} for group in optimizer.param_groups]
    optimizer.param_groups = groups
    assert [id(p) for p in optimizer.slow_state()[0]] == [id(group["params"][0]) for group in groups]
    assert optimizer.base.state is optimizer.state
