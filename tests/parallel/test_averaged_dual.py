"""Consensus with a shared dual, against the equations in float64 numpy, and against gradient averaging."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithm import reference
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import (
    BASE_OF,
    Array,
    Quadratic,
    Rate,
    Run,
    averaging,
    close,
    consensus,
    mean_of,
    single_worker,
)

Mode = Literal["average", "center"]
SHARES = (0.5, 0.2, 0.3)


def rate(window: int) -> float:
    """A learning rate that moves."""
    return 0.02 * (1.0 + 0.5 * float(np.cos(window)))


def by_hand(
    windows: int,
    *,
    every: int,
    mode: Mode,
    base: str,
    shares: tuple[float, ...],
    sync_delay: int = 0,
    warmup_updates: int = 0,
    lr: Rate = rate,
    **settings: Any,
) -> list[list[Array]]:
    """[W, W̄, u] of each worker after `windows` updates, from the equations."""
    problem, (rule, options) = Quadratic(), BASE_OF[base]
    start = [p.detach().numpy() for p in problem.parameters()]
    count = len(start)
    workers = [
        reference.Reference(start, getattr(reference, rule), [0.0] * count, [0.5] * count, options=options, **settings)
        for _ in shares
    ]

    def mean(each: list[list[Array]]) -> list[Array]:
        return [np.asarray(sum(s * x for s, x in zip(shares, same, strict=True))) for same in zip(*each, strict=True)]

    def held(worker: reference.Reference) -> dict[str, list[Array]]:
        slow = {"center": worker.center, "u": worker.u}
        return {"W": list(worker.W), **{name: [x[i] for i in range(count)] for name, x in slow.items()}}

    due = -1
    kept: list[dict[str, list[Array]]] = []
    means: dict[str, list[Array]] = {}
    for t in range(windows):
        gradients = [problem.gradients(worker.W, r, t) for r, worker in enumerate(workers)]
        if t < warmup_updates:
            gradients = [mean(gradients)] * len(workers)
        for worker, gradient in zip(workers, gradients, strict=True):
            worker.lr = [lr(t)] * count
            worker.step(gradient)
        now = t + 1
        if now > warmup_updates and now % every == 0:
            kept = [held(worker) for worker in workers]
            means = {name: mean([k[name] for k in kept]) for name in ("W", "center", "u")}
            due = now + sync_delay
        if now == due:
            for worker, k in zip(workers, kept, strict=True):
                weights = {"average": means["W"], "center": means["center"]}[mode]
                for i in range(count):
                    worker.W[i] = worker.W[i] + weights[i] - k["W"][i]
                    worker.center[i] = worker.center[i] + means["center"][i] - k["center"][i]
                    worker.u[i] = worker.u[i] + means["u"][i] - k["u"][i]
    return [[*w.W, *(w.center[i] for i in range(count)), *(w.u[i] for i in range(count))] for w in workers]


def trained(
    workers: Replica, windows: int, *, every: int, weights: Mode, base: str, share: float, **more: Any
) -> list[Tensor]:
    options = {name: more.pop(name) for name in ("sync_delay", "warmup_updates") if name in more}
    engine = consensus(workers, every=every, weights=weights, share=share, **options)
    return Run(engine, Quadratic(), workers.rank, base=base, lr=rate, **more).advance(windows).slow()


def check(windows: int, *, every: int, mode: Mode, base: str, shares: tuple[float, ...], **more: Any) -> None:
    found = together(
        len(shares),
        lambda workers: trained(
            workers, windows, every=every, weights=mode, base=base, share=shares[workers.rank], **more
        ),
    )
    expected = by_hand(windows, every=every, mode=mode, base=base, shares=shares, **more)
    for mine, reference_ in zip(found, expected, strict=True):
        close(mine, reference_)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("mode", ["average", "center"])
@pytest.mark.parametrize(("base", "shares"), [("sgd", (0.5, 0.5)), ("sgd_momentum", SHARES), ("adam", SHARES)])
def test_the_equations(base: str, mode: Mode, every: int, shares: tuple[float, ...]) -> None:
    check(14, every=every, mode=mode, base=base, shares=shares)


@pytest.mark.parametrize("mode", ["average", "center"])
@pytest.mark.parametrize("delay", [1, 4])
def test_a_delayed_agreement_adds_the_mean_less_the_snapshot(delay: int, mode: Mode) -> None:
    check(18, every=5, mode=mode, base="sgd_momentum", shares=SHARES, sync_delay=delay)


@pytest.mark.parametrize("every", [1, 3])
def test_gradients_are_averaged_before_the_first_interval(every: int) -> None:
    check(5, every=every, mode="average", base="adam", shares=SHARES, warmup_updates=5)
    check(13, every=every, mode="average", base="adam", shares=SHARES, warmup_updates=5)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "more",
    [{"update_rule": "proximal"}, {"beta": 0.3}, {"max_norm": 1.0}, {"dual_weight": 0.5}],
    ids=lambda more: next(iter(more)),
)
def test_the_equations_with_fptts_other_settings(more: dict[str, Any], every: int) -> None:
    check(10, every=every, mode="average", base="sgd", shares=SHARES, **more)


@pytest.mark.parametrize("every", [1, 3])
def test_the_preconditioned_metric(every: int) -> None:
    check(10, every=every, mode="average", base="adam", shares=SHARES, metric="preconditioned")


def test_sgd_that_agrees_after_each_window_is_gradient_averaging() -> None:
    """Without a bound of the norm, and with the Euclidean metric: then an update is linear in the gradient."""

    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        share = SHARES[workers.rank]
        often = Run(consensus(workers, every=1, share=share), Quadratic(), workers.rank, base="sgd_momentum", lr=rate)
        gradient = Run(averaging(workers, share), Quadratic(), workers.rank, base="sgd_momentum", lr=rate)
        return often.advance(20).slow(), gradient.advance(20).slow()

    for often, gradient in together(3, work):
        close(often, gradient)


def test_averaging_is_linear() -> None:
    """With one curvature for all shards the workers' mean follows the mean problem, whatever H: quadratics, SGD."""

    class Level(Quadratic):
        """All curvatures 1."""

        def coefficients(self, shard: int, window: int) -> list[tuple[Tensor, Tensor]]:
            return [(torch.ones_like(a), c) for a, c in super().coefficients(shard, window)]

    def work(workers: Replica, every: int) -> list[Tensor]:
        return Run(consensus(workers, every=every), Level(), workers.rank, lr=rate).advance(24).slow()

    alone = Run(single_worker(), Level(), 0, lr=rate)
    alone.model.loss = lambda _, window: torch.stack([Level.loss(alone.model, r, window) for r in range(3)]).mean()
    expected = alone.advance(24).slow()
    for every in (1, 4, 24, 100):
        close(mean_of(together(3, lambda workers, every=every: work(workers, every))), expected)


@pytest.mark.parametrize("every", [1, 4])
def test_the_center_is_the_mean_of_weights_and_the_dual_before(every: int) -> None:
    """W̄' = W' − u/2 with β = ½ and u from before the update, for the means of the workers at any window."""

    def work(workers: Replica) -> list[list[Tensor]]:
        seen: list[list[Tensor]] = []
        engine = consensus(workers, every=every)
        Run(engine, Quadratic(), workers.rank, lr=rate).advance(9, each=lambda run: seen.append(run.slow()))
        return seen

    runs = together(3, work)
    for before, after in zip(range(8), range(1, 9), strict=True):
        means = mean_of([run[after] for run in runs])
        earlier = mean_of([run[before] for run in runs])
        count = len(means) // 3
        close(means[count : 2 * count], [w - 0.5 * u for w, u in zip(means[:count], earlier[2 * count :], strict=True)])


def test_averaging_unlike_shards_has_a_bias_that_grows_with_the_interval() -> None:
    def work(workers: Replica, every: int) -> list[Tensor]:
        engine = consensus(workers, every=every, weights="center")
        return Run(engine, Quadratic(noise=0.0), workers.rank, lr=0.1).advance(200).slow()

    optimum = Quadratic(noise=0.0).optimum(2)
    errors = []
    for every in (1, 5, 50):
        found = together(2, lambda workers, every=every: work(workers, every))[0]
        errors.append(max(float(np.abs(w.numpy() - o).max(initial=0.0)) for w, o in zip(found, optimum, strict=False)))
    assert errors[0] < 1e-3 < 0.02 < errors[1] < errors[2]
