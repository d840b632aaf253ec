"""The adding task's data, sharing out and metric."""

from itertools import product

import pytest
import torch

from fptt_dist.tasks import Adding, Split


def test_the_target_is_the_sum_of_the_two_marked_numbers(subtests: pytest.Subtests) -> None:
    for markers, length in product(("halves", "anywhere"), (2, 3, 7, 50)):
        with subtests.test(markers=markers, length=length):
            task = Adding(length=length, markers=markers)
            batch = task.train_batch(0, 0, 400, slice(0, 400))
            values, marks = batch.inputs.unbind(-1)
            assert batch.inputs.shape == (length, 400, 2)
            assert batch.inputs.dtype == torch.float32
            assert torch.equal(marks.sum(0), torch.full((400,), 2.0))
            assert set(marks.unique().tolist()) <= {0.0, 1.0}
            torch.testing.assert_close((values * marks).sum(0), batch.targets.squeeze(-1))
            assert values.min() >= 0.0
            assert values.max() < 1.0
            if markers == "halves":
                assert torch.equal(marks[: length // 2].sum(0), torch.ones(400))


def test_markers_reach_every_step() -> None:
    for markers in ("halves", "anywhere"):
        batch = Adding(length=6, markers=markers).train_batch(0, 0, 2000, slice(0, 2000))
        assert (batch.inputs[..., 1].sum(1) > 0).all()


def test_batches_are_a_function_of_seed_epoch_and_cursor() -> None:
    def batch(seed: int = 0, epoch: int = 0, cursor: int = 0) -> torch.Tensor:
        return Adding(length=9, seed=seed).train_batch(epoch, cursor, 8, slice(0, 8)).inputs

    assert torch.equal(batch(), batch())
    for other in (batch(seed=1), batch(epoch=1), batch(cursor=8)):
        assert not torch.equal(batch(), other)


def test_any_number_of_workers_sees_the_same_examples() -> None:
    task = Adding(length=9)
    whole = task.train_batch(2, 16, 8, slice(0, 8))
    halves = [task.train_batch(2, 16, 8, slice(0, 4)), task.train_batch(2, 16, 8, slice(4, 8))]
    assert torch.equal(torch.cat([half.inputs for half in halves], dim=1), whole.inputs)
    assert torch.equal(torch.cat([half.targets for half in halves]), whole.targets)


def test_evaluation_sets_are_fixed_and_shared_out_whole(subtests: pytest.Subtests) -> None:
    splits: list[Split] = ["validation", "test"]
    for world, split in product((1, 2, 3, 7), splits):
        with subtests.test(world=world, split=split):

            def share(seed: int, rank: int, world: int, split: Split = split) -> list[torch.Tensor]:
                task = Adding(length=5, validation=1003, test=501, seed=seed)
                return [batch.targets for batch in task.evaluation_batches(split, rank, world)]

            whole = torch.cat(share(0, 0, 1))
            assert len(whole) == (1003 if split == "validation" else 501)
            assert torch.equal(torch.cat(share(5, 0, 1)), whole), "the sets do not depend on the seed"
            parts = [part for rank in range(world) for part in share(0, rank, world)]
            assert torch.equal(torch.cat(parts).sort(0).values, whole.sort(0).values)


def test_splits_and_training_data_differ() -> None:
    task = Adding(length=5)
    validation, test = (next(task.evaluation_batches(s, 0, 1)).inputs[:, :8] for s in ("validation", "test"))
    train = task.train_batch(0, 0, 8, slice(0, 8)).inputs
    assert not torch.equal(validation, test)
    assert not torch.equal(validation, train)
    assert not torch.equal(test, train)


def test_predicting_one_scores_a_sixth() -> None:
    task = Adding(length=30, test=20000)
    total, items = torch.zeros((), dtype=torch.float64), 0
    for batch in task.evaluation_batches("test", 0, 1):
        one_total, one_items = task.score(torch.ones(1, batch.size, 1), batch)
        total, items = total + one_total, items + one_items
    assert items == 20000
    assert total.item() / items == pytest.approx(1 / 6, abs=0.003)
