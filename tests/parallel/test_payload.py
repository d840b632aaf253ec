"""Payload of a sync: every element once, and what bf16 loses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.parallel.sync.flat_buffer import FlatBuffer
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import Quadratic, Run, close, consensus, equal

SHARES = {1: (1.0,), 2: (0.75, 0.25), 4: (0.25, 0.125, 0.5, 0.125)}  # sums of integers times these are exact


def hostile(offset: int, *, largest: int) -> list[Tensor]:
    """Vectors of awkward sizes, strides and types: integers up to `largest` that tell every element from its
    neighbours.
    """
    sizes = [(), (1,), (7,), (0,), (0, 3), (1000,), (3, 5), (4, 3), (4, 10)]
    total, found = 0, []
    for i, size in enumerate(sizes):
        count = torch.Size(size).numel()
        values = ((torch.arange(total, total + count) * 7 + offset) % largest).reshape(size)
        found.append(values.to(torch.float64 if i % 2 else torch.float32))
        total += count
    return [*found[:-2], found[-2].t(), found[-1][:, ::3]]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("world", "weighted"), [(1, False), (2, True), (4, True)])
def test_every_element_is_averaged_once(world: int, weighted: bool, compressed: bool) -> None:
    shares = SHARES[world] if weighted else (1.0 / world,) * world
    largest = 13 if compressed else 1 << 20  # few bits: sums are exact in bf16
    vectors = [hostile(5 * rank, largest=largest) for rank in range(world)]
    references = hostile(3, largest=1 << 20)

    def work(workers: Replica) -> tuple[list[Tensor], Tensor]:
        payload = FlatBuffer(workers, shares[workers.rank], compressed=compressed, template=references, numbers=3)
        own = [v + x if compressed else v for v, x in zip(vectors[workers.rank], references, strict=True)]
        payload.start(own, references, torch.ones(3))
        payload.finish(3)  # the buffer is used again
        payload.start(own, references, torch.tensor([1.0, 2.0, 4.0 * workers.rank]))
        means, numbers = payload.finish(3)
        assert payload.finite()
        return [mean.clone() for mean in means], numbers

    for means, numbers in together(world, work):
        assert numbers.tolist() == [1.0, 2.0, sum(4.0 * r * s for r, s in enumerate(shares))]
        for i, mean in enumerate(means):
            expected = sum(s * v[i].double() for s, v in zip(shares, vectors, strict=True))
            expected = expected + references[i].double() if compressed else expected
            assert mean.shape == references[i].shape
            assert torch.equal(mean.double(), torch.as_tensor(expected))


def test_fewer_vectors_than_there_is_room_for() -> None:
    def work(workers: Replica) -> list[list[Tensor]]:
        room = [torch.zeros(4), torch.zeros(3)]
        payload = FlatBuffer(workers, 0.5, compressed=False, template=room, numbers=1)
        found = []
        for vectors in ([torch.ones(4), torch.full((3,), 2.0)], [torch.full((3,), 5.0)]):
            payload.start(vectors, [], torch.ones(1))
            means, numbers = payload.finish(1)
            assert numbers.tolist() == [1.0]
            found.append([m.clone() for m in means])
        calls = workers.traffic["sync"]
        assert (calls.calls, calls.bytes) == (2, 4 * (8 + 4))
        return found

    for both, one in together(2, work):
        assert [m.tolist() for m in both] == [[1.0] * 4, [2.0] * 3]
        assert [m.tolist() for m in one] == [[5.0] * 3]


def test_float64_is_not_rounded() -> None:
    def work(workers: Replica) -> Tensor:
        vectors = [torch.zeros(2), torch.full((2,), 1.0 / 3.0, dtype=torch.float64)]
        payload = FlatBuffer(workers, 0.5, compressed=False, template=vectors, numbers=0)
        payload.start(vectors, [], torch.zeros(0))
        return payload.finish(0)[0][1].clone()

    assert all(third.tolist() == [1.0 / 3.0] * 2 for third in together(2, work))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_on_one_worker_is_seen_by_all(bad: float, compressed: bool) -> None:
    def work(workers: Replica) -> tuple[bool, bool]:
        vector = torch.zeros(5)
        payload = FlatBuffer(workers, 1 / 3, compressed=compressed, template=[vector], numbers=0)
        verdicts = []
        for value in (bad, 0.0):
            vector[3] = value if workers.rank == 1 else 0.0
            payload.start([vector], [torch.zeros(5)], torch.zeros(0))
            payload.wait()
            verdicts.append(payload.finite())
        return verdicts[0], verdicts[1]

    assert together(3, work) == [(False, True)] * 3


@pytest.mark.parametrize("compressed", [False, True])
def test_the_sums_under_way_can_be_stored(compressed: bool) -> None:
    def work(workers: Replica) -> None:
        vectors = [torch.full((3,), float(workers.rank + 1)), torch.ones(2, 2)]
        references = [torch.full((3,), 0.5), torch.zeros(2, 2)]
        made = [FlatBuffer(workers, 0.5, compressed=compressed, template=vectors, numbers=1) for _ in range(2)]
        made[0].start(vectors, references, torch.ones(1))
        made[0].wait()
        made[1].load(made[0].state(), vectors, references)
        (one, first), (two, second) = (payload.finish(1) for payload in made)
        assert equal([*one, first], [*two, second])
        assert one[0].tolist() == [1.5] * 3

    together(2, work)


def walked(syncs: int, *, compressed: bool, referenced: bool = True) -> tuple[Tensor, float]:
    """Where weights of size 1 come by 1000 times a thousandth, synchronized each time, and Σ_k max_r |d_rk|."""
    generator = torch.Generator().manual_seed(1)
    steps = 1e-3 * torch.rand(syncs, 2, 50, generator=generator)

    def work(workers: Replica) -> Tensor:
        weights = torch.ones(50)
        payload = FlatBuffer(workers, 0.5, compressed=compressed, template=[weights], numbers=0)
        for step in steps:
            reference = weights.clone() if referenced else torch.zeros(50)
            payload.start([weights + step[workers.rank]], [reference], torch.zeros(0))
            weights.copy_(payload.finish(0)[0][0])
        return weights

    one, two = together(2, work)
    assert torch.equal(one, two)
    return one, float(steps.amax((1, 2)).sum())


def test_differences_in_bf16_stay_close_to_float32() -> None:
    """A bf16 number has 8 bits: each worker's difference is off by 2⁻⁹ of it at most, their sum by another 2⁻⁹ of
    itself, so the mean by 2⁻⁸ of the larger difference; over n syncs by 2⁻⁸ of the way at most. Float32's own
    rounding of the weights, 2⁻²⁴ each time, is far below.
    """
    exact, way = walked(1000, compressed=False)
    found, _ = walked(1000, compressed=True)
    assert exact.min() > 1.4
    assert 0.0 < (found - exact).abs().max() <= 2**-8 * way
    assert (found - exact).abs().max() < 1e-3, "rounding errors have no sign: they add up as a root"


def test_raw_weights_in_bf16_would_lose_every_small_update() -> None:
    """Half a thousandth is less than half the distance of two bf16 numbers at 1, which is 2⁻⁷."""
    found, _ = walked(1000, compressed=True, referenced=False)
    assert torch.equal(found, torch.ones(50))


@pytest.mark.parametrize(
    "options",
    [{"dual": "shared", "every": 1}, {"dual": "shared", "every": 3}, {"dual": "damped", "every": 3}],
)
def test_a_run_with_bf16_differences_stays_close_to_float32(options: dict[str, Any]) -> None:
    """Quadratics contract, so each sync's error of 2⁻⁸ of a difference is forgotten: nothing piles up."""

    def work(workers: Replica, compressed: bool) -> list[Tensor]:
        engine = consensus(workers, compressed=compressed, **options)
        return Run(engine, Quadratic(torch.float32, shapes=((3, 4),)), workers.rank).advance(150).slow()

    exact = together(3, lambda workers: work(workers, False))[0]
    found = together(3, lambda workers: work(workers, True))[0]
    assert not equal(found, exact)
    close(found, exact, 1e-2)


def test_unequal_shares_weigh_the_weights() -> None:
    def work(workers: Replica) -> list[Tensor]:
        share = (0.125, 0.875)[workers.rank]
        run = Run(consensus(workers, every=2, share=share), Quadratic(), workers.rank)
        with torch.no_grad():
            for p in run.params:
                p.fill_(8.0 * workers.rank)
        run.engine.after_update()
        run.engine.after_update()
        return [p.detach() for p in run.params]

    for found in together(2, work):
        assert all(bool((p == 7.0).all()) for p in found)
