"""What travels arrives, what differs is noticed, and processes that do not find each other say so."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.parallel import LaunchEnvironment, collectives, process_group, wait_for_all
from fptt_dist.parallel.collectives import broadcast_from_first, equal_on_all_workers, sum_over_workers
from tests.parallel.pool import Pool

CPU = torch.device("cpu")


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
    total = sum_over_workers(mine, name="test")
    return total, total is mine


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sum(pool: Pool, world: int) -> None:
    factor = sum(range(1, world + 1))
    for total, in_place in pool.run(summed, world=world):
        assert total.tolist() == [factor, 10 * factor, 100 * factor]
        assert in_place


def broadcast(environment: LaunchEnvironment) -> list[Tensor]:
    tensors = hostile(environment.rank)
    broadcast_from_first(tensors, name="test")
    return [tensor.contiguous() for tensor in tensors]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_broadcast_gives_every_element_of_rank_0(pool: Pool, world: int) -> None:
    for tensors in pool.run(broadcast, world=world):
        for tensor, expected in zip(tensors, hostile(0), strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def late_arrival(environment: LaunchEnvironment) -> float:
    """Seconds that waiting for all took; the last rank comes half a second late."""
    import time

    wait_for_all(name="warm up")
    if environment.rank == environment.world - 1:
        time.sleep(0.5)
    began = time.monotonic()
    wait_for_all(name="test")
    return time.monotonic() - began


def test_wait_for_all(pool: Pool) -> None:
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


def compare(
    environment: LaunchEnvironment, usual: Callable[[list[Tensor]], None], last: Callable[[list[Tensor]], None]
) -> bool:
    """Whether workers say equal, where the last one's tensors are changed by `last` and the others' by `usual`."""
    tensors = hostile(0)
    tensors[4][0] = 0.0
    (last if environment.rank == environment.world - 1 else usual)(tensors)
    return equal_on_all_workers(tensors, name="test")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_equal(pool: Pool, world: int) -> None:
    assert pool.run(compare, nothing, nothing, world=world) == [True] * world


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    ("usual", "last"),
    [
        (nothing, one_bit),
        (nothing, sign_of_zero),
        (nothing, one_bit_in_float64),
        (nothing, one_bit_in_a_strided_tensor),
        (nothing, swap_within),
        (nothing, swap_between),
        (two_layers, swap_tensors),
    ],
    ids=lambda change: change.__name__,
)
def test_not_equal(
    pool: Pool, usual: Callable[[list[Tensor]], None], last: Callable[[list[Tensor]], None], world: int
) -> None:
    assert pool.run(compare, usual, last, world=world) == [False] * world


def compare_at_the_edge(environment: LaunchEnvironment, last_differs: bool) -> bool:
    """Compare a tensor whose weighted sum of bits is −2⁶³, which has no negative among 64-bit integers.

    −0.0 has the bits −2³¹; the positions 1 … 92682 but for 55607 add up to 2³².
    """
    minus_zeros = torch.full((92682,), -0.0)
    minus_zeros[55607 - 1] = 0.0
    if last_differs and environment.rank == environment.world - 1:
        minus_zeros.zero_()
    return equal_on_all_workers([minus_zeros], name="test")


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
    usual = collectives.TIMEOUT
    collectives.TIMEOUT = timedelta(seconds=seconds)
    try:
        with process_group(mine, CPU):
            backend = dist.get_backend() if dist.is_initialized() else "none"
            ended = f"{backend}: {sum_over_workers(torch.ones(1), name='test').item():g}"
    except ConfigError as error:
        ended = str(error)
    finally:
        collectives.TIMEOUT = usual
    return ended, dist.is_initialized()


def test_processes_meet_and_part(pool: Pool) -> None:
    answers = pool.run(meet, [2, 2], free_port(), 30.0, connected=False)
    assert answers == [("gloo: 2", False)] * 2


def test_one_process_has_no_group(pool: Pool) -> None:
    assert pool.run(meet, [1], 0, 1.0, world=1) == [("none: 1", False)]


def test_the_other_process_never_comes(pool: Pool) -> None:
    [(message, connected)] = pool.run(meet, [2], 0, 1.0, world=1)
    assert message.startswith(
        "rank 0 of 2, local rank 0 (from a test) could not meet the other processes within 1 s over gloo: "
    )
    assert not connected


@pytest.mark.slow  # torch waits longer than it is told
def test_processes_that_count_differently(pool: Pool) -> None:
    answers = pool.run(meet, [2, 3], free_port(), 2.0, connected=False)
    assert all("could not meet the other processes within 2 s over gloo: " in message for message, _ in answers)
    assert not any(connected for _, connected in answers)


def without_an_address(environment: LaunchEnvironment) -> str:
    try:
        with process_group(LaunchEnvironment(0, 2, 0, "a test"), CPU):
            return "met"
    except ConfigError as error:
        return str(error)


def test_no_address_to_meet_at(pool: Pool) -> None:
    [message] = pool.run(without_an_address, world=1)
    assert message.startswith("rank 0 of 2, local rank 0 (from a test) could not meet the other processes")
    assert "MASTER_ADDR expected, but not set" in message


def fail_inside(environment: LaunchEnvironment, port: int) -> tuple[str, bool]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with process_group(environment, CPU):
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
        with process_group(environment, CPU):
            return "met", dist.is_initialized()
    except ConfigError as error:
        return str(error), dist.is_initialized()


def test_no_group_is_left_when_the_first_collective_fails(pool: Pool) -> None:
    (message, connected), _ = pool.run(peer_leaves_before_the_first_collective, free_port(), connected=False)
    assert "rank 0 of 2, local rank 0 (from the tests' pool) could not meet the other processes" in message
    assert not connected
