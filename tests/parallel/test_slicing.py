"""Which examples fall to which worker: any number of workers sees the same global batches and the same fixed sets."""

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.tasks import Adding, Batch, Split, rank_slice


@given(size=st.integers(0, 10_000), world=st.integers(1, 64))
def test_shares_partition_exactly(size: int, world: int) -> None:
    shares = [rank_slice(size, rank, world) for rank in range(world)]
    assert [index for part in shares for index in range(part.start, part.stop)] == list(range(size))
    lengths = [part.stop - part.start for part in shares]
    assert max(lengths) - min(lengths) <= 1


@given(size=st.integers(0, 1000), half=st.integers(1, 8))
def test_a_share_of_two_workers_is_the_shares_of_four(size: int, half: int) -> None:
    for rank in range(half):
        part = rank_slice(size, rank, half)
        assert part.start == rank_slice(size, 2 * rank, 2 * half).start
        assert part.stop == rank_slice(size, 2 * rank + 1, 2 * half).stop


def together(parts: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of several workers' batches, in the order of the ranks."""
    return torch.cat([part.inputs for part in parts], dim=1), torch.cat([part.targets for part in parts])


def test_workers_see_slices_of_one_global_batch() -> None:
    for markers, world in (("halves", 1), ("anywhere", 2), ("halves", 4)):
        task = Adding(length=9, markers="halves" if markers == "halves" else "anywhere", seed=3)
        whole = task.train_batch(2, 48, 12, slice(0, 12))
        assert whole.inputs.shape == (9, 12, 2)
        assert len(whole.targets.unique()) == 12
        inputs, targets = together([task.train_batch(2, 48, 12, rank_slice(12, rank, world)) for rank in range(world)])
        assert torch.equal(inputs, whole.inputs), world
        assert torch.equal(targets, whole.targets), world


def test_another_seed_epoch_or_cursor_is_another_batch() -> None:
    one = Adding(length=9, seed=3).train_batch(2, 48, 12, slice(0, 12))
    for seed, epoch, cursor in ((4, 2, 48), (3, 1, 48), (3, 2, 60)):
        other = Adding(length=9, seed=seed).train_batch(epoch, cursor, 12, slice(0, 12))
        assert not (set(one.targets.flatten().tolist()) & set(other.targets.flatten().tolist())), (seed, epoch, cursor)


def test_a_fixed_set_is_shared_out_exactly() -> None:
    splits: tuple[Split, ...] = ("validation", "test")
    for size, world, split in product((1, 3, 41, 500, 1003), (2, 4), splits):
        task = Adding(length=4, validation=size, test=size)
        whole = together(list(task.evaluation_batches(split, 0, 1)))
        assert len(whole[1]) == size
        shares = [list(task.evaluation_batches(split, rank, world)) for rank in range(world)]
        seen = [target for part in shares for batch in part for target in batch.targets.flatten().tolist()]
        assert sorted(seen) == sorted(whole[1].flatten().tolist()), (size, world, split)
        counts = [sum(batch.size for batch in part) for part in shares]
        assert max(counts) - min(counts) <= len(range(0, size, 500)), (size, world, split)
