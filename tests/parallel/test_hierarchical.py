"""Machines of several workers: gradients averaged inside, syncs between, one replica a machine."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.parallel import (
    AveragedDual,
    Communicator,
    Consensus,
    Engine,
    GradientSync,
    LocalDual,
    NodesCommunicator,
    Replicated,
)
from fptt_dist.parallel.nan_check import NonFiniteRecord
from fptt_dist.parallel.sync.rule import SyncRule
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import OF_FPTT, SHAPES, Quadratic, Run, averaging, close, consensus, equal, told

EQUAL = (0.25, 0.25, 0.25, 0.25)
UNEQUAL = (0.1, 0.3, 0.2, 0.4)


def places(workers: Replica, machines: int) -> tuple[Replica, Replica]:
    """The workers of this machine, and those of the same local rank."""
    local = workers.world // machines
    node, place = divmod(workers.rank, local)
    inside = workers.group([node * local + i for i in range(local)])
    return inside, workers.group([m * local + place for m in range(machines)])


def hierarchical(
    workers: Replica,
    shares: tuple[float, ...] = EQUAL,
    *,
    machines: int = 2,
    every: int,
    dual: str = "shared",
    **options: Any,
) -> Engine:
    inside, across = places(workers, machines)
    local = workers.world // machines
    node = workers.rank // local
    weight = sum(shares[node * local : (node + 1) * local])
    what: SyncRule = AveragedDual(
        "average", slow=True, each_window=every == 1, compressed=bool(options.get("compressed"))
    )
    if dual == "damped":
        what = LocalDual("damped", 0.25, **OF_FPTT)
    gradients = GradientSync(inside, shares[workers.rank] / weight)
    between = NodesCommunicator(inside, across)
    sync = Consensus(between, weight, what, sync_every=every, intra_node=gradients, **options)
    return Engine(workers, Replicated(), sync)


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_the_sum_over_machines_counts_each_machine_once(machines: int) -> None:
    def work(workers: Replica, size: int) -> Tensor:
        inside, across = places(workers, machines)
        between: Communicator = NodesCommunicator(inside, across)
        value = 10.0**across.rank * torch.arange(1.0, size + 1.0, dtype=torch.float64)
        assert between.world == machines
        assert between.all_reduce(value, name="test") is value
        return value

    for size in (1, 2, 3, 10, 101):
        expected = sum(10.0**m for m in range(machines)) * torch.arange(1.0, size + 1.0, dtype=torch.float64)
        assert all(torch.equal(value, expected) for value in together(4, lambda w, size=size: work(w, size))), size


class OfMachines(Quadratic):
    """The loss of a machine: the weighted mean of its two workers'."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        super().__init__()
        self.shares = shares

    def loss(self, shard: int, window: int) -> Tensor:
        """Of machine `shard`."""
        one, two = self.shares[2 * shard : 2 * shard + 2]
        losses = (super().loss(2 * shard, window), super().loss(2 * shard + 1, window))
        return (one * losses[0] + two * losses[1]) / (one + two)


@pytest.mark.parametrize("shares", [EQUAL, UNEQUAL])
@pytest.mark.parametrize(
    "options", [{"every": 1}, {"every": 4}, {"every": 4, "sync_delay": 2}, {"every": 4, "dual": "damped"}], ids=str
)
def test_two_machines_are_two_workers_with_their_machines_batches(
    options: dict[str, Any], shares: tuple[float, ...]
) -> None:
    def machines(workers: Replica) -> tuple[list[Tensor], float]:
        run = Run(hierarchical(workers, shares, **options), Quadratic(), workers.rank, base="adam").advance(15)
        return run.slow(), run.engine.sync.num_replicas

    def two(workers: Replica) -> list[Tensor]:
        share = sum(shares[2 * workers.rank : 2 * workers.rank + 2])
        engine = consensus(workers, share=share, **options)
        return Run(engine, OfMachines(shares), workers.rank, base="adam").advance(15).slow()

    expected = together(2, two)
    for rank, (found, replicas) in enumerate(together(4, machines)):
        assert replicas == 2
        close(found, expected[rank // 2], 1e-9)


@pytest.mark.parametrize("dual", ["shared", "damped"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_machines_workers_are_equal_bit_for_bit(compressed: bool, dual: str) -> None:
    def work(workers: Replica) -> list[list[Tensor]]:
        seen: list[list[Tensor]] = []
        engine = hierarchical(workers, UNEQUAL, every=3, dual=dual, compressed=compressed)
        run = Run(engine, Quadratic(torch.float32), workers.rank, base="adam")
        run.advance(10, each=lambda run: seen.append(run.everything()))
        return seen

    runs = together(4, work)
    for window, (a, b, c, d) in enumerate(zip(*runs, strict=True), 1):
        assert equal(a, b)
        assert equal(c, d)
        weights = slice(0, len(SHAPES))
        assert equal(a[weights], c[weights]) == (window % 3 == 0), "machines are equal at syncs alone"


def test_sgd_that_agrees_after_each_window_averages_over_all_four() -> None:
    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        share = UNEQUAL[workers.rank]
        machines = Run(hierarchical(workers, UNEQUAL, every=1), Quadratic(), workers.rank, base="sgd_momentum")
        gradient = Run(averaging(workers, share), Quadratic(), workers.rank, base="sgd_momentum")
        return machines.advance(12).slow(), gradient.advance(12).slow()

    for machines, gradient in together(4, work):
        close(machines, gradient)


def test_the_evaluated_weights_are_the_machines_mean() -> None:
    def work(workers: Replica) -> tuple[list[Tensor], list[Tensor]]:
        run = Run(hierarchical(workers, UNEQUAL, every=10), Quadratic(), workers.rank).advance(4)
        own = [p.detach().clone() for p in run.params]
        with run.engine.eval_weights("weights"):
            return own, [p.detach().clone() for p in run.params]

    answers = together(4, work)
    for _, found in answers:
        expected = [0.4 * one + 0.6 * two for one, two in zip(answers[0][0], answers[2][0], strict=True)]
        close(found, expected)


@pytest.mark.parametrize("rank", range(4))
def test_any_worker_is_heard_by_all(rank: int) -> None:
    class Spoilt(Quadratic):
        """NaN on one shard in update 6."""

        def loss(self, shard: int, window: int) -> Tensor:
            return super().loss(shard, window) * (float("nan") if (shard, window) == (rank, 6) else 1.0)

    def work(workers: Replica) -> tuple[list[bool], list[bool], NonFiniteRecord]:
        engine = hierarchical(workers, every=4)
        stopping: list[bool] = []
        healthy: list[bool] = []

        def each(run: Run) -> None:
            if workers.rank == rank and engine.control.updates == 2:
                engine.control.request_stop()
            stopping.append(told(engine).should_stop())
            healthy.append(told(engine).all_finite())

        Run(engine, Spoilt(), workers.rank).advance(8, each=each)
        return stopping, healthy, engine.control.first_non_finite()

    for stopping, healthy, sighting in together(4, work):
        assert stopping == [False] * 3 + [True] * 5
        assert healthy == [True] * 7 + [False]
        assert sighting == NonFiniteRecord(rank=rank, window=6, tensor="the loss")


def test_each_worker_sends_its_part_between_machines() -> None:
    count = sum(torch.Size(shape).numel() for shape in SHAPES)

    def work(workers: Replica) -> dict[str, tuple[int, int]]:
        run = Run(hierarchical(workers, every=4), Quadratic(torch.float32), workers.rank)
        plan = run.engine.comm_estimate(8)
        traffic = run.advance(8).engine.traffic()
        del traffic["weights"]
        assert plan.collectives == sum(t.calls for t in traffic.values())
        assert plan.bytes == sum(t.bytes for t in traffic.values())
        return {name: (t.calls, t.bytes) for name, t in traffic.items()}

    whole = 3 * count + 2
    halves = (-(-whole // 2), whole // 2)
    for rank, cost in enumerate(together(4, work)):
        assert cost == {
            "gradients": (8, 8 * 4 * (count + len(SHAPES) + 2)),
            "sync": (2, 2 * 4 * halves[rank % 2]),
            "sync inside": (2, 2 * 4 * whole),
        }
