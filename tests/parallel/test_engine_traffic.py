"""Collectives and their bytes: K/H of 3, 2 or 1 copies, and what `comm_estimate` says beforehand."""

from typing import Any

import pytest
import torch

from fptt_dist.parallel import Consensus
from fptt_dist.parallel.comm.communicator import Traffic
from fptt_dist.parallel.sync import admm_dual
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import SHAPES, Quadratic, Run, averaging, consensus, single_worker

N = sum(torch.Size(shape).numel() for shape in SHAPES)
K = 8  # windows of a sequence
FLAGS = 2  # frozen, stop


def spent(run: Run, before: dict[str, Traffic]) -> dict[str, tuple[int, int]]:
    """Calls and bytes by name since `before`."""
    now = run.engine.traffic()
    none = Traffic()
    gone = {
        name: (t.calls - before.get(name, none).calls, t.bytes - before.get(name, none).bytes)
        for name, t in now.items()
    }
    return {name: cost for name, cost in gone.items() if cost != (0, 0)}


def sequence(run: Run) -> dict[str, tuple[int, int]]:
    """Cost of one sequence, after one of another."""
    run.advance(K)
    before = run.engine.traffic()
    plan = run.engine.comm_estimate(K)
    run.advance(2 * K)
    found = spent(run, before)
    assert plan.collectives == sum(calls for calls, _ in found.values())
    assert plan.bytes == sum(size for _, size in found.values())
    assert all(size == calls * plan.each for calls, size in found.values())
    return found


@pytest.mark.parametrize(
    ("options", "copies", "riding", "width"),
    [
        ({"weights": "average"}, 3, 0, 4),
        ({"weights": "center"}, 2, 0, 4),
        ({"slow": False}, 1, 0, 4),
        ({"weights": "average", "compressed": True}, 3, 0, 2),
        ({"dual": "damped"}, 1, 1, 4),
        ({"dual": "admm"}, 1, 1, 4),
        ({"dual": "damped", "compressed": True}, 1, 1, 2),
    ],
)
def test_an_agreement_is_one_collective(options: dict[str, Any], copies: int, riding: int, width: int) -> None:
    def work(workers: Replica, every: int) -> dict[str, tuple[int, int]]:
        engine = consensus(workers, every=every, **options)
        return sequence(Run(engine, Quadratic(torch.float32), workers.rank))

    for every in (1, 4, 8):
        follow = every == 1 and options.get("weights") == "average"  # what W̄ and u become, from W
        calls = K // every
        size = width * ((1 if follow else copies) * N + riding + FLAGS)
        found = together(2, lambda workers, every=every: work(workers, every))
        assert found == [{"sync": (calls, calls * size)}] * 2, every


@pytest.mark.parametrize(("update", "copies"), [("gradient", 1), ("proximal", 1), ("second_gradient", 3)])
def test_a_dual_that_is_a_gradient_follows_from_nothing(update: Any, copies: int) -> None:
    """At H = 1 only W is sent, unless u is not renewed by W's own move."""

    def work(workers: Replica) -> int:
        engine = consensus(workers, every=1)
        Run(engine, Quadratic(torch.float32), workers.rank, update_rule=update)
        assert isinstance(engine.sync, Consensus)
        return len(engine.sync.rule.tensors_to_sync())

    assert together(2, work) == [copies * len(SHAPES)] * 2


def test_averaged_gradients_are_one_collective_a_window() -> None:
    def work(workers: Replica) -> dict[str, tuple[int, int]]:
        return sequence(Run(averaging(workers, 0.5), Quadratic(torch.float32), workers.rank))

    # with them: which parameters have one, loss and stop flag
    assert together(2, work) == [{"gradients": (K, K * 4 * (N + len(SHAPES) + 2))}] * 2


@pytest.mark.parametrize("kind", ["single", "gradient", "consensus", "worker"])
def test_a_worker_alone_sends_nothing_and_plans_nothing(kind: str) -> None:
    def work(workers: Replica) -> dict[str, tuple[int, int]]:
        engine = {
            "single": single_worker,
            "gradient": lambda: averaging(workers, 1.0),
            "consensus": lambda: consensus(workers, every=4),
            "worker": lambda: consensus(workers, every=4, dual="damped"),
        }[kind]()
        return sequence(Run(engine, Quadratic(torch.float32), workers.rank))

    assert together(1, work) == [{}]


def test_the_first_windows_of_a_late_start_are_gradients() -> None:
    def work(workers: Replica) -> dict[str, tuple[int, int]]:
        run = Run(consensus(workers, every=4, warmup_updates=6), Quadratic(torch.float32), workers.rank)
        before = run.engine.traffic()
        return spent(run.advance(12), before)

    for found in together(2, work):
        assert {name: calls for name, (calls, _) in found.items()} == {"gradients": 6, "sync": 2}


def test_now_and_then_the_duals_travel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admm_dual, "RENEWED_EVERY", 3)

    def work(workers: Replica, dual: str) -> list[int]:
        sizes: list[int] = []

        def note(run: Run) -> None:
            sizes.append(run.engine.traffic()["sync"].bytes)

        engine = consensus(workers, every=1, dual=dual)  # pyright: ignore[reportArgumentType]
        Run(engine, Quadratic(torch.float32), workers.rank).advance(7, each=note)
        return [more - less for less, more in zip([0, *sizes[:-1]], sizes, strict=True)]

    small, large = 4 * (N + 1 + FLAGS), 4 * (2 * N + 1 + FLAGS)
    assert together(2, lambda w: work(w, "damped")) == [[small, small, large, small, small, large, small]] * 2
    assert together(2, lambda w: work(w, "admm")) == [[small] * 7] * 2


def test_the_drift_is_measured_at_an_agreement() -> None:
    """‖W_r − m‖/‖m‖."""

    def work(workers: Replica) -> tuple[float, float]:
        apart = Run(consensus(workers, every=4), Quadratic(), workers.rank)
        before = Run(consensus(workers, every=100), Quadratic(), workers.rank).advance(4)
        apart.advance(4)
        mean = torch.cat([p.detach().flatten() for p in apart.params])
        own = torch.cat([p.detach().flatten() for p in before.params])
        return float(apart.engine.sync.metrics()["drift"]), float((own - mean).norm() / mean.norm())

    for found, expected in together(2, work):
        assert 0.0 < found == pytest.approx(expected)
