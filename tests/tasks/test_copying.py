"""The copy memory task's data, sharing out, loss and metric."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from fptt_dist.algorithm.windows import sequence_windows
from fptt_dist.tasks import Batch, Copying, Split

A, B, BLANK, MARKER = 0, 1, 2, 3


def one_hot(classes: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(classes, count).float()


def train(task: Copying, size: int = 8, *, epoch: int = 0, cursor: int = 0) -> Batch:
    return task.train_batch(epoch, cursor, size, slice(0, size))


def test_a_tiny_case_written_out() -> None:
    task = Copying(delay=3, symbols=2, alphabet=2)
    assert (task.length, task.inputs, task.outputs) == (7, 4, 3)
    batch = train(task, 64)
    assert batch.inputs.shape == (7, 64, 4)
    assert batch.inputs.dtype == torch.float32
    assert (batch.targets.shape, batch.targets.dtype, batch.per_step_targets) == ((7, 64), torch.int64, True)
    assert torch.equal(batch.inputs.sum(-1), torch.ones(7, 64))
    seen = set()
    for sequence in range(64):
        symbols = batch.targets[-2:, sequence].tolist()
        seen.add(tuple(symbols))
        assert batch.inputs[:, sequence].argmax(-1).tolist() == [*symbols, BLANK, BLANK, MARKER, BLANK, BLANK]
        assert batch.targets[:, sequence].tolist() == [BLANK, BLANK, BLANK, BLANK, BLANK, *symbols]
    assert seen == {(A, A), (A, B), (B, A), (B, B)}


def test_the_shortest_delay_is_the_marker_alone() -> None:
    batch = train(Copying(delay=1, symbols=1, alphabet=2), 16)
    tokens = batch.inputs.argmax(-1)
    assert torch.equal(tokens[0], batch.targets[2])
    assert tokens[1:].tolist() == [[MARKER] * 16, [BLANK] * 16]
    assert batch.targets[:2].tolist() == [[BLANK] * 16] * 2


@pytest.mark.parametrize(("delay", "symbols"), [(1, 1), (100, 10), (7, 3)])
def test_length(delay: int, symbols: int) -> None:
    task = Copying(delay=delay, symbols=symbols)
    assert task.length == delay + 2 * symbols == len(train(task, 1).inputs) == len(train(task, 1).targets)


def test_symbols_are_uniform_and_independent() -> None:
    symbols = train(Copying(delay=1, symbols=4, alphabet=8), 20000).targets[-4:]
    counts = torch.stack([row.bincount(minlength=8) for row in symbols])
    assert counts.shape == (4, 8)
    assert (counts / 20000 - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 * 7 / 8 / 20000)
    pairs = (symbols[:-1] * 8 + symbols[1:]).flatten().bincount(minlength=64) / 60000
    assert (pairs - 1 / 64).abs().max() < 5 * math.sqrt(1 / 64 / 60000)


def test_batches_are_a_function_of_seed_epoch_and_cursor() -> None:
    def targets(seed: int = 0, epoch: int = 0, cursor: int = 0) -> Tensor:
        return train(Copying(delay=2, seed=seed), epoch=epoch, cursor=cursor).targets

    assert torch.equal(targets(), targets())
    for other in (targets(seed=1), targets(epoch=1), targets(cursor=8)):
        assert not torch.equal(targets(), other)


def test_any_number_of_workers_sees_the_same_examples() -> None:
    task = Copying(delay=2)
    whole = train(task, epoch=2, cursor=16)
    parts = [task.train_batch(2, 16, 8, part) for part in (slice(0, 3), slice(3, 4), slice(4, 8))]
    assert [part.size for part in parts] == [3, 1, 4]
    assert torch.equal(torch.cat([part.inputs for part in parts], dim=1), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts], dim=1), whole.targets)


def test_evaluation_sets_are_fixed_and_shared_out_whole(subtests: pytest.Subtests) -> None:
    splits: list[Split] = ["validation", "test"]
    for world, split in product((1, 2, 3, 7), splits):
        with subtests.test(world=world, split=split):

            def share(seed: int, rank: int, world: int, split: Split = split) -> list[Tensor]:
                task = Copying(delay=2, validation=1003, test=501, seed=seed)
                batches = list(task.evaluation_batches(split, rank, world))
                assert all(0 < batch.size <= 500 for batch in batches)
                return [batch.targets[-10:] for batch in batches]

            whole = torch.cat(share(0, 0, 1), dim=1)
            assert whole.shape == (10, 1003 if split == "validation" else 501)
            assert torch.equal(torch.cat(share(5, 0, 1), dim=1), whole), "the sets do not depend on the seed"
            parts = torch.cat([part for rank in range(world) for part in share(0, rank, world)], dim=1)
            assert sorted(parts.T.tolist()) == sorted(whole.T.tolist())


def test_splits_and_training_data_differ() -> None:
    task = Copying(delay=2)
    validation, test = (next(task.evaluation_batches(s, 0, 1)).targets[:, :8] for s in ("validation", "test"))
    for one, other in ((validation, test), (validation, train(task).targets), (test, train(task).targets)):
        assert not torch.equal(one, other)


def test_only_the_recalled_symbols_are_scored() -> None:
    task = Copying(delay=5, symbols=3, alphabet=4)
    batch = train(task)
    perfect = one_hot(batch.targets, 5)
    total, items = task.score(perfect, batch)
    assert (total.item(), items) == (24, 24)
    assert total.dtype == torch.float64
    blanks = one_hot(torch.full_like(batch.targets, 4), 5)
    assert task.score(blanks, batch)[0].item() == 0
    noisy = perfect.clone()
    noisy[:-3] = torch.randn(8, 8, 5, generator=torch.Generator().manual_seed(0))
    assert task.score(noisy, batch)[0].item() == 24, "what is said before counts for nothing"
    for step, sequence in ((-1, 0), (-3, 5)):  # one wrong symbol costs one
        perfect[step, sequence] = one_hot((batch.targets[step, sequence] + 1) % 4, 5)
    assert task.score(perfect, batch) == (torch.tensor(22.0), 24)


def test_remembering_nothing_costs_what_the_docstring_says() -> None:
    task = Copying(delay=20, symbols=5, alphabet=8)
    (window,) = sequence_windows(task.length, 1)
    batch = train(task, 4000)
    # The best without a memory: blank for certain, then every symbol equally likely.
    optimum = torch.full((30, 4000, 9), -torch.inf)
    optimum[:25, :, 8] = 0.0
    optimum[25:, :, :8] = 0.0
    loss = task.loss(optimum.clamp(min=-1e4), batch.target(window.part), window)
    assert loss.item() == pytest.approx(5 * math.log(8) / 30, rel=1e-5)
    guesses = torch.rand(30, 4000, 9, generator=torch.Generator().manual_seed(0))
    guesses[..., 8] = -1.0
    total, items = task.score(guesses, batch)
    assert items == 20000
    assert total.item() / items == pytest.approx(1 / 8, abs=0.012)


def test_windows_are_trained_on_their_own_steps() -> None:
    task = Copying(delay=5, symbols=3, alphabet=4)
    batch = train(task)
    windows = sequence_windows(task.length, 4)
    assert not task.loss.terminal
    assert torch.equal(torch.cat([batch.target(window.part) for window in windows]), batch.targets)
    for window in windows:
        good = 50 * one_hot(batch.targets[window.part], 5)
        assert task.loss(good, batch.target(window.part), window).item() == pytest.approx(0.0, abs=1e-6)
        assert task.loss(-good, batch.target(window.part), window).item() > 50
