"""What the strategies become where there is nothing to agree on: equal, bit for bit, to a worker alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.parallel import Communicator, GradientAveraging, Single, Strategy
from tests.algorithm.helpers import BASES
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import EXAMPLES, Quadratic, Recurrent, Run, close, consensus, equal

Make = Callable[[Communicator], Strategy]

WINDOWS = 13
FOREVER = 1000


def rate(window: int) -> float:
    """A learning rate that moves."""
    return 0.04 / (1.0 + 0.1 * window)


def shared(every: int, **options: Any) -> Make:
    return lambda workers: consensus(workers, every=every, **options)


def gradient(workers: Communicator) -> Strategy:
    return GradientAveraging(workers, 1.0 / workers.world)


def quadratic() -> nn.Module:
    return Quadratic(torch.float32)


# Each leaves equal workers as they are.
NEUTRAL: dict[str, Make] = {
    "gradient": gradient,
    **{f"mean {every}": shared(every) for every in (1, 3, FOREVER)},
    **{f"kept {every}": shared(every, weights="kept") for every in (1, 3)},
    "mean delayed": shared(5, delay=2),
    "kept delayed": shared(5, weights="kept", delay=4),
    "mean late": shared(3, start_after=5),
    "weights alone": shared(3, slow=False),
    "nothing": shared(3, slow=False, weights="kept"),
}
PROBLEMS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "quadratic": (quadratic, 0),
    "recurrent": (Recurrent, slice(0, EXAMPLES)),
}


def trained(make: Make, workers: Communicator, problem: str, base: str, **settings: Any) -> list[Tensor]:
    model, shard = PROBLEMS[problem]
    run = Run(make(workers), model(), shard, base=base, lr=rate, **settings).advance(WINDOWS)
    assert run.strategy.healthy()
    run.strategy.settle()
    return run.everything()


def alone(problem: str, base: str, **settings: Any) -> list[Tensor]:
    [found] = together(1, lambda workers: trained(lambda _: Single(), workers, problem, base, **settings))
    return found


@pytest.mark.parametrize("base", ["sgd_momentum", "adam"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_one_worker_is_single(name: str, problem: str, base: str) -> None:
    [found] = together(1, lambda workers: trained(NEUTRAL[name], workers, problem, base))
    assert equal(found, alone(problem, base))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_workers_with_equal_data_are_single(name: str, problem: str, world: int) -> None:
    expected = alone(problem, "adam", max_norm=0.5)
    for found in together(world, lambda workers: trained(NEUTRAL[name], workers, problem, "adam", max_norm=0.5)):
        assert equal(found, expected)


@pytest.mark.parametrize("name", NEUTRAL)
def test_three_workers_with_equal_data_are_single_to_rounding(name: str) -> None:
    """The mean of three equal numbers is off by an ulp."""
    expected = alone("quadratic", "sgd_momentum")
    for found in together(3, lambda workers: trained(NEUTRAL[name], workers, "quadratic", "sgd_momentum")):
        close(found, expected, 2e-5)


@pytest.mark.parametrize("make", [shared(5, weights="center"), lambda w: consensus(w, every=5, agreement="damped")])
def test_what_moves_the_weights_at_an_agreement_is_not_single(make: Make) -> None:
    [found] = together(1, lambda workers: trained(make, workers, "quadratic", "sgd"))
    assert not equal(found, alone("quadratic", "sgd"))


@pytest.mark.parametrize("options", [{}, {"weights": "center"}, {"compressed": True}, {"delay": 3}])
def test_workers_that_never_agree_are_alone(options: dict[str, Any]) -> None:
    def work(workers: Replica, shard: int) -> list[Tensor]:
        strategy = Single() if workers.world == 1 else consensus(workers, every=FOREVER, **options)
        return Run(strategy, quadratic(), shard, base="adam", lr=rate).advance(WINDOWS).everything()

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
                        p.copy_(workers.sum(p.detach().clone(), name="weights") / workers.world)
        return [p.detach() for p in model.parameters()]

    def work(workers: Replica, slow: bool) -> list[Tensor]:
        strategy = consensus(workers, every=every, slow=slow)
        run = Run(strategy, quadratic(), workers.rank, base=base, lr=rate, alpha=0.0).advance(WINDOWS)
        return [p.detach() for p in run.params]

    expected = together(3, by_hand)
    for slow in (True, False):
        for found, weights in zip(together(3, lambda workers, slow=slow: work(workers, slow)), expected, strict=True):
            assert equal(found, weights)


@pytest.mark.parametrize("weights", ["mean", "center"])
@pytest.mark.parametrize("compressed", [False, True])
def test_after_a_blocking_agreement_all_are_equal_and_the_mean_is_copied(weights: Any, compressed: bool) -> None:
    """Adding the difference to the mean instead would leave the workers an ulp apart."""

    def work(workers: Replica) -> list[Tensor]:
        strategy = consensus(workers, every=4, weights=weights, compressed=compressed)
        return Run(strategy, quadratic(), workers.rank, base="adam", lr=rate).advance(12).slow()

    one, two, three = together(3, work)
    assert equal(one, two)
    assert equal(two, three)


def test_a_blocking_mean_is_the_ranks_sum_divided() -> None:
    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        before = Run(Single(), quadratic(), workers.rank, lr=rate).advance(4).slow()
        return before, Run(consensus(workers, every=4), quadratic(), workers.rank, lr=rate).advance(4).slow()

    (one, after), (two, _), (three, _) = together(3, work)
    assert equal(after, [(a + b + c) / 3.0 for a, b, c in zip(one, two, three, strict=True)])


@pytest.mark.parametrize(
    "options",
    [{"every": 1}, {"every": 3}, {"every": 3, "delay": 1}, {"every": 3, "compressed": True}]
    + [{"every": 3, "agreement": order} for order in ("damped", "admm")],
    ids=str,
)
def test_two_ranks_permuted_change_nothing_but_their_places(options: dict[str, Any]) -> None:
    def work(workers: Replica, shards: list[int]) -> list[Tensor]:
        strategy = consensus(workers, **options)
        return Run(strategy, quadratic(), shards[workers.rank], base="adam", lr=rate).advance(WINDOWS).everything()

    one, two = together(2, lambda workers: work(workers, [0, 1]))
    second, first = together(2, lambda workers: work(workers, [1, 0]))
    assert equal(one, first)
    assert equal(two, second)
    assert not equal(one, two)


@pytest.mark.parametrize("shares", [(12,), (6, 6), (3, 3, 3, 3), (7, 5), (1, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("base", ["sgd_momentum", "adam"])
def test_averaged_gradients_are_the_whole_batchs(base: str, shares: tuple[int, ...]) -> None:
    def work(strategy: Strategy, part: slice) -> list[Tensor]:
        return Run(strategy, Recurrent().double(), part, base=base, lr=rate, max_norm=0.5).advance(8).slow()

    def averaged(workers: Replica) -> list[Tensor]:
        rank = workers.rank
        return work(
            GradientAveraging(workers, shares[rank] / EXAMPLES), slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        )

    [expected] = together(1, lambda _: work(Single(), slice(0, EXAMPLES)))
    for found in together(len(shares), averaged):
        close(found, expected, 1e-10)
