"""The preconditioned metric under any learning-rate schedule: bounded, and unchanged where η falls slowly."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau, StepLR

from fptt_dist.algorithm import FPTT, fptt, plain_update, slow_state
from fptt_dist.algorithm import preconditioner as metric
from fptt_dist.algorithm.diagnostics import norms
from fptt_dist.algorithm.preconditioner import LEAST_RATE, reference_rate, rounding_gain

from .helpers import ADAPTIVE, BASES, noise, numpy_of, parameters, same_bits, scaled_dual, set_gradients, snapshot
from .test_golden import twin

LR = 1e-2
DECAY = (1 + math.sqrt(0.5)) / 2  # ρ' at β = ½
Rate = Callable[[int], Any]  # η of an update, from its number
RATES: dict[str, Rate] = {
    "exponential 0.6": lambda t: LR * 0.6**t,
    "exponential 0.9": lambda t: LR * 0.9**t,
    "steps": lambda t: LR * 0.1 ** (t // 4),
    "alternating": lambda t: 1e-7 if t % 2 else LR,
    "cosine to 0 and back": lambda t: LR * (0.5 + 0.5 * math.cos(math.pi * t / 40)),
    "drop to 1e-8": lambda t: LR if t < 20 else 1e-8,
    "drop to 1e-30": lambda t: LR if t < 20 else 1e-30,
    "drop to 1e-40": lambda t: LR if t < 20 else 1e-40,
    "zero for a while": lambda t: 0.0 if 20 <= t < 60 else LR,
    "from zero": lambda t: 0.0 if t < 5 else LR,
    "1e-9": lambda t: 1e-9,
}
SLOW: dict[str, Rate] = {
    "constant": lambda t: LR,
    "exponential": lambda t: LR * 0.9**t,
    "linear": lambda t: LR * (1 - t / 70),
    "rising": lambda t: 1e-5 * 1.5 ** min(t, 20),
}


def drive(optimizer: FPTT, params: list[Any], rate: Rate, start: int, stop: int, scale: float = 1.0) -> None:
    """Updates from gradients and learning rates that are functions of the update's number."""
    for t in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
        set_gradients(params, noise(t, params, scale))
        optimizer.step()


def made(name: str = "adam", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[FPTT, list[Any]]:
    params, base = parameters(dtype), BASES[name]
    return FPTT(
        base.make(params, lr=LR, **base.options), **{"alpha": 0.5, "metric": "preconditioned", **options}
    ), params


def test_it_stays_bounded_under_any_schedule(subtests: pytest.Subtests) -> None:
    """Each schedule with each base, in both precisions, β from small to 1: nothing in the state grows without limit."""
    settings = ((0.1, 0.05, torch.float32), (0.5, 1.0, torch.float64), (1.0, 1.0, torch.float32))
    for (i, rate), (j, name) in product(enumerate(RATES), enumerate(ADAPTIVE)):
        beta, alpha, dtype = settings[(i + j) % 3]
        with subtests.test(rate=rate, name=name, beta=beta, dtype=dtype):
            optimizer, params = made(name, dtype, beta=beta, alpha=alpha)
            drive(optimizer, params, RATES[rate], 0, 120)
            state = snapshot(optimizer, params)
            assert all(tensor.isfinite().all() for tensor in state)
            assert max(float(tensor.abs().max()) for tensor in state if tensor.dim()) < 200.0


def exponential(optimizer: Optimizer) -> LRScheduler:
    return ExponentialLR(optimizer, 0.9)


def steps(optimizer: Optimizer) -> LRScheduler:
    return StepLR(optimizer, 4, 0.1)


def plateau(optimizer: Optimizer) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, patience=0)


@pytest.mark.parametrize(("schedule", "updates"), [(exponential, 400), (steps, 60), (plateau, 60)])
def test_a_network_trains_under_torchs_schedulers(schedule: Callable[[Optimizer], LRScheduler], updates: int) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.RNN(2, 8), torch.rand(8, 4, 2)
    optimizer = FPTT(Adam(model.parameters(), lr=1e-2), alpha=0.5, metric="preconditioned")
    scheduler: Any = schedule(optimizer)
    losses = []
    for _ in range(updates):
        loss = (model(x)[0][-1] - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(*([loss.item()] if schedule is plateau else []))
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "beta", "alpha", "updates"),
    [("adam", 0.5, 10.0, 700), ("adam", 0.3, 4.5, 700), ("amsgrad", 0.1, 0.15, 1000)],
)
def test_nothing_is_made_of_rounding(name: str, beta: float, alpha: float, updates: int) -> None:
    """With a divisor of the size of W's rounding itself, without G, v̂ grows from update to update here."""
    optimizer, params = made(name, torch.float32, beta=beta, alpha=alpha)
    key = "max_exp_avg_sq" if name == "amsgrad" else "exp_avg_sq"
    largest = []
    for t in range(updates):
        drive(optimizer, params, RATES["drop to 1e-8"], t, t + 1)
        largest.append(max(float(state[key].max()) for state in optimizer.state.values()))
    assert largest[-1] < 2.0 * max(largest[:80])


def test_it_is_the_reference_under_any_schedule(subtests: pytest.Subtests) -> None:
    bases = (("adam", 0.5), ("adamw", 0.3), ("amsgrad", 1.0), ("rmsprop", 0.5), ("rmsprop_centered", 0.6))
    for (i, rate), j in product(enumerate(RATES), (0, 1)):
        name, beta = bases[(2 * i + j) % 5]
        with subtests.test(rate=rate, name=name):
            optimizer, params = made(name, beta=beta, dual_weight=0.8, prox_weight=1.2)
            expected = twin(BASES[name], optimizer, params)
            for t in range(45):
                drive(optimizer, params, RATES[rate], t, t + 1)
                expected.lr = [RATES[rate](t)] * 3
                expected.step(numpy_of(noise(t, params)))
            for k, p in enumerate(params):
                np.testing.assert_allclose(p.detach(), expected.W[k], rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(optimizer.center(p), expected.center[k], rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(scaled_dual(optimizer, p), expected.u[k], rtol=1e-11, atol=1e-12)
                assert optimizer.state[p]["reference_rate"] == pytest.approx(expected.rate[k], rel=1e-14)


def without_reference(
    base: Optimizer, group: dict[str, Any], params: list[Tensor], rates: list[Any], gain: float
) -> list[Tensor]:
    """(√v̂ + ε)/η as it was before there was a reference rate."""
    scales = []
    for p in params:
        second = metric._second_moment(base, group, base.state[p])
        assert second is not None
        scales.append((second.sqrt() + group["eps"]) / group["lr"])
    return scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_rate_falls_slowly_no_bit_differs_from_the_rate_itself(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(name: str, rate: Rate, updates: int = 60) -> list[Tensor]:
        optimizer, params = made(name, dtype)
        drive(optimizer, params, rate, 0, updates)
        return snapshot(optimizer, params)

    names, rates = ("adam", "amsgrad", "rmsprop_centered", "adam"), list(SLOW.values())
    cases = list(zip(names, rates if dtype == torch.float32 else rates[1:] + rates[:1], strict=True))
    ends = [end(name, rate) for name, rate in cases]
    fast = [end("adam", lambda t, factor=factor: LR * factor**t, 8) for factor in (DECAY * 1.001, DECAY * 0.98)]
    monkeypatch.setattr(plain_update, "preconditioner", without_reference)
    assert all(same_bits(one, end(name, rate)) for one, (name, rate) in zip(ends, cases, strict=True))
    old = [end("adam", lambda t, factor=factor: LR * factor**t, 8) for factor in (DECAY * 1.001, DECAY * 0.98)]
    assert [same_bits(*each) for each in zip(fast, old, strict=True)] == [True, False]


def test_after_a_drop_the_regularizer_is_as_strong_as_the_steps_it_counts() -> None:
    """The gradient's norm stays where it was, and r falls by ρ' per update down to the new rate."""
    expected = LR
    optimizer, params = made()
    drive(optimizer, params, lambda t: LR, 0, 30)
    set_gradients(params, noise(30, params))
    before = norms(optimizer)["regularizer"].item()
    for t in range(30, 90):
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        set_gradients(params, noise(t, params))
        assert norms(optimizer)["regularizer"].item() < 3.0 * before
        optimizer.step()
        expected = max(1e-6, LR * DECAY ** (t - 29))
        assert optimizer.state[params[0]]["reference_rate"] == pytest.approx(expected, rel=1e-12)
    assert expected == 1e-6


def test_a_parameter_without_a_gradient_keeps_its_rate() -> None:
    """It comes back with steps of the old size between W and W̄, and the others' rate long since small."""
    optimizer, params = made(dtype=torch.float32)
    drive(optimizer, params, lambda t: LR, 0, 10)
    kept = snapshot(optimizer, params[1:2])
    for t in range(10, 70):
        optimizer.param_groups[0]["lr"] = 1e-4 * LR
        set_gradients(params, [g if i != 1 else None for i, g in enumerate(noise(t, params))])
        optimizer.step()
    assert [optimizer.state[p]["reference_rate"] for p in params] == [1e-4 * LR, LR, 1e-4 * LR]
    assert same_bits(kept, snapshot(optimizer, params[1:2]))
    before = float(optimizer.state[params[1]]["exp_avg_sq"].max())
    drive(optimizer, params, lambda t: 1e-4 * LR, 70, 80)
    assert float(optimizer.state[params[1]]["exp_avg_sq"].max()) < 2.0 * before
    assert optimizer.state[params[1]]["reference_rate"] == pytest.approx(LR * DECAY**10, rel=1e-12)


def test_a_rate_of_zero_leaves_the_regularizer_out() -> None:
    """From the first update on, and no 0 · ∞ where W and W̄ are 0."""
    for rate in (0.0, 1e-40):
        optimizer, params = made(dtype=torch.float32, max_norm=1.0)
        with torch.no_grad():
            params[0].zero_()
        drive(optimizer, params, lambda t, rate=rate: rate, 0, 30)
        assert optimizer.state[params[0]]["reference_rate"] == LEAST_RATE
        assert all(tensor.isfinite().all() for tensor in snapshot(optimizer, params))
        set_gradients(params, noise(30, params))
        assert (
            norms(optimizer)["regularizer"].item() == 0.0 if rate == 0.0 else norms(optimizer)["regularizer"].isfinite()
        )


def drop(t: int) -> float:
    """η that has fallen a few updates ago at t = 12."""
    return LR if t < 9 else 1e-6


def test_in_mid_drop_it_is_saved_loaded_and_copied_exactly() -> None:
    optimizer, params = made()
    drive(optimizer, params, drop, 0, 12)
    rate = optimizer.state[params[0]]["reference_rate"]
    assert type(rate) is float
    assert drop(11) < rate < LR

    def through_a_file() -> tuple[FPTT, list[Any]]:
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other, own = made()
        with torch.no_grad():
            for p, q in zip(own, params, strict=True):
                p.copy_(q)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        return other, own

    copies = (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)))
    others = [through_a_file(), *((each, [p for g in each.param_groups for p in g["params"]]) for each in copies)]
    drive(optimizer, params, drop, 12, 20)
    for other, own in others:
        assert other.state[own[0]]["reference_rate"] == rate
        drive(other, own, drop, 12, 20)
        assert same_bits(snapshot(other, own), snapshot(optimizer, params))
        assert [other.state[p]["reference_rate"] for p in own] == [optimizer.state[params[0]]["reference_rate"]] * 3


def test_a_state_without_it_starts_at_the_learning_rate() -> None:
    optimizer, params = made()
    drive(optimizer, params, drop, 0, 12)
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        del entry["reference_rate"]
    optimizer.load_state_dict(state)
    drive(optimizer, params, drop, 12, 13)
    assert [optimizer.state[p]["reference_rate"] for p in params] == [drop(12)] * 3


def test_only_the_preconditioned_metric_keeps_it() -> None:
    optimizer, params = made(metric="euclidean")
    drive(optimizer, params, drop, 0, 2)
    assert not any("reference_rate" in optimizer.state[p] for p in params)
    optimizer, params = made(alpha=0.0)  # W̄ and u are kept at α = 0 too, and α may grow
    drive(optimizer, params, drop, 0, 2)
    assert [optimizer.state[p]["reference_rate"] for p in params] == [LR] * 3


def test_resets_and_reading_the_slow_variables_leave_it() -> None:
    optimizer, params = made()
    optimizer.slow_state()
    assert set(optimizer.state[params[0]]) == {"center", "scaled_dual"}
    drive(optimizer, params, drop, 0, 12)
    rate = optimizer.state[params[0]]["reference_rate"]
    optimizer.slow_state()
    norms(optimizer)
    optimizer.reset_to_center()
    assert optimizer.state[params[0]]["reference_rate"] == rate


def is_rate(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


@pytest.mark.parametrize("on_the_host", [True, False])
def test_a_learning_rate_that_is_a_tensor(on_the_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on a device stays there: played by one that is not read, since there may be no other device here."""
    plain, control = made()
    drive(plain, control, drop, 0, 20)
    if not on_the_host:
        read = metric.host_number
        for module in (metric, fptt, slow_state):  # the rates are float64 here, torch's counts of steps are not
            monkeypatch.setattr(module, "host_number", lambda x: x if is_rate(x) else read(x))
    optimizer, params = made()
    for group in optimizer.param_groups:
        group["foreach"] = False  # torch's own Adam takes such a rate one tensor at a time
    drive(optimizer, params, lambda t: torch.tensor(drop(t), dtype=torch.float64), 0, 20)
    rate = optimizer.state[params[0]]["reference_rate"]
    assert isinstance(rate, float) if on_the_host else rate.dim() == 0
    assert float(rate) == plain.state[control[0]]["reference_rate"]
    assert on_the_host or len({id(optimizer.state[p]["reference_rate"]) for p in params}) == 3
    for p, q in zip(params, control, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    state = copy.deepcopy(optimizer.state_dict())
    monkeypatch.undo()
    other, own = made()
    with torch.no_grad():
        for p, q in zip(own, params, strict=True):
            p.copy_(q)
    other.load_state_dict(state)
    drive(other, own, drop, 20, 24)
    drive(plain, control, drop, 20, 24)
    assert other.state[own[0]]["reference_rate"] == plain.state[control[0]]["reference_rate"]


def test_the_rate_falls_more_slowly_than_what_it_divides(subtests: pytest.Subtests) -> None:
    for beta, decay in ((1.0, 0.5), (0.5, DECAY), (0.1, (1 + math.sqrt(0.9)) / 2)):
        with subtests.test(beta=beta, decay=decay):
            assert reference_rate(None, LR, beta) == LR
            assert reference_rate(1.0, LR, beta) == pytest.approx(decay, rel=1e-15)
            assert reference_rate(LR, 1.0, beta) == 1.0
            assert reference_rate(0.0, 0.0, beta) == LEAST_RATE
            assert decay > math.sqrt(1.0 - beta)


def test_the_gain_bounds_what_rounding_errors_add_up_to(subtests: pytest.Subtests) -> None:
    """The sum over the response of c (W − W̄) − κ u to one error of W̄, from the recursion; the bound is not idle."""
    for (c, kappa), beta in product(((1.0, 1.0), (2.0, 1.0), (1.0, 0.0), (0.0, 1.0)), (0.02, 0.1, 0.3, 0.5, 0.8, 1.0)):
        with subtests.test(c=c, kappa=kappa, beta=beta):
            e, u, total = 1.0, 0.0, 0.0
            for _ in range(3000):
                total += abs(c * e - kappa * u)
                e, u = (1.0 - 2.0 * beta) * e + beta * u, u - e
            assert total <= rounding_gain(1.0, beta, c, kappa) * (1.0 + 1e-12) < 4.0 * total
            assert rounding_gain(0.3, beta, c, kappa) == pytest.approx(0.3 * rounding_gain(1.0, beta, c, kappa))
