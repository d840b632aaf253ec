"""Streams of a text: what a batch holds, how an epoch is tiled, what is scored, and what a checkpoint must fit."""

import hashlib
import itertools
import json
import math
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fptt_dist.algorithm.losses import SequenceLoss
from fptt_dist.algorithm.windows import Window
from fptt_dist.tasks import Batch, DataError, Language, Split, rank_slice

NUMBERED = 3000  # tokens of the training text whose ids count up, so that an id is a place in the text
SPLITS = ("train", "validation", "test")


def write(folder: Path, train: str, valid: str = "a\n", test: str = "a\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{name}.txt").write_text(content, encoding="utf-8", newline="")
    return folder


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every symbol once, so that ids go by the symbol: the text is 0, 1, 2, … in train; known pieces elsewhere."""
    folder = tmp_path_factory.mktemp("numbered")
    text = "".join(chr(0x4E00 + place) for place in range(NUMBERED))
    return write(folder, text, text[:101], text[1000:1400])


def language(text: Path, **options: Any) -> Language:
    given = {"token_level": "character", "min_count": 1, "streams": 3, "length": 10, **options}
    return Language(root=Path("nowhere"), text_dir=text, **given)


def epoch_batches(task: Language, epoch: int) -> list[Batch]:
    size = task.streams
    return [task.train_batch(epoch, c, size, slice(0, size)) for c in range(0, task.train_examples, size)]


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def assert_follows(batches: list[Batch], column: int) -> Tensor:
    """Inputs of column b are its places one after another, targets the next place; gives the inputs' places (T, B)."""
    inputs, targets = (torch.cat([getattr(b, kind) for b in batches]) for kind in ("inputs", "targets"))
    assert inputs.dtype == targets.dtype == torch.int64
    assert all(b.per_step_targets and b.inputs.shape == b.targets.shape for b in batches)
    assert torch.equal(targets, inputs + 1)
    places = inputs - torch.arange(inputs.shape[1]) * column
    assert torch.equal(places, places[:1, :1] + torch.arange(len(inputs)).unsqueeze(1).expand_as(inputs))
    assert places.min() >= 0
    assert places.max() + 1 < column
    return inputs


@given(
    tokens=st.integers(60, NUMBERED),
    streams=st.integers(1, 7),
    length=st.integers(2, 25),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_fixed_lengths_are_a_piece_of_every_column_in_order(
    numbered: Path, tokens: int, streams: int, length: int, epoch: int, seed: int
) -> None:
    if tokens < streams * (length + 1):
        tokens = streams * (length + 1)
    task = language(numbered, train_tokens=tokens, streams=streams, length=length, seed=seed)
    column = tokens // streams
    batches = epoch_batches(task, epoch)
    assert task.train_examples == streams * ((column - 1) // length)
    assert {len(batch.inputs) for batch in batches} == {length}
    assert len(assert_follows(batches, column)) == (column - 1) // length * length
    again = language(numbered, train_tokens=tokens, streams=streams, length=length, seed=seed)
    assert all(same(one, other) for one, other in zip(batches, epoch_batches(again, epoch), strict=True))


def test_what_fixed_lengths_leave_out_changes_from_epoch_to_epoch(numbered: Path) -> None:
    task = language(numbered, train_tokens=300, length=12)  # columns of 100: 8 sequences, 3 tokens over
    firsts = [task.train_batch(epoch, 0, 3, slice(0, 3)).inputs[0, 0].item() for epoch in range(60)]
    assert set(firsts) == {0, 1, 2, 3}
    other = language(numbered, train_tokens=300, length=12, seed=1)
    assert firsts != [other.train_batch(epoch, 0, 3, slice(0, 3)).inputs[0, 0].item() for epoch in range(60)]
    exact = language(numbered, train_tokens=3 * 97, length=12)
    assert {exact.train_batch(epoch, 0, 3, slice(0, 3)).inputs[0, 0].item() for epoch in range(9)} == {0}


@given(
    tokens=st.integers(60, NUMBERED),
    streams=st.integers(1, 7),
    length=st.integers(2, 40),
    deviation=st.floats(0.01, 60),
    windows=st.integers(1, 12),
    epochs=st.lists(st.integers(0, 1000), min_size=2, max_size=3, unique=True),
    seed=st.integers(0, 3),
)
def test_random_lengths_tile_every_column(
    numbered: Path, tokens: int, streams: int, length: int, deviation: float, windows: int, epochs: list[int], seed: int
) -> None:
    shortest = max(5, windows)
    tokens = max(tokens, streams * (max(length, shortest) + 1))
    options = {"streams": streams, "length": length, "length_std": deviation, "windows": windows, "seed": seed}
    task = language(numbered, train_tokens=tokens, **options)
    column = tokens // streams
    found = {}
    for epoch in epochs:
        batches = found[epoch] = epoch_batches(task, epoch)
        assert len(batches) * streams == task.train_examples  # as many in every epoch
        assert min(len(batch.inputs) for batch in batches) >= shortest
        assert len(assert_follows(batches, column)) == column - 1  # every prediction of every column
    again = language(numbered, train_tokens=tokens, **options)
    for epoch in reversed(epochs):
        assert all(same(one, other) for one, other in zip(found[epoch], epoch_batches(again, epoch), strict=True))


def lengths(task: Language, epoch: int) -> list[int]:
    return [len(batch.inputs) for batch in epoch_batches(task, epoch)]


def test_random_lengths_are_spread_as_in_the_paper(tmp_path: Path) -> None:
    long = write(tmp_path, "ab" * 200_030 + "\n\n", "a\n", "b\n")
    task = language(long, streams=2, length=70, length_std=5.0)
    found = np.array(lengths(task, 0))
    assert task.scale_lr_by_length
    assert task.length == 70
    assert len(found) == 2931  # 200 030 / (0.975 · 70) = 2930.8
    near_half = found < 52
    assert near_half.mean() == pytest.approx(0.05, abs=0.015)  # standard error 0.004
    assert found[~near_half].mean() == pytest.approx(70, abs=1.0)
    assert found[near_half].mean() == pytest.approx(35, abs=1.5)
    assert found[~near_half].std() == pytest.approx(5, abs=0.4)
    assert lengths(task, 1) != found.tolist()
    assert lengths(language(long, streams=2, length=70, length_std=5.0, seed=1), 0) != found.tolist()


def test_lengths_are_drawn_between_the_shortest_and_twice_the_usual_one(tmp_path: Path) -> None:
    long = write(tmp_path, "ab" * 100_000 + "\n\n", "a\n", "b\n")
    found = np.array(lengths(language(long, streams=1, length=20, length_std=20.0), 0))  # 10256 of them
    at_longest = 0.95 * tail(39.5, mean=20.0) + 0.05 * tail(39.5, mean=10.0)
    assert (found >= found.max() - 1).mean() == pytest.approx(at_longest, abs=0.015)  # standard error 0.004
    at_shortest = 0.95 * (1 - tail(5.5, mean=20.0)) + 0.05 * (1 - tail(5.5, mean=10.0))
    assert found.min() == 5
    assert (found == 5).mean() == pytest.approx(at_shortest, abs=0.015)


def tail(limit: float, *, mean: float) -> float:
    """P(normal(mean, 20) > limit)."""
    return 0.5 * math.erfc((limit - mean) / (20.0 * math.sqrt(2)))


def test_equal_draws_at_the_shortest_length_are_spread_evenly(numbered: Path) -> None:
    found = lengths(language(numbered, streams=3, length=4, length_std=0.01, train_tokens=3 * 104), 0)
    assert len(found) == 103 // 5  # 26 of mean length 3.9 would not leave five each
    assert sum(found) == 103
    assert [place for place, length in enumerate(found, 1) if length == 6] == [4, 10, 17]  # 3·place/20 rounds up there
    assert found.count(5) == 17


def test_no_deviation_leaves_the_rate_alone(numbered: Path) -> None:
    assert not language(numbered).scale_lr_by_length


def test_workers_parts_make_the_whole_batch(subtests: pytest.Subtests, numbered: Path) -> None:
    for world, deviation in product((1, 2, 3, 6), (0.0, 4.0)):
        with subtests.test(world=world, deviation=deviation):
            whole = language(numbered, streams=6, length_std=deviation)
            workers = [language(numbered, streams=6, length_std=deviation) for _ in range(world)]
            for epoch, cursor in itertools.product((3, 0), range(0, whole.train_examples, 6)):
                batch = whole.train_batch(epoch, cursor, 6, slice(0, 6))
                parts = [
                    worker.train_batch(epoch, cursor, 6, rank_slice(6, r, world)) for r, worker in enumerate(workers)
                ]
                assert torch.equal(torch.cat([part.inputs for part in parts], 1), batch.inputs)
                assert torch.equal(torch.cat([part.targets for part in parts], 1), batch.targets)
                assert all(part.inputs.is_contiguous() and part.targets.is_contiguous() for part in parts)


@pytest.mark.parametrize(("cursor", "size"), [(0, 2), (0, 6), (1, 3), (-3, 3), (297, 3)])
def test_batches_that_are_not_of_the_streams(numbered: Path, cursor: int, size: int) -> None:
    task = language(numbered)  # columns of 1000: 99 sequences
    assert task.train_examples == 297
    assert task.train_batch(0, 294, 3, slice(0, 3)).size == 3
    with pytest.raises(ValueError, match=f"a batch of {size} sequences|no batch starts at example {cursor}"):
        task.train_batch(0, cursor, size, slice(0, size))


@pytest.mark.parametrize("shards", ["fixed", "by_label"])
def test_streams_cannot_be_dealt(numbered: Path, shards: Any) -> None:
    task = language(numbered)
    task.set_partition("shuffled", 0, 2)
    with pytest.raises(ValueError, match=f"the task language can only be shuffled, not partitioned as {shards}"):
        task.set_partition(shards, 0, 2)


@given(
    split=st.sampled_from(SPLITS),
    streams=st.integers(1, 40),
    steps=st.integers(1, 130),
    tokens=st.integers(33, 500),
    held_out=st.integers(2, 101),
)
def test_chunks_score_every_prediction_once(
    numbered: Path, split: Any, streams: int, steps: int, tokens: int, held_out: int
) -> None:
    task = language(numbered, train_tokens=tokens, eval_tokens=held_out)
    first, count = {"train": (0, tokens), "validation": (0, held_out), "test": (1000, held_out)}[split]
    chunks = list(task.chunks(split, streams=streams, steps=steps))
    assert {chunk.size for chunk in chunks} == {min(streams, count - 1)}
    assert {len(chunk.inputs) for chunk in chunks[:-1]} <= {steps}
    assert 1 <= len(chunks[-1].inputs) <= steps
    inputs, targets = (torch.cat([getattr(c, kind) for c in chunks]) for kind in ("inputs", "targets"))
    scored = targets != -100
    assert torch.equal(targets[scored], inputs[scored] + 1)
    assert inputs[~scored].eq(0).all()
    # Stream after stream, the scored places are the whole text in order; streams end at most one step early.
    assert inputs.t()[scored.t()].tolist() == list(range(first, first + count - 1))
    assert scored[:-1].all()
    assert all(chunk.per_step_targets and chunk.inputs.dtype == chunk.targets.dtype == torch.int64 for chunk in chunks)
    for half in (slice(0, streams // 2), slice(streams // 2, streams)):
        parts = list(task.chunks(split, streams=streams, steps=steps, part=half))
        wanted = [chunk.select(half) for chunk in chunks]
        if wanted[0].size == 0:
            assert parts == []
        else:
            assert all(same(one, other) for one, other in zip(parts, wanted, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 10, 13])
def test_evaluation_is_ten_streams_in_chunks_of_64(numbered: Path, tmp_path: Path, world: int) -> None:
    task = language(numbered, train_tokens=400)
    whole = list(task.chunks("test", streams=10, steps=64))
    content = (numbered / "train.txt").read_text(encoding="utf-8")
    text = language(write(tmp_path, content, content[:50], content[500:1800]))
    cases: list[tuple[Language, Split, int, int]]
    cases = [(task, "test", 1000, 399), (task, "validation", 0, 100), (text, "test", 500, 1299)]
    for subject, split, first, count in cases:
        parts = [list(subject.evaluation_batches(split, rank, world)) for rank in range(world)]
        targets = torch.cat([batch.targets[batch.targets != -100] for own in parts for batch in own])
        assert sorted(targets.tolist()) == list(range(first + 1, first + 1 + count))
        assert len({len(own) for own in parts if own}) == 1  # as many batches for all who have any
        assert sum(own[0].size for own in parts if own) == 10
        assert max(len(batch.inputs) for own in parts for batch in own) <= 64
    assert same(whole[0], next(task.evaluation_batches("test", 0, 1)))


def test_carrying_the_state_through_chunks_reads_the_text_as_one(numbered: Path) -> None:
    """A recurrence whose state is a hash of all it has read says the same in one go and in chunks."""
    task = language(numbered)

    def read(steps: int) -> tuple[list[int], list[int]]:
        state, said, targets = torch.zeros(4, dtype=torch.int64), [], []
        for chunk in task.chunks("test", streams=4, steps=steps):
            for symbols, target in zip(chunk.inputs, chunk.targets, strict=True):
                state = (state * 31 + symbols) % 1_000_003
                said += state[target != -100].tolist()
                targets += target[target != -100].tolist()
        return said, targets

    assert read(7) == read(400)


def test_score_is_the_sum_of_negative_log_probabilities(numbered: Path) -> None:
    task = language(numbered, train_tokens=400, eval_tokens=96)
    batch = next(task.chunks("test", streams=6, steps=64))
    assert (batch.targets == -100).sum() == 1
    logits = torch.randn(*batch.inputs.shape, task.outputs, generator=torch.Generator().manual_seed(0)) * 5
    total, count = task.score(logits, batch)
    values, targets = logits.double().numpy(), batch.targets.numpy()
    shifted = values - values.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    known = targets != -100
    expected = -np.take_along_axis(log_p, np.where(known, targets, 0)[..., None], -1)[..., 0][known].sum()
    assert count == 95
    assert (total.dtype, total.shape) == (torch.float64, ())
    assert total.item() == pytest.approx(expected, rel=1e-12)
    nothing = Batch(batch.inputs[:, :1], torch.full_like(batch.targets[:, :1], -100), per_step_targets=True)
    assert [float(x) for x in task.score(logits[:, :1], nothing)] == [0.0, 0]


@pytest.mark.parametrize("token_level", ["word", "character"])
def test_the_training_unigram_has_the_perplexity_that_numpy_computes(tmp_path: Path, token_level: Any) -> None:
    rng, blank = np.random.default_rng(0), " " if token_level == "word" else ""
    parts = [blank.join(rng.choice(list("aaaabbcd\n"), n)) for n in (3000, 900, 700)]
    task = language(write(tmp_path, *parts), token_level=token_level)

    def tokens(content: str) -> list[str]:
        return list(content) if token_level == "character" else (content + "\n").replace("\n", " <eos> ").split()

    symbols, counts = np.unique(tokens(parts[0]), return_counts=True)
    assert len(symbols) == 5
    probability = dict(zip(symbols.tolist(), (counts / counts.sum()).tolist(), strict=True))
    known = tokens(parts[2])[1:]
    entropy = -np.log([probability[token] for token in known]).mean()
    expected = np.exp(entropy) if token_level == "word" else entropy / np.log(2)
    unigram = torch.tensor([probability.get(symbol, 0.0) for symbol in task.vocabulary], dtype=torch.float64).log()
    total, items = 0.0, 0
    for batch in task.evaluation_batches("test", 0, 1):
        summed, count = task.score(unigram.expand(*batch.inputs.shape, -1), batch)
        total, items = total + summed.item(), items + count
    assert items == len(known)
    assert task.value(total / items) == pytest.approx(expected, rel=1e-12)
    assert task.metric == ("perplexity" if token_level == "word" else "bits_per_character")


def test_values_of_the_metrics(tmp_path: Path) -> None:
    folder = write(tmp_path, "a a a a a b\n" * 9)
    words, characters = language(folder, token_level="word"), language(folder)
    assert words.value(0.0) == 1.0
    assert words.value(math.log(60.0)) == pytest.approx(60.0)
    assert words.value(1e4) == words.value(math.inf) == math.inf
    assert math.isnan(words.value(math.nan))
    assert characters.value(math.log(2.0)) == 1.0
    assert characters.value(math.log(50.0)) == pytest.approx(math.log2(50.0))


def test_what_the_loop_sees(tmp_path: Path) -> None:
    task = language(write(tmp_path, "a a a a a b\n" * 9), token_level="word")
    assert (task.inputs, task.outputs, task.vocabulary_size) == (1, 4, 4)
    assert task.stateful
    assert not task.higher_is_better
    assert isinstance(task.loss, SequenceLoss)
    batch = task.train_batch(0, 0, 3, slice(0, 3))
    logits = torch.zeros(*batch.inputs.shape, 4)
    assert task.loss(logits, batch.targets, Window(1, 1, slice(0, 10), 10)).item() == pytest.approx(math.log(4))


def test_a_checkpoint_fits_its_own_text_alone(tmp_path: Path) -> None:
    one = language(write(tmp_path / "one", "a a a b b c\n" * 9), token_level="word")
    state = one.state_dict()
    digest = hashlib.sha256(b"a\nb\n<eos>\nc\n<unk>").digest()
    assert one.vocabulary == ["a", "b", "<eos>", "c", "<unk>"]
    assert bytes(state["vocabulary"].tolist()) == digest
    assert (state["vocabulary"].dtype, state["vocabulary"].shape) == (torch.uint8, (32,))
    assert (state["symbols"].dtype, state["symbols"].shape, state["symbols"].item()) == (torch.int64, (), 5)
    again = write(tmp_path / "again", "a b a b a c\n" * 9, "b\n", "c\n")
    language(again, token_level="word", streams=2).load_state_dict(
        state
    )  # another order and other parts, the same symbols
    for name, train, size in (
        ("renamed", "a a a b b d\n", 5),
        ("swapped", "b b b a a c\n", 5),
        ("more", "a b c d\n", 6),
    ):
        other = language(write(tmp_path / name, train * 12), token_level="word")
        with pytest.raises(DataError) as caught:
            other.load_state_dict(state)
        assert str(caught.value) == (
            f"{tmp_path}/{name}/train.txt: its vocabulary ({size} symbols) is not the checkpoint's (5 symbols): the "
            "run needs the text that it was trained on"
        )


def test_the_description_of_the_inputs_names_every_symbol(tmp_path: Path) -> None:
    content = "the cat é\n" * 9
    task = language(write(tmp_path, content, "cat\n", "é the\n"), token_level="word")
    known = json.loads(json.dumps(task.input_description()))
    assert known["token_level"] == "word"
    expected = content.replace("\n", " <eos> ").split()
    batch = next(task.chunks("train", streams=1, steps=100))
    assert [known["vocabulary"][i] for i in batch.inputs[:, 0].tolist()] == expected[:-1]


def test_tokens_limit_the_parts_and_not_the_vocabulary(numbered: Path) -> None:
    few = language(numbered, train_tokens=100, eval_tokens=50)
    assert few.outputs == NUMBERED + 1  # "<unk>"
    assert few.train_examples == 9
    scored = {
        split: sum(int((c.targets != -100).sum()) for c in few.chunks(split, streams=2, steps=9)) for split in SPLITS
    }
    assert scored == {"train": 99, "validation": 49, "test": 49}


@pytest.mark.parametrize(
    ("options", "file", "found", "wanted"),
    [
        ({"train_tokens": NUMBERED + 1}, "train.txt", NUMBERED, f"task.train_tokens={NUMBERED + 1}"),
        ({"eval_tokens": 102}, "valid.txt", 101, "task.eval_tokens=102"),
    ],
)
def test_more_tokens_asked_for_than_there_are(
    numbered: Path, options: dict[str, int], file: str, found: int, wanted: str
) -> None:
    with pytest.raises(DataError) as caught:
        language(numbered, **options)
    again = f"type {wanted.partition('=')[0]}=null for all"
    assert str(caught.value) == f"{numbered}/{file} has {found} tokens, fewer than {wanted}: {again}"


@pytest.mark.parametrize(
    ("options", "needed", "steps"),
    [
        ({"length": 10, "streams": 3}, 33, 10),
        ({"length": 7, "streams": 5, "length_std": 2.0}, 40, 7),
        ({"length": 3, "streams": 4, "length_std": 2.0}, 24, 5),
        ({"length": 8, "streams": 2, "length_std": 2.0, "windows": 9}, 20, 9),
    ],
)
def test_a_text_too_short_for_its_streams(numbered: Path, options: dict[str, Any], needed: int, steps: int) -> None:
    assert language(numbered, train_tokens=needed, **options).train_examples == options["streams"]
    with pytest.raises(DataError) as caught:
        language(numbered, train_tokens=needed - 1, **options)
    assert str(caught.value) == (
        f"{numbered}/train.txt: {needed - 1} tokens used for training are too few for task.length={options['length']} "
        f"and train.batch_size={options['streams']}: {options['streams']} streams of {steps} + 1 tokens need {needed}. "
        "Type a smaller task.length or train.batch_size"
    )


@pytest.mark.parametrize("where", ["valid", "test"])
def test_one_symbol_predicts_nothing(tmp_path: Path, where: str) -> None:
    parts = {"valid": "ab", "test": "ab", where: "a"}
    folder = write(tmp_path, "ab" * 50, **parts)
    with pytest.raises(DataError) as caught:
        language(folder)
    expected = "1 token(s), expected at least 2, one to read and one to predict"
    assert str(caught.value) == f"{folder}/{where}.txt: {expected}"


@pytest.mark.skipif("FPTT_DATA" not in os.environ, reason="needs FPTT_DATA, the folder that holds ptb/")
def test_the_real_penn_treebank_is_read_whole() -> None:
    task = Language(root=Path(os.environ["FPTT_DATA"]), streams=20, length=70, length_std=5.0)
    column = 929589 // 20
    assert (task.outputs, task.train_examples // 20) == (10000, round((column - 1) / 68.25))
    batches = epoch_batches(task, 0)
    assert sum(batch.inputs.numel() for batch in batches) == 20 * (column - 1)
    words = (Path(os.environ["FPTT_DATA"]) / "ptb" / "ptb.train.txt").read_text().replace("\n", " <eos> ").split()
    read = torch.cat([batch.inputs for batch in batches])
    for stream in (0, 19):
        expected = words[stream * column : (stream + 1) * column - 1]
        assert [task.vocabulary[i] for i in read[:, stream].tolist()] == expected
    scored = [sum(int((b.targets != -100).sum()) for b in task.evaluation_batches(s, 0, 1)) for s in SPLITS[1:]]
    assert scored == [73759, 82429]
