"""All that is sent arrives, what differs is noticed, and processes that do not find each other say so."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment, communicator, node_groups, process_group
from fptt_dist.parallel.comm import process_group as connection
from fptt_dist.parallel.comm.communicator import GroupCommunicator
from tests.parallel.pool import Pool, WorkerError

CPU = torch.device("cpu")
NOWHERE = Path("no such folder")  # for the evidence of a collective that failed


def hostile(seed: int) -> list[Tensor]:
    """Tensors of awkward shapes, types and strides."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(6, 10, generator=generator)
    shapes: list[tuple[int, ...]] = [(), (0,), (0, 3), (1,), (7,), (1000,)]
    return [
        *(torch.randn(shape, generator=generator) for shape in shapes),
        whole[:, ::2].clone(memory_format=torch.contiguous_format),
        torch.randn(6, 10, generator=generator)[:, ::2],
        torch.randn(6, 10, generator=generator).t(),
        torch.randn(5, generator=generator, dtype=torch.float64),
    ]


def summed(environment: LaunchEnvironment) -> tuple[Tensor, bool]:
    mine = torch.tensor([1.0, 10.0, 100.0]) * (environment.rank + 1)
    total = communicator(environment, CPU).all_reduce(mine, name="test")
    return total, total is mine


@pytest.mark.parametrize("world", [1, 3])
def test_sum(pool: Pool, world: int) -> None:
    factor = sum(range(1, world + 1))
    for total, in_place in pool.run(summed, world=world):
        assert total.tolist() == [factor, 10 * factor, 100 * factor]
        assert in_place


def gathered_tensors(environment: LaunchEnvironment) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors of other shapes and types on each worker; one has none of any."""
    workers = communicator(environment, CPU)
    given = [torch.tensor([[1.5, 2.5]], dtype=torch.float64), torch.zeros(0), torch.tensor([True, False, True])]
    parts = workers.all_gather(given[environment.rank].t(), name="test")
    for part in parts:
        part += part  # each is a tensor of its own
    return parts, {name: asdict(traffic) for name, traffic in workers.traffic.items()}


def test_gathered_tensors_keep_shape_and_type(pool: Pool) -> None:
    expected = [torch.tensor([[3.0], [5.0]], dtype=torch.float64), torch.zeros(0), torch.tensor([True, False, True])]
    for parts, traffic in pool.run(gathered_tensors, world=3):
        assert [part.dtype for part in parts] == [each.dtype for each in expected]
        assert all(torch.equal(part, each) for part, each in zip(parts, expected, strict=True))
        assert traffic["test"]["calls"] == 4  # the shapes and the bytes, each with their sizes before
        assert traffic["test"]["bytes"] > 16 + 3


def summed_later(environment: LaunchEnvironment) -> tuple[list[Tensor], list[list[float]]]:
    """Three sums under way at once, one of them waited for twice and one out of turn; and the counts of the calls."""
    workers = communicator(environment, CPU)
    sent = [torch.full((3,), float((environment.rank + 1) * 10**i)) for i in range(3)]
    pending = [workers.all_reduce_async(tensor, name=f"test {i}") for i, tensor in enumerate(sent)]
    for i in (2, 0, 1, 1):
        pending[i].wait()
    return sent, [[cost.calls, cost.bytes] for cost in workers.traffic.values()]


@pytest.mark.parametrize("world", [1, 3])
def test_a_sum_that_is_waited_for_later(pool: Pool, world: int) -> None:
    factor = sum(range(1, world + 1))
    for sent, counted in pool.run(summed_later, world=world):
        assert [tensor.tolist() for tensor in sent] == [[factor * 10.0**i] * 3 for i in range(3)]
        assert counted == ([[1, 12]] * 3 if world > 1 else [])


def gathered(environment: LaunchEnvironment) -> tuple[list[Any], list[Any], list[Any]]:
    """Values of unequal lengths, with signs that need several bytes; and nothing at all."""
    workers = communicator(environment, CPU)
    mine = {"rank": environment.rank, "text": "W̄ − u " * environment.rank, "none": None, "list": [1.5, [True]]}
    return (
        workers.all_gather_object(mine, name="test"),
        workers.all_gather_object("" if environment.rank else "x" * 100_000, name="test"),
        workers.all_gather_object(None, name="test"),
    )


@pytest.mark.parametrize("world", [1, 3])
def test_gather(pool: Pool, world: int) -> None:
    expected = [{"rank": rank, "text": "W̄ − u " * rank, "none": None, "list": [1.5, [True]]} for rank in range(world)]
    for values, texts, nothings in pool.run(gathered, world=world):
        assert values == expected
        assert texts == ["x" * 100_000, *[""] * (world - 1)]
        assert nothings == [None] * world


class Occupied(ConfigError):
    """A mistake of a kind of its own."""


def alone_first(environment: LaunchEnvironment, mistake: bool) -> tuple[Any, list[int]]:
    """What `first_alone` gives here, or its message; and which ranks did the action."""
    workers = communicator(environment, CPU)
    did: list[int] = []

    def action() -> dict[str, int]:
        did.append(environment.rank)
        if mistake:
            raise Occupied("train.max_batches=0: type more")
        return {"found": 3}

    try:
        answer = workers.rank0_first(action, name="test")
    except ConfigError as error:
        answer = f"{type(error).__name__}: {error}"
    return answer, did


@pytest.mark.parametrize(("world", "mistake"), [(1, True), (3, True), (3, False)])
def test_what_rank_0_does_alone_is_known_to_all(pool: Pool, world: int, mistake: bool) -> None:
    answers = pool.run(alone_first, mistake, world=world)
    kinds = ["Occupied", *["ConfigError"] * (world - 1)]  # rank 0 has its own error
    refused = [f"{kind}: train.max_batches=0: type more" for kind in kinds]
    assert [answer for answer, _ in answers] == (refused if mistake else [{"found": 3}] * world)
    assert [did for _, did in answers] == [[0], *[[]] * (world - 1)]


def alone_first_by_accident(environment: LaunchEnvironment) -> None:
    """Another error than a user's is not sent round: rank 0 raises it, and leaves the others to their time limit."""
    if environment.rank == 0:
        communicator(environment, CPU).rank0_first(lambda: 1 / 0, name="test")


def test_an_error_of_the_program_keeps_its_traceback(pool: Pool) -> None:
    with pytest.raises(WorkerError, match=r"rank 0 of 2 raised:(?s:.*)ZeroDivisionError"):
        pool.run(alone_first_by_accident)


def counted(environment: LaunchEnvironment) -> dict[str, Any]:
    """What a few collectives cost by the counter: the times apart, which only must be there."""
    workers = communicator(environment, CPU)
    workers.all_reduce(torch.zeros(5), name="numbers")
    workers.all_reduce(torch.zeros(2, dtype=torch.float64), name="numbers")
    workers.broadcast([torch.zeros(3), torch.zeros(4, 3).t(), torch.zeros(0)], name="weights")
    workers.barrier(name="line")
    workers.all_reduce_async(torch.zeros(7, dtype=torch.bfloat16), name="later").wait()
    costs = {name: asdict(cost) for name, cost in workers.traffic.items()}
    assert all(cost.pop("seconds") > 0.0 for cost in costs.values())
    return costs


@pytest.mark.parametrize("world", [1, 2])
def test_collectives_are_counted_by_name(pool: Pool, world: int) -> None:
    """Once a call, with the bytes of the tensor given; a worker alone sends nothing."""
    costs = {
        "numbers": {"calls": 2, "bytes": 5 * 4 + 2 * 8},
        "weights": {"calls": 3, "bytes": 3 * 4 + 12 * 4},
        "line": {"calls": 1, "bytes": 0},
        "later": {"calls": 1, "bytes": 14},
    }
    assert pool.run(counted, world=world) == [costs if world > 1 else {}] * world


def delayed(environment: LaunchEnvironment) -> list[float]:
    """Seconds of a sum with latency, of one in flight while 0.3 s of work are done, and what was counted of it."""
    workers = communicator(environment, CPU)
    workers.latency = 0.2
    took = []
    began = time.monotonic()
    workers.all_reduce(torch.ones(1), name="test")
    took.append(time.monotonic() - began)
    pending = workers.all_reduce_async(torch.ones(1), name="hidden")
    time.sleep(0.3)
    pending.wait()
    return [*took, workers.traffic["test"].seconds, workers.traffic["hidden"].seconds]


def test_latency_for_benchmarks_is_hidden_behind_work(pool: Pool) -> None:
    for plain, counted_plain, counted_hidden in pool.run(delayed):
        assert 0.2 <= counted_plain <= plain < 5.0
        assert counted_hidden < 0.2


def grouped(environment: LaunchEnvironment, nodes: list[tuple[int, int]]) -> list[Any]:
    """Ranks and sums of the workers of this machine, and of those alike on the machines."""
    node, local_rank = nodes[environment.rank]
    mine = LaunchEnvironment(environment.rank, environment.world, local_rank, "a test", node=node)
    found = []
    for each in node_groups(mine, communicator(mine, CPU)):
        ranks = each.ranks if isinstance(each, GroupCommunicator) else [environment.rank]
        total = each.all_reduce(torch.tensor([10.0**environment.rank]), name="test").item()
        [first] = [torch.tensor([float(environment.rank)])]
        each.broadcast([first], name="test")
        found.append([ranks, each.rank, each.world, total, int(first.item())])
    return found


@pytest.mark.parametrize(
    ("nodes", "inside", "across"),
    [
        ([(0, 0), (0, 1), (1, 0), (1, 1)], [[0, 1], [2, 3]], [[0, 2], [1, 3]]),
        ([(0, 0), (1, 0), (0, 1), (1, 1)], [[0, 2], [1, 3]], [[0, 1], [2, 3]]),
        ([(0, 0), (1, 0), (2, 0), (3, 0)], [[0], [1], [2], [3]], [[0, 1, 2, 3]]),
        ([(0, 0), (0, 1), (0, 2), (0, 3)], [[0, 1, 2, 3]], [[0], [1], [2], [3]]),
    ],
)
def test_machines(pool: Pool, nodes: list[tuple[int, int]], inside: list[list[int]], across: list[list[int]]) -> None:
    for rank, found in enumerate(pool.run(grouped, nodes, world=4)):
        for groups, (ranks, own, size, total, first) in zip((inside, across), found, strict=True):
            [mine] = [group for group in groups if rank in group]
            assert ranks == mine
            assert (own, size) == (mine.index(rank), len(mine))
            assert total == sum(10.0**r for r in mine)
            assert first == mine[0]


def uneven(environment: LaunchEnvironment) -> str:
    node, local_rank = divmod(environment.rank, 3)
    mine = LaunchEnvironment(environment.rank, environment.world, local_rank, "a test", node=node)
    try:
        node_groups(mine, communicator(mine, CPU))
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_machines_of_unequal_size_are_refused_by_all(pool: Pool) -> None:
    message = (
        "parallel.strategy=hierarchical needs the same number of workers on each node, but there are 3 on node 0, 1 on "
        "node 1: start equally many, or type parallel.strategy=consensus"
    )
    assert pool.run(uneven, world=4) == [message] * 4


def broadcast(environment: LaunchEnvironment) -> list[Tensor]:
    tensors = hostile(environment.rank)
    communicator(environment, CPU).broadcast(tensors, name="test")
    return [tensor.contiguous() for tensor in tensors]


@pytest.mark.parametrize("world", [1, 3])
def test_broadcast_gives_every_element_of_rank_0(pool: Pool, world: int) -> None:
    for tensors in pool.run(broadcast, world=world):
        for tensor, expected in zip(tensors, hostile(0), strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def late_arrival(environment: LaunchEnvironment) -> float:
    """Seconds that waiting for all took; the last rank comes half a second late."""
    workers = communicator(environment, CPU)
    workers.barrier(name="warm up")
    if environment.rank == environment.world - 1:
        time.sleep(0.5)
    began = time.monotonic()
    workers.barrier(name="test")
    return time.monotonic() - began


def test_barrier(pool: Pool) -> None:
    assert pool.run(late_arrival)[0] > 0.3


def one_bit(tensors: list[Tensor]) -> None:
    tensors[5].view(torch.int32)[998] ^= 1


def sign_of_zero(tensors: list[Tensor]) -> None:
    tensors[4][0] = -0.0


def one_bit_in_float64(tensors: list[Tensor]) -> None:
    tensors[-1].view(torch.int64)[0] ^= 1


def one_bit_in_a_strided_tensor(tensors: list[Tensor]) -> None:
    tensors[7][5, 4] = torch.nextafter(tensors[7][5, 4], torch.tensor(torch.inf))


def swap_within(tensors: list[Tensor]) -> None:
    tensors[4][[2, 5]] = tensors[4][[5, 2]]


def swap_between(tensors: list[Tensor]) -> None:
    """Swap entries of the same index of two tensors."""
    held = tensors[3][0].clone()
    tensors[3][0], tensors[4][0] = tensors[4][0], held


def swap_tensors(tensors: list[Tensor]) -> None:
    """Two layers of one shape, exchanged."""
    tensors.append(torch.arange(4.0))
    tensors.append(torch.arange(4.0) + 1.0)
    tensors[-1], tensors[-2] = tensors[-2], tensors[-1]


def nothing(tensors: list[Tensor]) -> None:
    """Leave them as they are."""


def two_layers(tensors: list[Tensor]) -> None:
    tensors.append(torch.arange(4.0))
    tensors.append(torch.arange(4.0) + 1.0)


Change = Callable[[list[Tensor]], None]
CHANGES: list[tuple[Change, Change]] = [
    *((nothing, change) for change in (nothing, one_bit, sign_of_zero, one_bit_in_float64)),
    *((nothing, change) for change in (one_bit_in_a_strided_tensor, swap_within, swap_between)),
    (two_layers, swap_tensors),
]


def compare(environment: LaunchEnvironment) -> list[bool]:
    """Compare tensors after each of `CHANGES`: of the other workers, and of the last one."""
    said = []
    for usual, last in CHANGES:
        tensors = hostile(0)
        tensors[4][0] = 0.0
        (last if environment.rank == environment.world - 1 else usual)(tensors)
        said.append(communicator(environment, CPU).all_equal(tensors, name="test"))
    return said


@pytest.mark.parametrize("world", [1, 2, 3])
def test_equal_and_not_equal(pool: Pool, world: int) -> None:
    expected = [last is nothing or world == 1 for _, last in CHANGES]
    assert pool.run(compare, world=world) == [expected] * world


def compare_at_the_edge(environment: LaunchEnvironment, last_differs: bool) -> bool:
    """Compare a tensor whose weighted sum of bits is −2⁶³, which has no negative among 64-bit integers.

    −0.0 has the bits −2³¹; the positions 1 … 92682 but for 55607 add up to 2³².
    """
    minus_zeros = torch.full((92682,), -0.0)
    minus_zeros[55607 - 1] = 0.0
    if last_differs and environment.rank == environment.world - 1:
        minus_zeros.zero_()
    return communicator(environment, CPU).all_equal([minus_zeros], name="test")


@pytest.mark.parametrize("differs", [False, True])
def test_equal_where_64_bits_wrap(pool: Pool, differs: bool) -> None:
    assert sum(position for position in range(1, 92683) if position != 55607) == 2**32
    assert pool.run(compare_at_the_edge, differs) == [not differs] * 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet(environment: LaunchEnvironment, worlds: list[int], port: int, seconds: float) -> tuple[str, bool]:
    """Enter `process_group` as rank r of `worlds[r]`; how it ended, and whether a group was left behind."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    mine = LaunchEnvironment(environment.rank, worlds[environment.rank], environment.rank, "a test")
    usual = connection.START_SECONDS
    connection.START_SECONDS = seconds
    try:
        with process_group(mine, CPU, NOWHERE) as everyone:
            backend = dist.get_backend() if dist.is_initialized() else "none"
            ended = f"{backend}: {everyone.all_reduce(torch.ones(1), name='test').item():g}"
    except ConfigError as error:
        ended = str(error)
    finally:
        connection.START_SECONDS = usual
    return ended, dist.is_initialized()


def test_processes_meet_and_part(pool: Pool) -> None:
    answers = pool.run(meet, [2, 2], free_port(), 30.0, connected=False)
    assert answers == [("gloo: 2", False)] * 2


def test_one_process_has_no_group(pool: Pool) -> None:
    assert pool.run(meet, [1], 0, 1.0, world=1) == [("none: 1", False)]


def test_the_other_process_never_comes(pool: Pool) -> None:
    [(message, connected)] = pool.run(meet, [2], 0, 1.0, world=1)
    assert message.startswith(
        "rank 0 of 2, local rank 0 (from a test) could not meet the other workers within 1 s over gloo; they meet "
        "here, at 127.0.0.1:0: if another program has that port, type another MASTER_PORT: "
    )
    assert not connected


def meet_where_nobody_is(environment: LaunchEnvironment) -> str:
    """Rank 1 of 2 goes where rank 0 was to be."""
    usual = connection.START_SECONDS
    connection.START_SECONDS = 1.0
    port = free_port()
    try:
        with process_group(LaunchEnvironment(1, 2, 1, "a test", master=f"127.0.0.1:{port}"), CPU, NOWHERE):
            return "met"
    except ConfigError as error:
        return str(error).replace(str(port), "PORT")
    finally:
        connection.START_SECONDS = usual


@pytest.mark.slow  # torch waits longer than it is told
def test_nobody_is_where_they_were_to_meet(pool: Pool) -> None:
    [message] = pool.run(meet_where_nobody_is, world=1)
    assert message.startswith(
        "rank 1 of 2, local rank 1, meeting at 127.0.0.1:PORT (from a test) could not meet the other workers within "
        "1 s over gloo; 127.0.0.1:PORT, where they meet, does not answer ("
    )


def group_that_is_there(environment: LaunchEnvironment) -> tuple[str, bool]:
    """`process_group` in the pool's own group, as in Ray's workers: used, and left as it was."""
    with process_group(environment, CPU, NOWHERE) as everyone:
        total = everyone.all_reduce(torch.ones(1), name="test").item()
    return f"{total:g}", dist.is_initialized()


def test_a_group_that_is_there_already_is_used_and_kept(pool: Pool) -> None:
    assert pool.run(group_that_is_there) == [("2", True)] * 2


def announced_wrongly(environment: LaunchEnvironment) -> str:
    """Three processes were announced, and the group that is there has two."""
    try:
        with process_group(LaunchEnvironment(environment.rank, 3, 0, "a test"), CPU, NOWHERE):
            return "met"
    except ConfigError as error:
        return str(error)


def test_fewer_processes_than_announced(pool: Pool) -> None:
    assert pool.run(announced_wrongly) == [
        f"rank {rank} of 3, local rank 0 (from a test), but 2 workers answered" for rank in range(2)
    ]


@pytest.mark.slow  # torch waits longer than it is told
def test_processes_that_count_differently(pool: Pool) -> None:
    port = free_port()
    answers = pool.run(meet, [2, 3], port, 2.0, connected=False)
    place = "could not meet the other workers within 2 s over gloo; "
    assert f"{place}they meet here, at 127.0.0.1:{port}: " in answers[0][0]
    assert f"{place}127.0.0.1:{port}, where they meet, " in answers[1][0]
    assert not any(connected for _, connected in answers)


def without_an_address(environment: LaunchEnvironment) -> str:
    try:
        with process_group(LaunchEnvironment(0, 2, 0, "a test"), CPU, NOWHERE):
            return "met"
    except ConfigError as error:
        return str(error)


def test_no_address_to_meet_at(pool: Pool) -> None:
    [message] = pool.run(without_an_address, world=1)
    assert message.startswith("rank 0 of 2, local rank 0 (from a test) could not meet the other workers")
    assert "MASTER_ADDR expected, but not set" in message


def fail_inside(environment: LaunchEnvironment, port: int) -> tuple[str, bool]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with process_group(environment, CPU, NOWHERE):
            raise RuntimeError("the training's own error")
    except RuntimeError as error:
        return str(error), dist.is_initialized()


def test_an_error_inside_keeps_its_name_and_ends_the_group(pool: Pool) -> None:
    assert pool.run(fail_inside, free_port(), connected=False) == [("the training's own error", False)] * 2


def peer_leaves_before_the_first_collective(environment: LaunchEnvironment, port: int) -> tuple[str, bool]:
    """Rank 1 connects and leaves again; rank 0 then finds nobody to count."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if environment.rank == 1:
        dist.init_process_group("gloo", rank=1, world_size=2, timeout=timedelta(seconds=5))
        dist.destroy_process_group()
        return "left", dist.is_initialized()
    try:
        with process_group(environment, CPU, NOWHERE):
            return "met", dist.is_initialized()
    except ConfigError as error:
        return str(error), dist.is_initialized()


def test_no_group_is_left_when_the_first_collective_fails(pool: Pool) -> None:
    (message, connected), _ = pool.run(peer_leaves_before_the_first_collective, free_port(), connected=False)
    assert "rank 0 of 2, local rank 0 (from the tests' pool) could not meet the other workers" in message
    assert not connected
