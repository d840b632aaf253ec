"""Limits of the engines where there is nothing to synchronize: equal, bit for bit, to a worker alone."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.parallel import Communicator, Engine
from tests.algorithm.helpers import BASES
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import (
    EXAMPLES,
    Quadratic,
    Recurrent,
    Run,
    averaging,
    close,
    consensus,
    equal,
    single_worker,
    told,
)

Make = Callable[[Communicator], Engine]

WINDOWS = 13
FOREVER = 1000


def rate(window: int) -> float:
    """A learning rate that moves."""
    return 0.04 / (1.0 + 0.1 * window)


def shared(every: int, **options: Any) -> Make:
    return lambda workers: consensus(workers, every=every, **options)


def gradient(workers: Communicator) -> Engine:
    return averaging(workers, 1.0 / workers.world)


def quadratic() -> nn.Module:
    return Quadratic(torch.float32)


# Each leaves equal workers as they are.
NEUTRAL: dict[str, Make] = {
    "gradient": gradient,
    **{f"mean {every}": shared(every) for every in (1, 3, FOREVER)},
    "mean delayed": shared(5, sync_delay=2),
    "mean late": shared(3, warmup_updates=5),
    "weights alone": shared(3, slow=False),
}
PROBLEMS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "quadratic": (quadratic, 0),
    "recurrent": (Recurrent, slice(0, EXAMPLES)),
}


def trained(make: Make, workers: Communicator, problem: str, base: str, **settings: Any) -> list[Tensor]:
    model, shard = PROBLEMS[problem]
    run = Run(make(workers), model(), shard, base=base, lr=rate, **settings).advance(WINDOWS)
    assert told(run.engine).all_finite()
    run.engine.sync.now()
    return run.everything()


@cache
def alone(problem: str, base: str, **settings: Any) -> list[Tensor]:
    [found] = together(1, lambda workers: trained(lambda _: single_worker(), workers, problem, base, **settings))
    return found


@pytest.mark.parametrize("name", NEUTRAL)
def test_one_worker_is_single(name: str) -> None:
    for problem, base in (("quadratic", "sgd_momentum"), ("recurrent", "adam")):
        [found] = together(1, lambda workers, p=problem, base=base: trained(NEUTRAL[name], workers, p, base))
        assert equal(found, alone(problem, base)), problem


@pytest.mark.parametrize("name", NEUTRAL)
def test_workers_with_equal_data_are_single(name: str) -> None:
    """The mean of three equal numbers is off by an ulp."""
    for problem, world in (("quadratic", 4), ("recurrent", 2), ("quadratic", 3)):
        expected = alone(problem, "adam", max_norm=0.5)
        for found in together(world, lambda w, p=problem: trained(NEUTRAL[name], w, p, "adam", max_norm=0.5)):
            if world == 3:
                close(found, expected, 2e-5)
            else:
                assert equal(found, expected), problem


@pytest.mark.parametrize("make", [shared(5, weights="center"), lambda w: consensus(w, every=5, dual="damped")])
def test_what_moves_the_weights_at_an_agreement_is_not_single(make: Make) -> None:
    [found] = together(1, lambda workers: trained(make, workers, "quadratic", "sgd"))
    assert not equal(found, alone("quadratic", "sgd"))


@pytest.mark.parametrize("options", [{}, {"weights": "center"}, {"compressed": True}, {"sync_delay": 3}])
def test_workers_that_never_agree_are_alone(options: dict[str, Any]) -> None:
    def work(workers: Replica, shard: int) -> list[Tensor]:
        engine = single_worker() if workers.world == 1 else consensus(workers, every=FOREVER, **options)
        return Run(engine, quadratic(), shard, base="adam", lr=rate).advance(WINDOWS).everything()

    found = together(3, lambda workers: work(workers, workers.rank))
    for rank in range(3):
        [expected] = together(1, lambda workers, rank=rank: work(workers, rank))
        assert equal(found[rank], expected)
    assert not equal(found[0], found[1])


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("base", ["sgd_momentum", "adam"])
def test_without_a_pull_it_is_the_base_optimizer_with_averaged_weights(base: str, every: int) -> None:
    """Local SGD, written with torch's optimizer alone."""

    def by_hand(workers: Replica) -> list[Tensor]:
        model = Quadratic(torch.float32)
        optimizer = BASES[base].make(model.parameters(), lr=rate(0), **BASES[base].options)
        for window in range(WINDOWS):
            optimizer.param_groups[0]["lr"] = rate(window)
            optimizer.zero_grad()
            model.loss(workers.rank, window).backward()
            optimizer.step()
            if (window + 1) % every == 0:
                with torch.no_grad():
                    for p in model.parameters():
                        p.copy_(workers.all_reduce(p.detach().clone(), name="weights") / workers.world)
        return [p.detach() for p in model.parameters()]

    def work(workers: Replica, slow: bool) -> list[Tensor]:
        engine = consensus(workers, every=every, slow=slow)
        run = Run(engine, quadratic(), workers.rank, base=base, lr=rate, alpha=0.0).advance(WINDOWS)
        return [p.detach() for p in run.params]

    expected = together(3, by_hand)
    for slow in (True, False):
        for found, weights in zip(together(3, lambda workers, slow=slow: work(workers, slow)), expected, strict=True):
            assert equal(found, weights)


@pytest.mark.parametrize("weights", ["average", "center"])
@pytest.mark.parametrize("compressed", [False, True])
def test_after_a_blocking_agreement_all_are_equal_and_the_mean_is_copied(weights: Any, compressed: bool) -> None:
    """Adding the difference to the mean instead would leave the workers an ulp apart."""

    def work(workers: Replica) -> list[Tensor]:
        engine = consensus(workers, every=4, weights=weights, compressed=compressed)
        return Run(engine, quadratic(), workers.rank, base="adam", lr=rate).advance(12).slow()

    one, two, three = together(3, work)
    assert equal(one, two)
    assert equal(two, three)


def test_a_blocking_mean_is_the_ranks_sum_divided() -> None:
    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        before = Run(single_worker(), quadratic(), workers.rank, lr=rate).advance(4).slow()
        return before, Run(consensus(workers, every=4), quadratic(), workers.rank, lr=rate).advance(4).slow()

    (one, after), (two, _), (three, _) = together(3, work)
    assert equal(after, [(a + b + c) / 3.0 for a, b, c in zip(one, two, three, strict=True)])


@pytest.mark.parametrize(
    "options",
    [{"every": 1}, {"every": 3}, {"every": 3, "sync_delay": 1}, {"every": 3, "compressed": True}]
    + [{"every": 3, "dual": order} for order in ("damped", "admm")],
    ids=str,
)
def test_two_ranks_permuted_change_nothing_but_their_places(options: dict[str, Any]) -> None:
    def work(workers: Replica, shards: list[int]) -> list[Tensor]:
        engine = consensus(workers, **options)
        return Run(engine, quadratic(), shards[workers.rank], base="adam", lr=rate).advance(WINDOWS).everything()

    one, two = together(2, lambda workers: work(workers, [0, 1]))
    second, first = together(2, lambda workers: work(workers, [1, 0]))
    assert equal(one, first)
    assert equal(two, second)
    assert not equal(one, two)


@pytest.mark.parametrize("shares", [(12,), (6, 6), (3, 3, 3, 3), (7, 5), (1, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("base", ["sgd_momentum", "adam"])
def test_averaged_gradients_are_the_whole_batchs(base: str, shares: tuple[int, ...]) -> None:
    def work(engine: Engine, part: slice) -> list[Tensor]:
        return Run(engine, Recurrent().double(), part, base=base, lr=rate, max_norm=0.5).advance(8).slow()

    def averaged(workers: Replica) -> list[Tensor]:
        rank = workers.rank
        return work(averaging(workers, shares[rank] / EXAMPLES), slice(sum(shares[:rank]), sum(shares[: rank + 1])))

    [expected] = together(1, lambda _: work(single_worker(), slice(0, EXAMPLES)))
    for found in together(len(shares), averaged):
        close(found, expected, 1e-10)
