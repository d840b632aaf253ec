"""Consensus with a dual by worker, against the equations in float64 numpy, and its fixed point."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from fptt_dist.algorithm import FPTT
from fptt_dist.parallel import LocalDual
from fptt_dist.parallel.sync import admm_dual
from tests.algorithm import reference
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import BASE_OF, Array, Quadratic, Run, close, consensus, mean_of, told

Order = Literal["damped", "admm"]
SHARES = (0.5, 0.2, 0.3)


def rate(window: int) -> float:
    """A learning rate that moves."""
    return 0.02 * (1.0 + 0.5 * float(np.cos(window)))


def squared_scale(worker: reference.Reference, momentum: float) -> float:
    """Square of what the base divides a gradient by, the mean over all elements."""
    each = [
        memory["v_hat"] if "v_hat" in memory else np.full_like(w, (1.0 - momentum) ** 2)
        for memory, w in zip(worker.memory, worker.W, strict=True)
    ]
    return float(np.concatenate([e.ravel() for e in each]).mean())


def by_hand(
    windows: int,
    *,
    every: int,
    order: Order,
    base: str,
    shares: tuple[float, ...],
    damping: float = 0.25,
    warmup_updates: int = 0,
    **settings: Any,
) -> list[list[Array]]:
    """[W, W̄, u, Z, μ, μ̄, A] of each worker after `windows` updates."""
    problem, (rule, options) = Quadratic(shapes=SHAPES), BASE_OF[base]
    start = [p.detach().numpy() for p in problem.parameters()]
    ids = range(len(start))
    zeros, momentum = [0.0] * len(start), options.get("momentum", 0.0)
    workers = [
        reference.Reference(start, getattr(reference, rule), zeros, [0.5] * len(start), options=options, **settings)
        for _ in shares
    ]
    z = [w.copy() for w in start]
    mu = [[0.0 * w for w in start] for _ in shares]
    mu_bar, strength, rates = [0.0 * w for w in start], list(zeros), 0.0
    for t in range(windows):
        gradients = [problem.gradients(worker.W, r, t) for r, worker in enumerate(workers)]
        if t < warmup_updates:
            gradients = [
                [
                    np.asarray(sum(s * g for s, g in zip(shares, same, strict=True)))
                    for same in zip(*gradients, strict=True)
                ]
            ] * len(workers)
        for r, worker in enumerate(workers):
            worker.consensus_term = {i: (z[i], mu[r][i], strength[i]) for i in ids} if t >= warmup_updates else {}
            worker.lr = [rate(t)] * len(start)
            worker.step(gradients[r])
        if t + 1 == warmup_updates:
            z = [w.copy() for w in workers[0].W]
        if t < warmup_updates:
            continue
        rates += rate(t)  # η h
        if (t + 1) % every:
            continue
        m = [np.asarray(sum(s * w.W[i] for s, w in zip(shares, workers, strict=True))) for i in ids]
        square = sum(s * squared_scale(worker, momentum) for s, worker in zip(shares, workers, strict=True))
        a = damping * float(np.sqrt(square)) / rates
        strength = [a] * len(start)
        for i in ids:
            for r, worker in enumerate(workers):
                mu[r][i] = mu[r][i] - a * (worker.W[i] - (z[i] if order == "damped" else m[i]))
            if order == "admm":
                z[i] = m[i]
            else:
                mu_bar[i] = mu_bar[i] - a * (m[i] - z[i])
                z[i] = 0.5 * z[i] + 0.5 * (m[i] - mu_bar[i] / a) if a else m[i]
            for worker in workers:
                worker.W[i], worker.center[i], worker.u[i] = z[i].copy(), z[i].copy(), 0.0 * z[i]
        rates = 0.0
    slow = [[*w.W, *(w.center[i] for i in ids), *(w.u[i] for i in ids)] for w in workers]
    return [[*s, *z, *mine, *mu_bar, np.array(strength)] for s, mine in zip(slow, mu, strict=True)]


SHAPES = ((3, 4), (), (5,), (1,), (2, 1, 3))


def of(run: Run) -> LocalDual:
    rule = run.engine.sync.rule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(rule, LocalDual)
    return rule


def state(run: Run) -> list[Tensor]:
    """[W, W̄, u, Z, μ, μ̄, A], copied."""
    dual = of(run)
    more = [t.clone() for t in (*dual.center, *dual.dual, *dual.mean_dual)]
    return [*run.slow(), *more, torch.tensor(dual.strength, dtype=torch.float64)]


def check(windows: int, *, every: int, order: Order, base: str, shares: tuple[float, ...], **more: Any) -> None:
    options = {name: more[name] for name in ("damping", "warmup_updates") if name in more}
    settings = {name: value for name, value in more.items() if name not in options}

    def work(workers: Replica) -> list[Tensor]:
        engine = consensus(workers, every=every, dual=order, share=shares[workers.rank], **options)
        return state(
            Run(engine, Quadratic(shapes=SHAPES), workers.rank, base=base, lr=rate, **settings).advance(windows)
        )

    expected = by_hand(windows, every=every, order=order, base=base, shares=shares, **more)
    for mine, reference_ in zip(together(len(shares), work), expected, strict=True):
        close(mine, reference_, 1e-10)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("order", ["damped", "admm"])
@pytest.mark.parametrize(("base", "shares"), [("sgd", (0.5, 0.5)), ("sgd_momentum", SHARES), ("adam", SHARES)])
def test_the_equations(base: str, order: Order, every: int, shares: tuple[float, ...]) -> None:
    check(14, every=every, order=order, base=base, shares=shares)


@pytest.mark.parametrize("order", ["damped", "admm"])
def test_another_step_size_of_the_dual(order: Order) -> None:
    check(14, every=4, order=order, base="adam", shares=SHARES, damping=0.4)


@pytest.mark.parametrize("order", ["damped", "admm"])
def test_the_bound_of_the_norm_is_on_everything(order: Order) -> None:
    check(14, every=4, order=order, base="sgd", shares=SHARES, max_norm=2.0)


def test_the_slow_pull_is_never_multiplied_by_the_metric() -> None:
    check(14, every=4, order="damped", base="adam", shares=SHARES, metric="preconditioned")


def test_gradients_are_averaged_before_the_first_interval() -> None:
    check(17, every=4, order="damped", base="sgd_momentum", shares=SHARES, warmup_updates=6)


def test_the_duals_of_admm_have_the_mean_0() -> None:
    def work(workers: Replica) -> list[Tensor]:
        engine = consensus(workers, every=3, dual="admm", share=SHARES[workers.rank])
        return of(Run(engine, Quadratic(), workers.rank, lr=rate).advance(60)).dual

    duals = together(3, work)
    assert max(float(mu.abs().max()) for mu in duals[0] if mu.numel()) > 0.1
    close(mean_of(duals, SHARES), [torch.zeros_like(mu) for mu in duals[0]], 1e-13)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_tracked_mean_dual_stays_the_duals_mean(compressed: bool) -> None:
    """Over 210 syncs in float32: rounding must not pile up, and what bf16 loses is renewed every 100."""
    every, syncs = 2, 210

    def work(workers: Replica) -> list[list[Tensor]]:
        seen: list[list[Tensor]] = []

        def note(run: Run) -> None:
            if run.engine.control.updates % every == 0:
                dual = of(run)
                seen.append([t.clone() for t in (*dual.dual, *dual.mean_dual)])

        engine = consensus(workers, every=every, dual="damped", compressed=compressed)
        Run(engine, Quadratic(torch.float32, shapes=((3, 4), (5,))), workers.rank).advance(every * syncs, each=note)
        return seen

    seen = together(2, work)
    assert admm_dual.RENEWED_EVERY == 100
    apart = []
    for one, two in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[2:], two[2:], strict=True)), "μ̄ is the same on all"
        means = mean_of([one[:2], two[:2]])
        scale = max(float(mu.abs().max()) for mu in one[:2])
        apart.append(max(float((m - t).abs().max()) for m, t in zip(means, one[2:], strict=True)) / scale)
    assert len(apart) == syncs
    # Exact in exact arithmetic. Each sync rounds m once: by 2⁻²⁴ of a weight, or 2⁻⁹ of each worker's difference
    # and of their sum; the errors add up as a random walk until the next renewal.
    assert max(apart) < (0.05 if compressed else 2e-6)
    if compressed:
        assert apart[99] < apart[98] / 2, "renewed"


def settled(every: int, kind: Literal["damped", "admm", "shared"]) -> tuple[float, float, float]:
    """Two non-IID shards, full gradients: the distance of W from the minimiser of the shards' sum, |Σ ∇f_r(W)| and
    |mean(μ)|.
    """

    def work(workers: Replica) -> list[Tensor]:
        engine = consensus(workers, every=every, dual=kind)
        run = Run(engine, Quadratic(noise=0.0, shapes=((4,),)), workers.rank, lr=0.1, alpha=0.0)
        run.advance(300 if kind == "shared" else 150 + 100 * every)  # the mean of W is soon where it stays
        return [run.slow()[0], *([] if kind == "shared" else [of(run).dual[0].clone()])]

    problem = Quadratic(noise=0.0, shapes=((4,),))
    answers = together(2, work)
    found = answers[0][0].numpy()
    total = sum(problem.gradients([found], r, 0)[0] for r in range(2))
    mean = mean_of([answer[1:] for answer in answers])
    apart = float(np.abs(found - problem.optimum(2)[0]).max())
    return apart, float(np.abs(total).max()), float(mean[0].abs().max()) if mean else 0.0


@pytest.mark.parametrize(("every", "order"), [(1, "damped"), (5, "admm"), (8, "damped")])
def test_the_fixed_point_on_unlike_shards_is_the_minimiser_of_the_sum(every: int, order: Order) -> None:
    apart, total, mean = settled(every, order)
    assert apart < 1e-5
    assert total < 1e-5
    assert mean < 1e-5


def test_averaging_unlike_shards_is_biased_where_the_duals_are_not() -> None:
    """The known bias, which grows with H."""
    assert 0.01 < settled(3, "shared")[0] < settled(12, "shared")[0]


def test_without_steps_there_is_no_unit_and_the_agreement_is_the_mean() -> None:
    """Learning rate 0: A = 0, μ stays, Z ← m."""

    def work(workers: Replica) -> list[Tensor]:
        run = Run(consensus(workers, every=2, dual="damped"), Quadratic(shapes=SHAPES), workers.rank, lr=0.0)
        start = run.slow()
        run.advance(4)
        assert of(run).strength == [0.0] * len(SHAPES)
        assert not any(mu.any() for mu in of(run).dual)
        close(run.slow(), start, 0.0)
        return run.slow()

    together(2, work)


def test_an_empty_parameter_does_not_spoil_the_scale() -> None:
    def work(workers: Replica) -> tuple[bool, list[float]]:
        problem = Quadratic(shapes=((2,), (0,)))
        run = Run(consensus(workers, every=2, dual="damped"), problem, workers.rank, base="adam").advance(2)
        return told(run.engine).all_finite(), of(run).strength

    for healthy, strength in together(2, work):
        assert healthy
        assert all(0.0 < a < float("inf") for a in strength)


def test_groups_have_strengths_of_their_own() -> None:
    """A = ρ s/(η h): half the learning rate, twice the strength."""

    def work(workers: Replica) -> list[float]:
        run = Run(consensus(workers, every=2, dual="admm"), Quadratic(shapes=((2,), (3,))), workers.rank)
        groups: list[dict[str, Any]] = [{"params": [run.params[0]], "lr": 0.1}, {"params": [run.params[1]], "lr": 0.05}]
        run.optimizer = FPTT(torch.optim.SGD(groups, lr=0.1), alpha=0.5)
        run.engine.attach(run.optimizer)
        for _ in range(2):
            run.engine.backward(run.model.loss(workers.rank, 0), last=True)
            run.engine.step()
            run.optimizer.zero_grad()
            run.engine.after_update()
        return of(run).strength

    for strength in together(2, work):
        assert strength == pytest.approx([0.25 / 0.2, 0.25 / 0.1])
