"""Parameters of every kind: without gradient, frozen, late, tied, strided, in several groups, and those refused."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, RMSprop

from fptt_dist.algorithm import FPTT

from .helpers import ADAPTIVE, BASES, advance, noise, parameters, same_bits, set_gradients, snapshot, two_groups


def test_a_parameter_without_gradient_is_left_untouched(subtests: pytest.Subtests) -> None:
    for name, update in product(BASES, ("gradient", "proximal")):
        with subtests.test(name=name, update=update):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, update_rule=update, max_norm=1.0)
            for t in range(3):
                set_gradients(params, noise(t, params))
                optimizer.step()
            before = snapshot(optimizer, [params[1]]), snapshot(optimizer, [params[0]])
            set_gradients(params, [noise(3, params)[0], None, noise(3, params)[2]])
            optimizer.step()
            assert same_bits(snapshot(optimizer, [params[1]]), before[0])
            assert not same_bits(snapshot(optimizer, [params[0]]), before[1])


def test_algorithm2_leaves_a_parameter_untouched_that_the_loss_does_not_use() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, update_rule="second_gradient")
    advance(optimizer, params, 0, 3)
    before = snapshot(optimizer, [params[1]])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum() + params[2].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert same_bits(snapshot(optimizer, [params[1]]), before)
    assert torch.equal(optimizer.state[params[0]]["scaled_dual"], 2 * params[0].detach() / 0.5)


def test_a_late_parameter_starts_from_its_own_first_step(subtests: pytest.Subtests) -> None:
    for name, metric in product(ADAPTIVE, ("euclidean", "preconditioned")):
        with subtests.test(name=name, metric=metric):
            params = parameters()
            optimizer = two_groups(params, BASES[name], alpha=0.5, metric=metric)
            for t in range(8):
                set_gradients(params, [g if i != 1 or t >= 4 else None for i, g in enumerate(noise(t, params))])
                optimizer.step()
            alone = parameters()
            control = two_groups(alone, BASES[name], alpha=0.5, metric=metric)
            for t in range(4, 8):
                set_gradients(alone, [None, noise(t, params)[1], None])
                control.step()
            assert same_bits(snapshot(optimizer, [params[1]]), snapshot(control, [alone[1]]))
            assert same_bits(snapshot(control, [alone[0]]), [parameters()[0].detach()])


def test_frozen_parameters_have_no_state_and_may_be_thawed() -> None:
    params = parameters()
    params[0].requires_grad_(False)
    start = params[0].detach().clone()
    optimizer = two_groups(params, BASES["adamw"], alpha=0.5)
    for t in range(3):
        set_gradients(params, [None, *noise(t, params)[1:]])
        optimizer.step()
    assert torch.equal(params[0], start)
    assert params[0] not in optimizer.state
    params[0].requires_grad_(True)
    advance(optimizer, params, 3, 5)
    assert not torch.equal(params[0], start)
    assert "center" in optimizer.state[params[0]]


def test_groups_have_their_own_alpha() -> None:
    params = parameters()
    groups = [{"params": params[:1], "alpha": 0.0}, {"params": params[1:2], "alpha": 2.0}, {"params": params[2:]}]
    optimizer = FPTT(SGD(groups, lr=0.1), alpha=0.5)
    assert [group["alpha"] for group in optimizer.param_groups] == [0.0, 2.0, 0.5]
    advance(optimizer, params, 0, 5)
    for i, alpha in enumerate((0.0, 2.0, 0.5)):
        control = parameters()
        same = FPTT(SGD(control, lr=0.1), alpha=alpha)
        advance(same, control, 0, 5)
        assert same_bits(snapshot(optimizer, [params[i]]), snapshot(same, [control[i]]))
        assert torch.equal(optimizer.dual(params[i]), alpha * optimizer.state[params[i]]["scaled_dual"])


@pytest.mark.parametrize("make", [SGD, Adam, RMSprop])
def test_a_group_added_later_is_stepped_with_the_defaults_and_its_own_settings(make: type) -> None:
    params = parameters()
    optimizer = FPTT(make(params[:1], lr=0.1), alpha=0.5)
    set_gradients(params[:1], noise(0, params[:1]))
    optimizer.step()
    optimizer.add_param_group({"params": params[1:2], "lr": 0.02, "alpha": 1.5})
    optimizer.add_param_group({"params": params[2:]})
    assert [(g["lr"], g["alpha"]) for g in optimizer.param_groups] == [(0.1, 0.5), (0.02, 1.5), (0.1, 0.5)]
    control = parameters()
    same = FPTT(make([{"params": control[1:2], "lr": 0.02}, {"params": control[2:]}], lr=0.1), alpha=0.5)
    same.param_groups[0]["alpha"] = 1.5
    for t in range(4):
        set_gradients(params, noise(t, params))
        set_gradients(control, noise(t, params))
        optimizer.step()
        same.step()
    assert same_bits(snapshot(optimizer, params[1:]), snapshot(same, control[1:]))


def test_tied_weights_are_one_parameter() -> None:
    model = nn.Module()
    model.encoder, model.decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    model.decoder.weight = model.encoder.weight
    optimizer = FPTT(Adam(model.parameters(), lr=0.1), alpha=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model.decoder(model.encoder(torch.tensor([0, 3]))).square().sum().backward()
        optimizer.step()
    assert len(optimizer.state) == 1
    assert optimizer.state[model.encoder.weight]["step"].item() == 3
    assert model.decoder.weight is model.encoder.weight
    with optimizer.at_center():
        assert torch.equal(model.decoder.weight, optimizer.center(model.encoder.weight))


def test_strides_do_not_matter(subtests: pytest.Subtests) -> None:
    for name, update in product(("sgd_momentum", "adam", "rmsprop"), ("gradient", "proximal", "second_gradient")):
        with subtests.test(name=name, update=update):
            dense = [p.detach().clone() for p in parameters()]
            views = [dense[0].t().contiguous().t(), dense[1].repeat_interleave(2)[::2], dense[2]]
            strided = [Parameter(view) for view in views]
            assert not strided[0].is_contiguous()
            assert not strided[1].is_contiguous()
            plain = parameters()
            optimizers = [
                two_groups(p, BASES[name], alpha=0.5, update_rule=update, max_norm=2.0) for p in (strided, plain)
            ]
            for optimizer, params in zip(optimizers, (strided, plain), strict=True):
                advance(optimizer, params, 0, 6)
            for left, right in zip(strided, plain, strict=True):
                torch.testing.assert_close(left.detach(), right.detach(), rtol=1e-5, atol=1e-6)
                centers = optimizers[0].center(left), optimizers[1].center(right)
                torch.testing.assert_close(*centers, rtol=1e-5, atol=1e-6)


def test_an_empty_group_and_an_empty_parameter_change_nothing(subtests: pytest.Subtests) -> None:
    for update, max_norm in product(("gradient", "proximal", "second_gradient"), (None, 1.0)):
        with subtests.test(update=update, max_norm=max_norm):
            params, control = [*parameters(), Parameter(torch.zeros(0, 3))], parameters()
            groups = [{"params": params[:-2]}, {"params": []}, {"params": params[-2:]}]
            optimizer = FPTT(Adam(groups, lr=0.05), alpha=0.5, update_rule=update, max_norm=max_norm)
            plain = FPTT(Adam(control, lr=0.05), alpha=0.5, update_rule=update, max_norm=max_norm)
            advance(optimizer, params, 0, 4)
            advance(plain, control, 0, 4)
            left, right = snapshot(optimizer, params[:3]), snapshot(plain, control)
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
            assert max_norm is not None or same_bits(
                left, right
            )  # a norm over one more tensor is summed in another order


def test_a_step_without_any_gradient_does_nothing() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], alpha=0.5, max_norm=1.0)
    optimizer.step()
    assert len(optimizer.state) == 0
    assert same_bits(snapshot(optimizer, params), [p.detach() for p in parameters()])


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    embedding, dense = nn.Embedding(5, 3, sparse=True), parameters()[0]
    optimizer = FPTT(SGD([dense, embedding.weight], lr=0.1), alpha=0.5)
    before = [dense.detach().clone(), embedding.weight.detach().clone()]
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert same_bits([dense.detach(), embedding.weight.detach()], before)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_narrow_and_complex_parameters_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"float32.*{dtype}"):
        FPTT(SGD([Parameter(torch.zeros(2, dtype=dtype))], lr=0.1), alpha=0.5)
    optimizer = FPTT(SGD(parameters(), lr=0.1), alpha=0.5)
    with pytest.raises(ValueError, match=f"float32.*{dtype}"):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(2, dtype=dtype))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_cast_to_half_precision_later_are_refused_at_the_step(dtype: torch.dtype) -> None:
    p = Parameter(torch.ones(2))
    optimizer = FPTT(SGD([p], lr=0.1), alpha=0.5)
    p.data = p.data.to(dtype)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="autocast"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2, dtype=dtype))


def test_maximising_is_refused(subtests: pytest.Subtests) -> None:
    for make in (SGD, Adam, AdamW, RMSprop):
        with subtests.test(make=make):
            with pytest.raises(ValueError, match="maximize"):
                FPTT(make(parameters(), lr=0.1, maximize=True), alpha=0.5)
            optimizer = FPTT(make(parameters(), lr=0.1), alpha=0.5)
            with pytest.raises(ValueError, match="maximize"):
                optimizer.add_param_group({"params": parameters(), "maximize": True})
            assert len(optimizer.param_groups) == 1
