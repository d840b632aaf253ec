"""Gradient averaging: every element once, presence, loss and stop flag in the same message, the same verdict."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT
from fptt_dist.parallel import Engine, GradientSync, LaunchEnvironment, Replicated, communicator
from fptt_dist.parallel.nan_check import LOSS, NonFiniteRecord
from tests.parallel.pool import Pool
from tests.parallel.runs import same_bits
from tests.parallel.toys import single_worker, told

SIZES: list[tuple[int, ...]] = [(), (1,), (7,), (0,), (0, 3), (1000,), (3, 5)]


def hostile(*, wide: bool, seed: int = 0) -> list[Parameter]:
    """Parameters of awkward sizes and strides; every other one float64 if `wide`."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(size, generator=generator) for size in SIZES]
    values.append(torch.randn(4, 3, generator=generator).t())
    values.append(torch.randn(4, 10, generator=generator)[:, ::3])
    params = [Parameter(v.double() if wide and i % 2 else v) for i, v in enumerate(values)]
    assert [p.is_contiguous() for p in params[-3:]] == [True, False, False]
    assert params[-1].stride() == (10, 3)
    return params


def coefficients(params: list[Parameter], rank: int) -> list[Tensor]:
    """A gradient of integers, each element another one, that differs by rank: sums and halves of them are exact."""
    total = sum(p.numel() for p in params)
    every = torch.arange(total) + (rank + 1) ** 2 * 2 * total
    parts = every.split([p.numel() for p in params])
    return [part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, params, strict=True)]


def linear_loss(params: list[Parameter], gradients: list[Tensor]) -> Tensor:
    """Σ g · p, whose gradient is g."""
    return torch.stack([(p * g).double().sum() for p, g in zip(params, gradients, strict=True)]).sum()


def averaging(environment: LaunchEnvironment, weight: float | None = None) -> Engine:
    """The engine with all workers of a job; equal shares of the batch if not told otherwise."""
    everyone = communicator(environment, torch.device("cpu"))
    return Engine(everyone, Replicated(), GradientSync(everyone, 1.0 / everyone.world if weight is None else weight))


def attached(engine: Engine, params: list[Parameter]) -> FPTT:
    """The strategy with an optimizer whose every step moves every parameter that has a gradient, even a zero one."""
    module = nn.Module()
    for i, p in enumerate(params):
        module.register_parameter(f"p{i}", p)
    engine.prepare(module)
    optimizer = FPTT(torch.optim.AdamW(params, lr=0.5, weight_decay=0.1, foreach=True), alpha=0.0)
    engine.attach(optimizer)
    return optimizer


def bits_of(params: list[Parameter]) -> dict[str, Tensor]:
    return {str(i): p.detach().clone(memory_format=torch.contiguous_format) for i, p in enumerate(params)}


def gradients_of(params: list[Parameter]) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.contiguous() for p in params]


def average_once(environment: LaunchEnvironment, wide: bool) -> tuple[list[Tensor | None], bool, dict[str, Tensor]]:
    """One reduction of `coefficients` and a step: gradients, verdict and weights afterwards."""
    params = hostile(wide=wide)
    engine = averaging(environment)
    attached(engine, params)
    engine.backward(linear_loss(params, coefficients(params, environment.rank)), last=True)
    gradients = gradients_of(params)
    engine.step()
    return gradients, told(engine).all_finite(), bits_of(params)


@pytest.mark.parametrize(("world", "wide"), [(1, True), (2, False), (4, True)])
def test_every_element_is_averaged_once(pool: Pool, world: int, wide: bool) -> None:
    params = hostile(wide=wide)
    shares = [coefficients(params, rank) for rank in range(world)]
    expected = [torch.stack(same).sum(0) / world for same in zip(*shares, strict=True)]
    answers = pool.run(average_once, wide, world=world)
    for gradients, verdict, weights in answers:
        assert verdict
        assert same_bits(weights, answers[0][2])
        for gradient, mean, p in zip(gradients, expected, params, strict=True):
            assert gradient is not None
            assert gradient.dtype == p.dtype
            assert torch.equal(gradient, mean)


def average_shares(
    environment: LaunchEnvironment, weights: list[float]
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    params = hostile(wide=True)
    engine = averaging(environment, weights[environment.rank])
    attached(engine, params)
    engine.backward(linear_loss(params, coefficients(params, environment.rank)), last=True)
    gradients = gradients_of(params)
    engine.step()
    return gradients, bits_of(params)


def test_unequal_shares_weigh_as_many_sequences_as_they_have(pool: Pool) -> None:
    weights = [0.5, 0.25, 0.25]
    params = hostile(wide=True)
    shares = [coefficients(params, rank) for rank in range(len(weights))]
    expected = [
        torch.stack([w * part for w, part in zip(weights, same, strict=True)]).sum(0)
        for same in zip(*shares, strict=True)
    ]
    answers = pool.run(average_shares, weights, world=len(weights))
    for gradients, after in answers:
        assert same_bits(after, answers[0][1])
        for gradient, mean in zip(gradients, expected, strict=True):
            assert gradient is not None
            assert torch.equal(gradient, mean), "multiples of 1/8 are exact"


def precise_mean(environment: LaunchEnvironment) -> Tensor:
    """Average 1/3 in float64 beside a float32 parameter."""
    params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(2, dtype=torch.float64))]
    engine = averaging(environment)
    attached(engine, params)
    engine.backward(params[0].sum() + (params[1] / 3.0).sum(), last=True)
    assert params[1].grad is not None
    return params[1].grad


def test_a_float64_gradient_is_not_rounded_to_float32(pool: Pool) -> None:
    for gradient in pool.run(precise_mean):
        assert gradient.tolist() == [1.0 / 3.0] * 2


def single_step(environment: LaunchEnvironment, averaged: bool) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    params = hostile(wide=True)
    engine = averaging(environment) if averaged else single_worker()
    attached(engine, params)
    engine.backward(linear_loss(params, [g / 7.0 for g in coefficients(params, 0)]), last=False)
    engine.backward(linear_loss(params, [g / 3.0 for g in coefficients(params, 1)]), last=True)
    gradients = gradients_of(params)
    engine.step()
    return gradients, bits_of(params)


def test_one_worker_is_single_bit_for_bit(pool: Pool) -> None:
    [(gradients, weights)] = pool.run(single_step, True, world=1)
    [(expected_gradients, expected_weights)] = pool.run(single_step, False, world=1)
    assert same_bits(weights, expected_weights)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert gradient is not None
        assert expected is not None
        assert torch.equal(gradient, expected)


def partly_used(environment: LaunchEnvironment, wide: bool) -> tuple[list[Tensor | None], dict[str, Tensor], list[str]]:
    """Parameter i has a gradient of ones on the ranks below i; two updates; gradients and weights afterwards, and the
    names of parameters for which the optimizer has a state.
    """
    kinds = [torch.float64 if wide and i % 2 else torch.float32 for i in range(environment.world + 1)]
    params = [Parameter(torch.ones(3, dtype=kind)) for kind in kinds]
    engine = averaging(environment)
    optimizer = attached(engine, params)
    gradients = []
    for _ in range(2):
        used = [p.double().sum() for i, p in enumerate(params) if environment.rank < i]
        engine.backward(torch.stack(used).sum(), last=True)
        gradients = gradients_of(params)
        engine.step()
        optimizer.zero_grad()
    return gradients, bits_of(params), [str(i) for i, p in enumerate(params) if optimizer.state.get(p)]


@pytest.mark.parametrize(("world", "wide"), [(2, False), (4, True)])
def test_a_parameter_without_gradient_somewhere_counts_as_zero_there(pool: Pool, world: int, wide: bool) -> None:
    answers = pool.run(partly_used, wide, world=world)
    for gradients, weights, with_state in answers:
        assert gradients[0] is None, "a gradient on no rank: stepped nowhere"
        assert torch.equal(weights["0"], torch.ones(3))
        assert with_state == [str(i) for i in range(1, world + 1)]
        for i in range(1, world + 1):
            gradient = gradients[i]
            assert gradient is not None
            assert gradient.tolist() == [i / world] * 3
            assert not torch.equal(weights[str(i)], torch.ones_like(weights[str(i)]))
        assert same_bits(weights, answers[0][1])


def stop_asked_by(environment: LaunchEnvironment, asking: int) -> list[bool]:
    """`stopping()` after each of four batches of two windows; rank `asking` asks after the second batch."""
    params = hostile(wide=False)
    engine = averaging(environment)
    optimizer = attached(engine, params)
    answers = []
    for batch in range(4):
        for _ in range(2):
            engine.backward(linear_loss(params, coefficients(params, environment.rank)), last=True)
            engine.step()
            optimizer.zero_grad()
        if batch == 1 and environment.rank == asking:
            engine.control.request_stop()
        answers.append(told(engine).should_stop())
    return answers


@pytest.mark.parametrize(("world", "asking"), [(1, 0), (2, 1), (3, 0)])
def test_all_stop_where_one_asks(pool: Pool, world: int, asking: int) -> None:
    assert pool.run(stop_asked_by, asking, world=world) == [[False, False, True, True]] * world


def test_nobody_stops_unasked(pool: Pool) -> None:
    assert pool.run(stop_asked_by, -1) == [[False] * 4] * 2


Verdict = tuple[list[bool], NonFiniteRecord]


@contextmanager
def overflowing(param: Parameter, value: float | None) -> Iterator[None]:
    """Within the context the last element of the parameter's gradient is `value`, and the loss knows nothing of it."""
    if value is None:
        yield
        return
    last = torch.arange(param.numel()) == param.numel() - 1
    hook = param.register_hook(lambda g: torch.where(last.view(g.shape), value, g))
    try:
        yield
    finally:
        hook.remove()


BAD = [(value, where) for value in (torch.nan, torch.inf, -torch.inf) for where in ("gradient", "loss", "first")]


def verdicts(environment: LaunchEnvironment, bad_rank: int) -> list[Verdict]:
    """One for each of `BAD`."""
    return [verdict(environment, value, where, bad_rank) for value, where in BAD]


def verdict(environment: LaunchEnvironment, value: float, where: str, bad_rank: int) -> Verdict:
    """`healthy` after each of three updates of two micro-batches each, where `value` enters on `bad_rank` in the second
    update: in the "gradient" of one element, in the "loss" alone, or in the "first" micro-batch's loss alone; then what
    was seen first.
    """
    params = hostile(wide=False)
    engine = averaging(environment)
    attached(engine, params)
    answers = []
    for update in range(3):
        bad = update == 1 and environment.rank == bad_rank
        for p in params:
            p.grad = None
        for micro in range(2):
            loss = linear_loss(params, coefficients(params, environment.rank))
            if bad and (where == "loss" or (where == "first" and micro == 0)):
                loss = loss + value
            with overflowing(params[5], value if bad and where == "gradient" and micro == 1 else None):
                engine.backward(loss, last=micro == 1)
        answers.append(told(engine).all_finite())
        engine.after_update()
    return answers, engine.control.first_non_finite()


@pytest.mark.parametrize(("world", "bad_rank"), [(2, 0), (3, 1)])
def test_all_hear_of_a_value_that_is_not_finite(pool: Pool, world: int, bad_rank: int) -> None:
    """And do not forget it: a run looks once a batch."""
    seen = [NonFiniteRecord(bad_rank, 1, "p5" if where == "gradient" else LOSS) for _, where in BAD]
    expected = [([True, False, False], sighting) for sighting in seen]
    assert pool.run(verdicts, bad_rank, world=world) == [expected] * world


def single_verdicts(environment: LaunchEnvironment, where: str) -> tuple[bool, bool, NonFiniteRecord | None]:
    """`healthy` of `Single` with empty parameters: as it is, and with a NaN in a gradient, or in the loss."""
    params = hostile(wide=True)
    engine = single_worker()
    attached(engine, params)
    engine.backward(linear_loss(params, coefficients(params, 0)), last=True)
    before = told(engine).all_finite()
    engine.after_update()
    for p in params:
        p.grad = None
    loss = linear_loss(params, coefficients(params, 0)) + (torch.nan if where == "loss" else 0.0)
    with overflowing(params[5], torch.nan if where == "gradient" else None):
        engine.backward(loss, last=True)
    return before, told(engine).all_finite(), engine.control.first_non_finite()


@pytest.mark.parametrize(("where", "tensor"), [("gradient", "p5"), ("loss", LOSS)])
def test_a_single_process_sees_it_too(pool: Pool, where: str, tensor: str) -> None:
    assert pool.run(single_verdicts, where, world=1) == [(True, False, NonFiniteRecord(0, 1, tensor))]


def opposite_infinities(environment: LaunchEnvironment) -> bool:
    p = Parameter(torch.ones(2))
    engine = averaging(environment)
    attached(engine, [p])
    engine.backward((p * (torch.inf if environment.rank else -torch.inf)).sum(), last=True)
    return told(engine).all_finite()


def test_infinities_do_not_cancel(pool: Pool) -> None:
    assert pool.run(opposite_infinities) == [False, False]


def start_apart(environment: LaunchEnvironment) -> tuple[dict[str, Tensor], list[bool]]:
    """Weights after attaching where each rank drew its own, and whether each is still the same memory."""
    params = hostile(wide=True, seed=environment.rank)
    addresses = [p.data_ptr() for p in params]
    attached(averaging(environment), params)
    return bits_of(params), [p.data_ptr() == address for p, address in zip(params, addresses, strict=True)]


def test_all_start_from_the_weights_of_rank_0(pool: Pool) -> None:
    assert not same_bits(bits_of(hostile(wide=True, seed=0)), bits_of(hostile(wide=True, seed=1)))
    for weights, in_place in pool.run(start_apart, world=3):
        assert same_bits(weights, bits_of(hostile(wide=True, seed=0)))
        assert all(in_place)


def accumulate(environment: LaunchEnvironment) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Three micro-batches before one reduction: gradients before the last call, and after it."""
    params = hostile(wide=True)
    engine = averaging(environment)
    attached(engine, params)
    mine = coefficients(params, environment.rank)
    sent = engine.traffic()
    for factor in (1.0, 2.0):
        engine.backward(factor * linear_loss(params, mine), last=False)
    assert engine.traffic() == sent
    before = [None if g is None else g.clone() for g in gradients_of(params)]
    engine.backward(3.0 * linear_loss(params, mine), last=True)
    return before, gradients_of(params)


def test_micro_batches_are_added_up_before_they_travel(pool: Pool) -> None:
    params = hostile(wide=True)
    shares = [coefficients(params, rank) for rank in range(2)]
    for rank, (before, after) in enumerate(pool.run(accumulate)):
        for i in range(len(params)):
            one, mean = before[i], after[i]
            assert one is not None
            assert mean is not None
            assert torch.equal(one, 3.0 * shares[rank][i]), "nothing is sent before the last"
            assert torch.equal(mean, 6.0 * (shares[0][i] + shares[1][i]) / 2.0)


@dataclass
class Traffic:
    """What a few updates sent."""

    names: list[str] = field(default_factory=list)
    equal: bool = True
    counted: list[int] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)


def traffic(environment: LaunchEnvironment) -> Traffic:
    """The names of the collectives of three updates of two micro-batches."""
    params = hostile(wide=True)
    engine = averaging(environment)
    attached(engine, params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            for micro in range(2):
                loss = linear_loss(params, coefficients(params, environment.rank))
                engine.backward(loss, last=micro == 1)
            engine.step()
            told(engine).should_stop()
    sent = [e.name for e in profile.events() or [] if e.name.startswith(("fptt_dist::", "gloo:"))]
    cost, plan = engine.traffic()["gradients"], engine.comm_estimate(3)
    counted, planned = [cost.calls, cost.bytes], [plan.collectives, plan.bytes, plan.each]
    return Traffic(sent, engine.everyone.all_equal([p.detach() for p in params], name="test"), counted, planned)


def test_one_message_an_update(pool: Pool) -> None:
    params = hostile(wide=True)
    size = 8 * (sum(p.numel() for p in params) + len(params) + 2)
    for answer in pool.run(traffic):
        assert answer.names.count("fptt_dist::all_reduce::gradients") == 3
        assert [name for name in answer.names if name.startswith("gloo:")] == ["gloo:all_reduce"] * 3
        assert answer.equal
        assert answer.counted == [3, 3 * size]
        assert answer.planned == [3.0, 3.0 * size, size]


def random_updates(environment: LaunchEnvironment) -> bool:
    """Whether the workers' weights are the same after ten updates from random gradients."""
    params = hostile(wide=False, seed=environment.rank)
    engine = averaging(environment)
    optimizer = attached(engine, params)
    generator = torch.Generator().manual_seed(environment.rank)
    for _ in range(10):
        gradients = [torch.randn(p.shape, generator=generator) for p in params]
        engine.backward(linear_loss(params, gradients), last=True)
        engine.step()
        optimizer.zero_grad()
    return engine.everyone.all_equal([p.detach() for p in params], name="test")


def test_weights_stay_equal_bit_for_bit(pool: Pool) -> None:
    assert pool.run(random_updates, world=3) == [True] * 3
