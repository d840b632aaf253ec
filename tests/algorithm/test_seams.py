"""The two seams for several processes: the reduction of the norm over shards, and the consensus term."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from fptt_dist.algorithm import FPTT, ConsensusTerm
from fptt_dist.algorithm.diagnostics import norms

from . import reference
from .helpers import BASES, Clip, noise, numpy_of, parameters, same_bits, set_gradients, snapshot


class AllReduce:
    """The sum over two threads that play two processes, as a collective: both must call it."""

    def __init__(self) -> None:
        self.barrier = Barrier(2, timeout=20)
        self.given: list[Tensor] = [torch.zeros(())] * 2
        self.calls = 0

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        """The reduction as seen by one of the two."""

        def reduce(squares: Tensor) -> Tensor:
            assert squares.dim() == 0
            assert squares.dtype == torch.float64
            self.given[rank] = squares
            self.barrier.wait()
            total = self.given[0] + self.given[1]
            self.calls += 1
            self.barrier.wait()
            return total

        return reduce


def in_two_shards(params: list[Parameter], updates: int, name: str, **options: Any) -> tuple[list[FPTT], AllReduce]:
    """Two optimizers, one with the first parameter and one with the others, stepped side by side."""
    reduce = AllReduce()
    parts = (slice(0, 1), slice(1, None))

    def work(rank: int) -> FPTT:
        mine = params[parts[rank]]
        optimizer = FPTT(BASES[name].make(mine, lr=0.05, **BASES[name].options), **options)
        optimizer.norm_reduce = reduce.of(rank)
        for t in range(updates):
            set_gradients(mine, noise(t, params)[parts[rank]])
            optimizer.step()
        return optimizer

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2))), reduce


def test_shards_with_a_reduced_norm_are_the_unsplit_run(subtests: pytest.Subtests) -> None:
    for name, update, clip in product(("sgd_momentum", "adamw"), ("gradient", "proximal"), ("total", "gradient")):
        with subtests.test(name=name, update=update, clip=clip):
            options = {"alpha": 1.0, "update_rule": update, "max_norm": 0.5, "clip_scope": clip}
            whole, sharded, split = (parameters(torch.float64) for _ in range(3))
            unsplit = FPTT(BASES[name].make(whole, lr=0.05, **BASES[name].options), **options)
            alone = FPTT(BASES[name].make(split[:1], lr=0.05, **BASES[name].options), **options)  # asks nobody
            for t in range(6):
                set_gradients(whole, noise(t, whole))
                set_gradients(split, noise(t, split))
                unsplit.step()
                alone.step()
            optimizers, reduce = in_two_shards(sharded, 6, name, **options)
            assert reduce.calls == 12
            for i, (p, q) in enumerate(zip(sharded, whole, strict=True)):
                torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-11, atol=1e-13)
                torch.testing.assert_close(optimizers[min(i, 1)].center(p), unsplit.center(q), rtol=1e-11, atol=1e-13)
            assert (split[0] - whole[0]).abs().max() > 1e-6


def test_without_a_bound_nothing_is_reduced() -> None:
    _, reduce = in_two_shards(parameters(), 2, "adam", alpha=0.5)
    assert reduce.calls == 0


def test_the_norms_for_telemetry_are_reduced_too() -> None:
    params = parameters()
    optimizer = FPTT(SGD(params, lr=0.1), alpha=0.5)
    for t in range(2):
        set_gradients(params, noise(t, params))
        optimizer.step()
    alone = norms(optimizer)
    optimizer.norm_reduce = lambda squares: 4.0 * squares
    for name, value in norms(optimizer).items():
        torch.testing.assert_close(value, 2.0 * alone[name])
        assert value > 0


def test_the_second_pull_is_the_references(subtests: pytest.Subtests) -> None:
    """A (W − Z) − μ on two of three parameters, with its own strength each, replaced on the way."""
    for (name, update, metric), clip in product(
        (
            ("sgd_momentum", "gradient", "euclidean"),
            ("sgd_momentum", "proximal", "euclidean"),
            ("adam", "gradient", "euclidean"),
            ("adam", "proximal", "euclidean"),
            ("adam", "gradient", "preconditioned"),
        ),
        ("total", "gradient"),
    ):
        with subtests.test(name=name, update=update, metric=metric, clip=clip):
            params, base = parameters(torch.float64), BASES[name]
            options = {"update_rule": update, "clip_scope": clip, "metric": metric, "max_norm": 0.8}
            optimizer = FPTT(base.make(params, lr=0.05, **base.options), alpha=0.5, **options)
            rule = getattr(reference, base.rule)
            expected = reference.Reference(
                numpy_of(params), rule, [0.05] * 3, [0.5] * 3, options=base.options, **options
            )
            for t in range(12):
                if t % 5 == 1:
                    centers, duals, strengths = noise(50 + t, params), noise(60 + t, params), (1.5 + t, 0.0)
                    anchored = [params[0], params[2]]
                    optimizer.consensus_term = ConsensusTerm(
                        dict(zip(anchored, centers[::2], strict=True)),
                        dict(zip(anchored, duals[::2], strict=True)),
                        dict(zip(anchored, strengths, strict=True)),
                    )
                    z, mu = numpy_of(centers), numpy_of(duals)
                    expected.consensus_term = {0: (z[0], mu[0], strengths[0]), 2: (z[2], mu[2], strengths[1])}
                set_gradients(params, noise(t, params))
                optimizer.step()
                expected.step(numpy_of(noise(t, params)))
                for i, p in enumerate(params):
                    np.testing.assert_allclose(p.detach(), expected.W[i], rtol=1e-9, atol=1e-11)
                    np.testing.assert_allclose(optimizer.center(p), expected.center[i], rtol=1e-9, atol=1e-11)


def one_update(gradient: float, **options: Any) -> float:
    """v of the first update from W = 1 with Z = 3, μ = 0.5, A = 2, where the consensus term's gradient is −4.5."""
    p = Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = FPTT(SGD([p], lr=0.125), alpha=0.0, **options)
    optimizer.consensus_term = ConsensusTerm({p: torch.tensor([3.0])}, {p: torch.tensor([0.5])}, {p: 2.0})
    p.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()
    return (1.0 - p.item()) / 0.125


def test_the_second_pull_is_felt_at_once_and_without_a_first_one() -> None:
    assert one_update(1.0) == pytest.approx(-3.5)


@pytest.mark.parametrize(("clip", "v"), [("total", -0.5), ("gradient", -4.0)])
def test_the_second_pull_comes_before_a_total_clip_and_after_a_clip_of_the_gradient(clip: Clip, v: float) -> None:
    assert one_update(1.0, max_norm=0.5, clip_scope=clip) == pytest.approx(v, rel=1e-5)


def test_the_metric_leaves_the_second_pull_alone() -> None:
    """With W = W̄ and u = 0 the first regularizer is 0, so the moment receives g + A (W − Z) − μ itself."""
    p = Parameter(torch.tensor([1.0], dtype=torch.float64))
    base = BASES["rmsprop"].make([p], lr=0.125, alpha=0.5)
    optimizer = FPTT(base, alpha=0.5, metric="preconditioned")
    p.grad = torch.tensor([8.0], dtype=torch.float64)
    optimizer.step()
    optimizer.reset_to_center()
    optimizer.consensus_term = ConsensusTerm({p: p.detach() - 1.0}, {p: torch.tensor([0.25])}, {p: 2.0})
    before = base.state[p]["square_avg"].item()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert base.state[p]["square_avg"].item() == pytest.approx(0.5 * before + 0.5 * (2.0 - 0.25) ** 2)


def test_an_anchored_parameter_without_gradient_is_left_untouched() -> None:
    params = parameters()
    optimizer = FPTT(SGD(params, lr=0.1), alpha=0.5)
    zeros: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in params}
    optimizer.consensus_term = ConsensusTerm(zeros, zeros, dict.fromkeys(params, 1.0))
    set_gradients(params, [noise(0, params)[0], None, None])
    optimizer.step()
    assert same_bits(snapshot(optimizer, params[1:]), [p.detach() for p in parameters()[1:]])
    assert not torch.equal(params[0], parameters()[0])


@pytest.mark.parametrize("clip", ["total", "gradient"])
def test_a_shard_without_any_gradient_still_takes_part_in_the_reduction(clip: Clip) -> None:
    optimizer = FPTT(SGD(parameters(), lr=0.1), alpha=0.5, max_norm=1.0, clip_scope=clip)
    given: list[float] = []
    optimizer.norm_reduce = lambda squares: given.append(squares.item()) or squares + 1.0
    optimizer.step()
    assert given == [0.0]
