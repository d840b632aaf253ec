"""What is missing, not finite, or to be stopped on one worker, and when the others hear of it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.parallel.nan_check import NonFiniteRecord
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import Quadratic, Run, averaging, close, consensus, equal, mean_of, told

KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "center": {"weights": "center"},
    "bf16": {"compressed": True},
    "damped": {"dual": "damped"},
    "admm": {"dual": "admm"},
}


class Spoilt(Quadratic):
    """A quadratic whose loss, or the gradient of p2, is not finite on shard 1 from update 5 on."""

    def __init__(self, what: str) -> None:
        super().__init__(torch.float32)
        self.what = what

    def loss(self, shard: int, window: int) -> Tensor:
        """See the class."""
        value = super().loss(shard, window)
        if shard != 1 or window < 5:
            return value
        if self.what == "loss":
            return value * math.nan
        return value + (0.0 * self.get_parameter("p2")).abs().sqrt().sum()  # 0, with the slope 0 · ∞


@pytest.mark.parametrize(("kind", "what"), [("mean", "gradient"), *zip(KINDS, ["loss", "gradient"] * 3, strict=False)])
def test_a_worker_that_sees_nan_waits_and_nobody_copies_back(kind: str, what: str) -> None:
    """NaN in update 5, syncs after 4 and 8: the others train on alone till 8, then all know."""

    def work(workers: Replica) -> tuple[list[list[Tensor]], list[bool], NonFiniteRecord]:
        engine = consensus(workers, every=4, **KINDS[kind])
        run = Run(engine, Spoilt(what), workers.rank)
        weights, healthy = [run.slow()], [True]
        for window in range(1, 9):
            run.advance(window)
            weights.append(run.slow())
            healthy.append(told(engine).all_finite())
        return weights, healthy, engine.control.first_non_finite()

    answers = together(3, work)
    for weights, healthy, sighting in answers:
        assert healthy == [True] * 8 + [False]
        assert sighting == NonFiniteRecord(rank=1, window=5, tensor="p2" if what == "gradient" else "the loss")
        assert all(bool(t.isfinite().all()) for t in weights[8])
    spoilt, sound = answers[1][0], answers[0][0]
    assert equal(spoilt[5], spoilt[8]), "it takes no further step, and takes nothing over"
    assert not equal(sound[7], sound[8])
    assert not any(torch.equal(a, b) for a, b in zip(sound[8], answers[2][0][8], strict=True) if a.numel() > 1)


def test_the_others_go_on_as_if_alone_until_they_hear_of_it() -> None:
    def work(workers: Replica, every: int) -> list[Tensor]:
        return Run(consensus(workers, every=every), Spoilt("loss"), workers.rank, base="adam").advance(8).slow()

    with_news, without = (together(3, lambda w, every=every: work(w, every)) for every in (8, 100))
    for one, other in zip(with_news, without, strict=True):
        assert equal(one, other)


def test_with_a_delay_it_is_heard_of_when_the_agreement_arrives() -> None:
    def work(workers: Replica) -> list[bool]:
        engine = consensus(workers, every=4, sync_delay=2)
        healthy: list[bool] = []
        run = Run(engine, Spoilt("loss"), workers.rank)
        run.advance(11, each=lambda run: healthy.append(told(run.engine).all_finite()))
        return healthy

    # seen in update 5: the sync that left after 4 still arrives after 6, the one that leaves after 8 tells
    assert together(2, work) == [[True] * 9 + [False] * 2] * 2


def test_a_vote_tells_it_at_once() -> None:
    def work(workers: Replica) -> tuple[bool, bool, list[Tensor], list[Tensor]]:
        engine = consensus(workers, every=100)
        run = Run(engine, Spoilt("loss"), workers.rank).advance(6)
        before, weights = told(engine).all_finite(), run.slow()
        engine.settle()
        return before, told(engine).all_finite(), weights, run.slow()

    for before, after, weights, voted in together(2, work):
        assert (before, after) == (True, False)
        assert equal(weights, voted)


def test_averaged_gradients_tell_it_in_the_same_window() -> None:
    def work(workers: Replica, make: Callable[[Replica], Any]) -> tuple[list[bool], NonFiniteRecord]:
        healthy: list[bool] = []
        run = Run(make(workers), Spoilt("gradient"), workers.rank)
        run.advance(7, each=lambda run: healthy.append(told(run.engine).all_finite()))
        return healthy, run.engine.control.first_non_finite()

    def late(workers: Replica) -> Any:
        return consensus(workers, every=10, warmup_updates=10)

    for make in (lambda workers: averaging(workers, 1 / 3), late):
        for healthy, sighting in together(3, lambda workers, make=make: work(workers, make)):
            assert healthy == [True] * 5 + [False] * 2
            assert sighting == NonFiniteRecord(rank=1, window=5, tensor="p2")


def test_weights_that_overflow_just_before_an_agreement_are_reported_with_a_window() -> None:
    """Loss and gradient were finite; what is sent is not."""

    def work(workers: Replica) -> NonFiniteRecord:
        rank = workers.rank
        run = Run(consensus(workers, every=2), Quadratic(torch.float32), rank, alpha=0.0)
        run.rate = lambda window: 3e38 if rank == 1 and window == 3 else 0.01
        run.advance(4)
        assert not told(run.engine).all_finite()
        return run.engine.control.first_non_finite()

    one, two = together(2, work)
    assert one == two
    assert one.window == 3


@pytest.mark.parametrize("delay", [0, 2])
def test_the_stop_flag_of_one_reaches_all_with_the_next_agreement(delay: int) -> None:
    def work(workers: Replica) -> tuple[list[bool], dict[str, int]]:
        engine = consensus(workers, every=4, control_interval=6, sync_delay=delay)
        stopping: list[bool] = []

        def each(run: Run) -> None:
            if workers.rank == 1 and engine.control.updates == 5:
                engine.control.request_stop()
            stopping.append(told(engine).should_stop())

        Run(engine, Quadratic(), workers.rank).advance(12, each=each)
        return stopping, {name: cost.calls for name, cost in engine.traffic().items() if name != "weights"}

    for stopping, calls in together(3, work):
        assert stopping == [False] * (7 + delay) + [True] * (5 - delay)
        assert calls == {"sync": 3}, "nothing else is sent"


def test_a_vote_carries_the_stop_flag_where_agreements_are_rare() -> None:
    def work(workers: Replica) -> tuple[list[bool], dict[str, int]]:
        engine = consensus(workers, every=12, control_interval=4)
        stopping: list[bool] = []

        def each(run: Run) -> None:
            if workers.rank == 1 and engine.control.updates == 6:
                engine.control.request_stop()
            stopping.append(told(engine).should_stop())

        Run(engine, Quadratic(), workers.rank).advance(24, each=each)
        return stopping, {name: cost.calls for name, cost in engine.traffic().items() if name != "weights"}

    for stopping, calls in together(3, work):
        assert stopping == [False] * 7 + [True] * 17
        assert calls == {"sync": 2, "control flags": 4}  # after 4, 8, 16 and 20; 12 and 24 are syncs


def test_averaged_gradients_carry_the_stop_flag() -> None:
    def work(workers: Replica) -> list[bool]:
        stopping: list[bool] = []

        def each(run: Run) -> None:
            if workers.rank == 1 and run.engine.control.updates == 3:
                run.engine.control.request_stop()
            stopping.append(told(run.engine).should_stop())

        Run(averaging(workers, 0.5), Quadratic(), workers.rank).advance(5, each=each)
        return stopping

    assert together(2, work) == [[False] * 3 + [True] * 2] * 2


class Partly(Quadratic):
    """A quadratic in which shard 0 does not use p2, except in update 0."""

    def loss(self, shard: int, window: int) -> Tensor:
        """See the class."""
        pairs = zip(self.parameters(), self.coefficients(shard, window), strict=True)
        terms = [0.5 * (a * (p - c).square()).sum() for p, (a, c) in pairs]
        return torch.stack([term for i, term in enumerate(terms) if i != 2 or shard != 0 or window == 0]).sum()


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_a_parameter_without_gradient_on_one_worker_is_left_there_and_averaged(base: str) -> None:
    """W ← mean(W_r), W̄ ← mean(W̄_r), u ← mean(u_r), where the worker without a gradient kept its own."""

    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        engines = [consensus(workers, every=3) for _ in range(2)]
        runs = [Run(engine, Partly(), workers.rank, base=base).advance(3) for engine in engines]
        engines[0].sync.sync_every = 100  # pyright: ignore[reportAttributeAccessIssue]  # this one does not synchronize again
        before, after = (run.advance(6).slow() for run in runs)
        return before, after

    (own, one), (other, two) = together(2, work)
    assert not equal(own, other)
    close(one, mean_of([own, other]))
    assert equal(one, two)


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_a_parameter_without_gradient_on_one_worker_does_not_part_what_is_not_sent(base: str) -> None:
    """At H = 1 only W is sent: W̄ and u must come out alike on all workers, or they never meet again."""

    def work(workers: Replica) -> list[Tensor]:
        return Run(consensus(workers, every=1), Partly(), workers.rank, base=base).advance(4).slow()

    one, two = together(2, work)
    close(one, two)


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_averaged_gradients_count_a_missing_one_as_0(base: str) -> None:
    class Zeroed(Partly):
        """The same with a gradient of 0 instead of none."""

        def loss(self, shard: int, window: int) -> Tensor:
            return super().loss(shard, window) + 0.0 * self.get_parameter("p2").sum()

    def work(workers: Replica, problem: Quadratic) -> list[Tensor]:
        return Run(averaging(workers, 0.5), problem, workers.rank, base=base).advance(6).everything()

    missing, zeros = (together(2, lambda w, kind=kind: work(w, kind())) for kind in (Partly, Zeroed))
    assert equal(missing[0], missing[1])
    assert equal(missing[0], zeros[0])
