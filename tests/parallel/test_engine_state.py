"""Stopping, saving and looking at any window changes no number; what is done at the end of an epoch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.parallel import SyncState
from fptt_dist.parallel.comm.communicator import Traffic
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import Quadratic, Run, close, consensus, equal, mean_of, told

WINDOWS = 17
SHARES = (0.5, 0.2, 0.3)
KINDS: dict[str, dict[str, Any]] = {
    "each window": {"every": 1},
    "mean": {"every": 5},
    "center": {"every": 5, "weights": "center"},
    "bf16": {"every": 5, "compressed": True},
    "delayed": {"every": 5, "sync_delay": 3},
    "delayed center": {"every": 5, "sync_delay": 4, "weights": "center"},
    "delayed bf16": {"every": 5, "sync_delay": 3, "compressed": True},
    "late": {"every": 4, "warmup_updates": 6},
    "weights alone": {"every": 5, "slow": False},
    "damped": {"every": 5, "dual": "damped"},
    "damped bf16": {"every": 5, "dual": "damped", "compressed": True},
    "damped late": {"every": 4, "dual": "damped", "warmup_updates": 6},
    "admm": {"every": 5, "dual": "admm"},
}


def rate(window: int) -> float:
    """A learning rate that moves."""
    return 0.04 / (1.0 + 0.1 * window)


def begun(workers: Replica, kind: str) -> Run:
    engine = consensus(workers, share=SHARES[workers.rank], **KINDS[kind])
    return Run(engine, Quadratic(torch.float32), workers.rank, base="adam", lr=rate)


def copied(state: SyncState) -> SyncState:
    return SyncState(
        {name: t.clone() for name, t in state.shared.items()}, {name: t.clone() for name, t in state.own.items()}
    )


def resumed(workers: Replica, kind: str, stops: range) -> list[Tensor]:
    """Train, and at each of the stops resume in objects made anew from what was saved."""
    run = begun(workers, kind)
    for stop in stops:
        run.advance(stop)
        run.engine.sync.wait()
        state, window = copied(run.engine.state_dict()), run.engine.control.updates
        optimizer, weights = run.optimizer.state_dict(), [p.detach().clone() for p in run.params]
        shared = workers.all_gather_object({name: t.tolist() for name, t in state.shared.items()}, name="check")
        assert all(other == shared[0] for other in shared), "what is saved once is equal everywhere"
        run = begun(workers, kind)
        with torch.no_grad():
            for p, weight in zip(run.params, weights, strict=True):
                p.copy_(weight)
        run.optimizer.load_state_dict(optimizer)
        run.engine.load_state_dict(state, window)
    run.advance(WINDOWS).engine.sync.now()
    assert told(run.engine).all_finite()
    return run.everything()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit_from_any_window(kind: str) -> None:
    expected = together(3, lambda workers: resumed(workers, kind, range(0)))
    for stops in (range(1, WINDOWS + 1), range(7, 8)):
        for found, wanted in zip(together(3, lambda w, stops=stops: resumed(w, kind, stops)), expected, strict=True):
            assert equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_looking_and_saving_change_nothing(kind: str) -> None:
    def look(run: Run) -> None:
        before = run.everything()
        for weights in ("center", "weights"):
            with run.engine.eval_weights(weights):
                pass
        run.engine.settle()
        run.engine.sync.wait()
        copied(run.engine.state_dict())
        run.engine.everyone.all_reduce(torch.ones(1), name="metrics")
        assert equal(run.everything(), before)

    expected = together(3, lambda workers: begun(workers, kind).advance(WINDOWS).everything())
    looked = together(3, lambda workers: begun(workers, kind).advance(WINDOWS, each=look).everything())
    for found, wanted in zip(looked, expected, strict=True):
        assert equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluated_weights_are_the_means(kind: str) -> None:
    """Of W̄ (Z with duals by worker, W̄ where there has been no interval yet) or of W, the same on all workers."""

    def work(workers: Replica) -> list[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]:
        seen: list[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = []

        def look(run: Run) -> None:
            params, centers, _ = ([t.detach().clone() for t in part] for part in run.optimizer.slow_state())
            synced = run.engine.sync.rule.consensus_center()  # pyright: ignore[reportAttributeAccessIssue]
            started = run.engine.control.updates > KINDS[kind].get("warmup_updates", 0)
            with run.engine.eval_weights("center"):
                center = [p.detach().clone() for p in run.params]
            with run.engine.eval_weights("weights"):
                weights = [p.detach().clone() for p in run.params]
            own = centers if synced is None or not started else [t.clone() for t in synced]
            seen.append((own, params, center, weights))

        begun(workers, kind).advance(11, each=look)
        return seen

    for moments in zip(*together(3, work), strict=True):
        for own, found in ((0, 2), (1, 3)):
            assert equal(moments[0][found], moments[1][found])
            assert equal(moments[0][found], moments[2][found])
            mean = mean_of([moment[own] for moment in moments], SHARES)
            close([t.double() for t in moments[0][found]], mean, 1e-6)


def test_leaving_an_evaluation_by_an_error_brings_the_weights_back() -> None:
    def work(workers: Replica) -> None:
        run = begun(workers, "mean").advance(3)
        before = run.everything()
        with pytest.raises(ZeroDivisionError), run.engine.eval_weights("center"):
            _ = 1 / (0 if not equal([p.detach() for p in run.params], before[: len(run.params)]) else 1)
        assert equal(run.everything(), before)

    together(3, work)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weights alone"])
def test_settling_makes_all_equal_whatever_is_under_way(kind: str) -> None:
    """At windows before, at and behind the syncs' departures and arrivals."""

    def work(workers: Replica, stop: int) -> tuple[list[Tensor], list[Tensor]]:
        run = begun(workers, kind).advance(stop)
        run.engine.sync.now()
        assert told(run.engine).all_finite()
        settled, calls = run.slow(), run.engine.traffic()["sync"].calls
        run.engine.sync.now()
        assert equal(run.slow(), settled)
        assert run.engine.traffic()["sync"].calls == calls, "there has just been a sync"
        return settled, run.advance(stop + 4).slow()

    for stop in (7, 8, 10, 13):
        answers = together(3, lambda workers, stop=stop: work(workers, stop))
        first = answers[0][0]
        for settled, _ in answers[1:]:
            count = len(settled)
            if kind == "each window":  # W̄ and u are derived, and equal to rounding
                close(settled, first, 1e-6)
                count //= 3
            assert equal(settled[:count], first[:count]), stop
        assert all(bool(t.isfinite().all()) for _, later in answers for t in later), stop


def test_agreements_keep_to_the_runs_own_count() -> None:
    """At windows ≡ 0 mod H, also after an epoch's reset in between."""

    def work(workers: Replica) -> list[int]:
        counts: list[int] = []

        def each(run: Run) -> None:
            if run.engine.control.updates == 7:
                run.engine.sync.now()
            counts.append(run.engine.traffic().get("sync", Traffic()).calls)

        Run(consensus(workers, every=5), Quadratic(), workers.rank).advance(16, each=each)
        return counts

    assert together(2, work) == [[0] * 4 + [1, 1] + [2] * 3 + [3] * 5 + [4] * 2] * 2


def test_an_agreement_that_settles_early_is_the_late_one_and_then_another() -> None:
    """H = 5, τ = 3, settled at 7: x += mean − snapshot, then the mean of all."""

    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        run = Run(consensus(workers, every=5, sync_delay=3), Quadratic(), workers.rank).advance(5)
        departed = run.slow()
        before = run.advance(7).slow()
        run.engine.sync.now()
        return departed, before, run.slow()

    answers = together(2, work)
    for _, _, settled in answers:
        close(settled, mean_of([before for _, before, _ in answers]))


def test_another_worlds_duals_start_at_0() -> None:
    """State that is equal everywhere is taken as it is; a worker's own is left out."""

    def saved(workers: Replica) -> tuple[SyncState, list[Tensor]]:
        run = Run(consensus(workers, every=3, dual="damped"), Quadratic(), workers.rank).advance(6)
        return copied(run.engine.state_dict()), [p.detach().clone() for p in run.params]

    state, weights = together(3, saved)[0]
    assert any(bool(t.any()) for name, t in state.own.items() if name.startswith("dual/"))

    def work(workers: Replica) -> None:
        run = Run(consensus(workers, every=3, dual="damped"), Quadratic(), workers.rank)
        run.engine.load_state_dict(SyncState(state.shared), 6)
        rule = run.engine.sync.rule  # pyright: ignore[reportAttributeAccessIssue]
        assert not any(bool(t.any()) for t in (*rule.dual, *rule.mean_dual))
        assert equal(rule.center, weights)

    together(2, work)
