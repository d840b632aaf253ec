"""Computing with W̄, the reset at the end of an epoch, and reading W̄, λ and the norms."""

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.diagnostics import norms

from .helpers import BASES, advance, noise, parameters, same_bits, set_gradients, snapshot, two_groups


def run(updates: int = 5, **options: Any) -> tuple[FPTT, list[Parameter]]:
    """FPTT(Adam) after some updates."""
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], **{"alpha": 0.5, **options})
    advance(optimizer, params, 0, updates)
    return optimizer, params


def test_at_center_the_parameters_are_the_center_and_come_back_bit_for_bit() -> None:
    optimizer, params = run()
    before, addresses = snapshot(optimizer, params), [p.data_ptr() for p in params]
    with optimizer.at_center():
        assert [p.data_ptr() for p in params] == addresses
        assert same_bits([p.detach() for p in params], [optimizer.center(p) for p in params])
        assert not torch.equal(params[0], before[0])
        assert all(p.requires_grad for p in params)
    assert same_bits(snapshot(optimizer, params), before)
    assert [p.data_ptr() for p in params] == addresses


def test_the_weights_come_back_after_an_exception() -> None:
    optimizer, params = run()
    before = snapshot(optimizer, params)
    with pytest.raises(KeyError), optimizer.at_center():
        raise KeyError
    assert same_bits(snapshot(optimizer, params), before)


def test_whatever_is_done_to_the_weights_at_the_center_is_undone() -> None:
    optimizer, params = run()
    before = snapshot(optimizer, params)
    with optimizer.at_center(), torch.no_grad():
        params[0].zero_()
    assert same_bits(snapshot(optimizer, params), before)


def test_what_would_be_lost_at_the_center_is_refused(subtests: pytest.Subtests) -> None:
    """And it changes nothing; after it, and after any exception in the context, all is as if it had not been."""
    for call in (
        lambda o: o.step(),
        lambda o: o.step(lambda: torch.zeros(())),
        lambda o: o.reset_to_center(),
        lambda o: o.load_state_dict(o.state_dict()),
    ):
        with subtests.test(call=call):
            optimizer, params = run()
            before = snapshot(optimizer, params)
            set_gradients(params, noise(5, params))
            message = r"^[a-z_]+\(\) inside at_center\(\): .* would be lost, .*: leave the context first$"
            with pytest.raises(RuntimeError, match=message), optimizer.at_center():
                call(optimizer)
            assert same_bits(snapshot(optimizer, params), before)
            with optimizer.at_center(), pytest.raises(RuntimeError, match=message):
                call(optimizer)
            assert same_bits(snapshot(optimizer, params), before)
            control, others = run(updates=8)
            advance(optimizer, params, 5, 8)
            optimizer.reset_to_center(weights=False, dual=False)
            optimizer.load_state_dict(optimizer.state_dict())
            assert same_bits(snapshot(optimizer, params), snapshot(control, others))


def test_a_fused_update_at_the_center_is_refused_too() -> None:
    params = parameters()
    optimizer = FPTT(torch.optim.Adam(params, lr=0.05), alpha=0.5, fused=True)
    set_gradients(params, noise(0, params))
    optimizer.step()  # the first one is the plain path's, and nothing is compiled for a refusal
    with optimizer.at_center(), pytest.raises(RuntimeError, match="at_center"):
        optimizer.step()


def test_the_center_within_the_center() -> None:
    """The inner context's end is not the outer one's."""
    optimizer, params = run()
    before = snapshot(optimizer, params)
    with optimizer.at_center():
        with pytest.raises(KeyError), optimizer.at_center():
            raise KeyError
        assert same_bits([p.detach() for p in params], [optimizer.center(p) for p in params])
        with pytest.raises(RuntimeError, match="at_center"):
            optimizer.step()
    assert same_bits(snapshot(optimizer, params), before)
    advance(optimizer, params, 5, 6)


def test_any_weights_are_shown_and_guarded_like_the_center() -> None:
    """As the mean of the weights is (`Strategy.swapped_weights`)."""
    optimizer, params = run()
    before, other = snapshot(optimizer, params), noise(7, params)
    with optimizer.swapped_weights(list(params), other):
        assert same_bits([p.detach() for p in params], other)
        with pytest.raises(RuntimeError, match="step"):
            optimizer.step()
    assert same_bits(snapshot(optimizer, params), before)


def test_a_group_added_at_the_center_keeps_its_weights() -> None:
    optimizer, params = run()
    new = Parameter(torch.ones(3))
    with optimizer.at_center():
        optimizer.add_param_group({"params": [new]})
    assert torch.equal(new, torch.ones(3))
    set_gradients([*params, new], noise(9, [*params, new]))
    optimizer.step()
    assert not torch.equal(new, torch.ones(3))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_made_at_the_center_has_its_weights_for_its_own(copied: Callable[[FPTT], FPTT]) -> None:
    optimizer, params = run()
    with optimizer.at_center():
        other = copied(optimizer)
    own = [p for group in other.param_groups for p in group["params"]]
    assert same_bits([p.detach() for p in own], [optimizer.center(p) for p in params])
    advance(other, own, 5, 6)
    assert not torch.equal(own[0], optimizer.center(params[0]))


def test_at_center_before_the_first_step_is_at_the_weights() -> None:
    optimizer, params = run(updates=0)
    with optimizer.at_center():
        assert same_bits([p.detach() for p in params], [p.detach() for p in parameters()])
    assert len(optimizer.state) == 0
    set_gradients(params, [noise(0, params)[0], None, None])
    optimizer.step()
    with optimizer.at_center():
        assert torch.equal(params[0], optimizer.center(params[0]))
        assert torch.equal(params[1], parameters()[1])


def test_looking_at_the_center_does_not_change_the_trajectory() -> None:
    optimizer, params = run(updates=0)
    control, others = run(updates=8)
    for t in range(8):
        with optimizer.at_center():
            torch.stack([p.square().sum() for p in params]).sum().backward()
        optimizer.zero_grad()
        advance(optimizer, params, t, t + 1)
        norms(optimizer)
    assert same_bits(snapshot(optimizer, params), snapshot(control, others))


def test_reset_to_center_has_two_switches_and_keeps_the_moments(subtests: pytest.Subtests) -> None:
    for dual, weights in product((True, False), (True, False)):
        with subtests.test(dual=dual, weights=weights):
            optimizer, params = run()
            before = [{k: v.clone() for k, v in optimizer.state[p].items()} | {"W": p.detach().clone()} for p in params]
            addresses = [p.data_ptr() for p in params]
            optimizer.reset_to_center(weights=weights, dual=dual)
            assert [p.data_ptr() for p in params] == addresses
            for p, old in zip(params, before, strict=True):
                assert not torch.equal(old["W"], old["center"])
                assert old["scaled_dual"].any()
                assert torch.equal(p.detach(), old["center"] if weights else old["W"])
                expected = torch.zeros_like(p) if dual else old["scaled_dual"]
                assert torch.equal(optimizer.state[p]["scaled_dual"], expected)
                for name in ("center", "exp_avg", "exp_avg_sq", "step"):
                    assert torch.equal(optimizer.state[p][name], old[name])


def test_reset_to_center_does_both_by_default_and_copies() -> None:
    optimizer, params = run()
    optimizer.reset_to_center()
    center = optimizer.center(params[0]).clone()
    assert torch.equal(params[0], center)
    assert not optimizer.dual(params[0]).any()
    with torch.no_grad():
        params[0].add_(1.0)
    assert torch.equal(optimizer.center(params[0]), center)


def test_reset_to_center_before_the_first_step_does_nothing() -> None:
    optimizer, params = run(updates=0)
    optimizer.reset_to_center()
    assert len(optimizer.state) == 0
    assert same_bits([p.detach() for p in params], [p.detach() for p in parameters()])


def test_center_and_dual_before_the_first_step() -> None:
    optimizer, params = run(updates=0)
    assert torch.equal(optimizer.center(params[0]), params[0])
    assert not optimizer.center(params[0]).requires_grad
    assert torch.equal(optimizer.dual(params[0]), torch.zeros_like(params[0]))
    assert len(optimizer.state) == 0


def test_the_dual_is_alpha_times_what_is_stored_and_jumps_with_alpha() -> None:
    optimizer, params = run()
    u = optimizer.state[params[0]]["scaled_dual"].clone()
    assert torch.equal(optimizer.dual(params[0]), 0.5 * u)
    optimizer.param_groups[0]["alpha"] = 2.0
    assert torch.equal(optimizer.dual(params[0]), 2.0 * u)
    optimizer.dual(params[0]).zero_()
    assert torch.equal(optimizer.state[params[0]]["scaled_dual"], u)


def test_algorithm2s_dual_is_a_gradient_and_does_not_jump() -> None:
    optimizer, params = run(update_rule="second_gradient")
    lam = optimizer.dual(params[0])
    optimizer.param_groups[0]["alpha"] = 2.0
    assert torch.equal(optimizer.dual(params[0]), lam)


def test_the_dual_of_a_parameter_that_left_the_groups_is_refused() -> None:
    optimizer, params = run()
    optimizer.param_groups.pop()
    with pytest.raises(ValueError, match="param"):
        optimizer.dual(params[2])


def norm(tensors: list[Tensor]) -> Tensor:
    """2-norm over all elements of all tensors, the slow way."""
    return torch.cat([t.detach().double().flatten() for t in tensors]).norm().float()


def test_norms_are_of_gradient_force_distance_and_dual() -> None:
    optimizer, params = run()
    set_gradients(params, noise(9, params))
    distances = [p - optimizer.center(p) for p in params]
    regularizer = [0.5 * (d - optimizer.state[p]["scaled_dual"]) for d, p in zip(distances, params, strict=True)]
    before = snapshot(optimizer, params)
    found = norms(optimizer)
    expected = {
        "gradient": norm(noise(9, params)),
        "regularizer": norm(regularizer),
        "center_distance": norm(distances),
        "dual": norm([optimizer.dual(p) for p in params]),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dim() == 0
        torch.testing.assert_close(found[name], value, msg=name)
        assert value > 0
    assert same_bits(snapshot(optimizer, params), before)


def test_the_norm_of_algorithm2s_force_follows_a_change_of_alpha() -> None:
    optimizer, params = run(update_rule="second_gradient")
    before = [(p.detach() - optimizer.center(p), optimizer.state[p]["scaled_dual"].clone()) for p in params]
    for group in optimizer.param_groups:
        group["alpha"] = 2.0
    torch.testing.assert_close(norms(optimizer)["regularizer"], norm([2.0 * (e - 0.25 * u) for e, u in before]))


def test_norms_before_the_first_step_are_zero_but_for_the_gradient() -> None:
    optimizer, params = run(updates=0)
    set_gradients(params, noise(0, params))
    found = {name: value.item() for name, value in norms(optimizer).items()}
    assert found.pop("gradient") > 0
    assert found == {"regularizer": 0.0, "center_distance": 0.0, "dual": 0.0}
