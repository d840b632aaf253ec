"""The threads that play workers do what a process group does, and do not hang."""

import pytest
import torch
from torch import Tensor

from tests.parallel import replicas
from tests.parallel.replicas import LeftAloneError, Replica, together


@pytest.mark.parametrize(
    ("world", "kind"),
    [(1, torch.float32), (2, torch.uint8), (3, torch.bfloat16), (4, torch.float64), (5, torch.float32)],
)
def test_a_sum_is_taken_in_the_order_of_the_ranks(world: int, kind: torch.dtype) -> None:
    values = [(torch.rand(7, generator=torch.Generator().manual_seed(r)) * 20).to(kind) for r in range(world)]
    expected = values[0].clone()
    for value in values[1:]:
        expected = expected + value
    answers = together(world, lambda workers: workers.all_reduce(values[workers.rank].clone(), name="t"))
    assert all(answer.dtype == kind and torch.equal(answer, expected) for answer in answers)


def several(workers: Replica) -> tuple[list[Tensor], list[str], Tensor]:
    """Two sums under way at once, waited for the other way round, and the other collectives."""
    one, two = torch.ones(2), torch.full((3,), float(workers.rank))
    first, second = workers.all_reduce_async(one, name="one"), workers.all_reduce_async(two, name="two")
    assert one.isnan().all()
    second.wait()
    first.wait()
    token = torch.full((2,), float(workers.rank + 7))
    workers.broadcast([token], name="token")
    workers.barrier(name="barrier")
    return [one, two], workers.all_gather_object(f"rank {workers.rank}", name="text"), token


def test_collectives_overlap_and_a_tensor_under_way_cannot_be_read() -> None:
    for (one, two), texts, token in together(3, several):
        assert one.tolist() == [3.0] * 2
        assert two.tolist() == [3.0] * 3
        assert texts == ["rank 0", "rank 1", "rank 2"]
        assert token.tolist() == [7.0, 7.0]


def test_groups_sum_among_themselves() -> None:
    def work(workers: Replica) -> float:
        mine = workers.group([0, 2] if workers.rank % 2 == 0 else [1, 3])
        assert mine.rank == workers.rank // 2
        return mine.all_reduce(torch.tensor([10.0**workers.rank]), name="group").item()

    assert together(4, work) == [101.0, 1010.0, 101.0, 1010.0]


def test_the_error_of_one_ends_the_wait_of_all() -> None:
    def work(workers: Replica) -> None:
        if workers.rank == 1:
            raise ValueError("rank 1 has enough")
        workers.barrier(name="never")

    with pytest.raises(ValueError, match="rank 1 has enough"):
        together(3, work)


def test_a_replica_that_leaves_early_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "PATIENCE", 0.05)
    with pytest.raises(LeftAloneError, match=r"only \[0, 2\] of \(0, 1, 2\)"):
        together(3, lambda workers: None if workers.rank == 1 else workers.barrier(name="never"))


def test_different_collectives_do_not_meet() -> None:
    with pytest.raises(AssertionError, match="not the same everywhere"):
        together(2, lambda workers: workers.all_reduce(torch.zeros(1 + workers.rank), name="t"))
