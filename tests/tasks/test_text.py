"""Reading a text: symbols, vocabulary, unknown symbols, and what is wrong with files; the real Penn Treebank."""

import os
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data import text as reading
from fptt_dist.tasks.data.text import FILES, PENN_TREEBANK, Text, own_text, penn_treebank
from fptt_dist.tasks.data.unknown import TokenLevel, Unknown


def write(folder: Path, train: str | bytes, valid: str | bytes, test: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(FILES, (train, valid, test), strict=True):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def symbols(text: Text) -> list[list[str]]:
    return [[text.vocabulary[i] for i in ids] for ids in text.ids]


def test_words_are_split_at_white_space_and_lines_end(tmp_path: Path) -> None:
    folder = write(tmp_path, " the cat\tsat \n\nthe end\r\n", "cat\n  ", "sat the")
    text = own_text(folder, "word", min_count=1)
    assert symbols(text) == [
        ["the", "cat", "sat", "<eos>", "<eos>", "the", "end", "<eos>"],
        ["cat", "<eos>"],  # blanks after the last newline are no line
        ["sat", "the", "<eos>"],  # the last line has an end without a newline too
    ]
    assert text.vocabulary == ["<eos>", "the", "cat", "end", "sat", "<unk>"]
    assert text.paths == [folder / name for name in FILES]


def test_characters_stand_as_they_are(tmp_path: Path) -> None:
    train = "aé𝔘 a\r\n日\n\n"
    text = own_text(write(tmp_path, train, "日a", "\ufeff𝔘é"), "character", min_count=1)
    assert symbols(text) == [list(train), ["日", "a"], ["𝔘", "é"]]  # a byte order mark is no character
    assert text.vocabulary == ["\n", "a", "\r", " ", "é", "日", "𝔘", "<unk>"]


@given(
    lines=st.lists(st.lists(st.sampled_from(["a", "b", "é", "aa", "<unk>", "𝔘"]), max_size=6), min_size=1, max_size=12),
    piece=st.integers(0, 20),
)
def test_ids_fall_in_frequency_whatever_the_pieces_are(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], piece: int
) -> None:
    lines = [*lines, ["a"]]
    content = "".join(" ".join(line) + "\n" for line in lines)
    folder = write(tmp_path_factory.mktemp("text"), content, "a\n", "a a\n")
    expected = [symbol for line in lines for symbol in [*line, "<eos>"]]
    whole = reading.PIECE
    reading.PIECE = piece
    try:
        text = own_text(folder, "word", min_count=1)
        letters = own_text(write(folder, content, content[-2:], content[-2:]), "character", min_count=1)
    finally:
        reading.PIECE = whole
    for read, wanted in ((text, expected), (letters, list(content))):
        assert symbols(read)[0] == wanted
        counts = Counter(wanted)
        counts["<unk>"] += 0
        assert read.vocabulary == sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        assert read.ids[0].dtype == np.int32


def test_the_vocabulary_comes_from_the_training_text_alone(tmp_path: Path) -> None:
    texts = [
        own_text(write(tmp_path, "a a b\n" * 200 + "c d\n", "a b c\n", test), "word")
        for test in ("a b d\n", "a b d\nx\n", "<unk>\n", "a\n")
    ]
    assert [text.vocabulary for text in texts] == [["a", "<eos>", "b", "<unk>"]] * 4
    assert symbols(texts[1])[1:] == [["a", "b", "<unk>", "<eos>"], ["a", "b", "<unk>", "<eos>", "<unk>", "<eos>"]]


def test_symbols_below_the_minimum_count_become_unk_everywhere(tmp_path: Path) -> None:
    folder = write(tmp_path, "a a b b b once a <unk> new\nb\n", "x once y x a\n", "b y <unk>\n")
    text = own_text(folder, "word")
    assert text.vocabulary == ["b", "<unk>", "a", "<eos>"]  # 4, 1 + 1 + 1, 3 and 2 times
    assert symbols(text) == [
        ["a", "a", "b", "b", "b", "<unk>", "a", "<unk>", "<unk>", "<eos>", "b", "<eos>"],
        ["<unk>", "<unk>", "<unk>", "<unk>", "a", "<eos>"],
        ["b", "<unk>", "<unk>", "<eos>"],
    ]
    assert own_text(folder, "word", min_count=4).vocabulary == ["<unk>", "b", "<eos>"]  # 6, 4 and 2 times
    letters = own_text(write(tmp_path, "aabbaq", "ab", "aZ"), "character")
    assert letters.vocabulary == ["a", "b", "<unk>"]
    assert symbols(letters) == [["a", "a", "b", "b", "a", "<unk>"], ["a", "b"], ["a", "<unk>"]]


@pytest.mark.parametrize(("token_level", "end"), [("word", "<eos>"), ("character", "\n")])
def test_the_end_of_the_only_line_is_not_rare(tmp_path: Path, token_level: TokenLevel, end: str) -> None:
    text = own_text(write(tmp_path, "a b a b\n", "a\nb\n", "b\n"), token_level)
    assert [symbols(text)[part].count(end) for part in range(3)] == [1, 2, 1]


def test_a_runs_own_vocabulary_is_taken_for_the_training_texts(tmp_path: Path) -> None:
    folder = write(tmp_path, "x x y y\n", "x a\n", "b z\n")
    text = own_text(folder, "word", vocabulary=["b", "a", "<unk>", "<eos>"])
    assert text.vocabulary == ["b", "a", "<unk>", "<eos>"]
    assert [ids.tolist() for ids in text.ids] == [[2, 2, 2, 2, 3], [2, 1, 3], [0, 2, 3]]
    with pytest.raises(DataError) as caught:
        own_text(folder, "word", vocabulary=["a", "<eos>"])
    assert str(caught.value) == (
        f"'x' in {folder} is not among the 2 symbols of the vocabulary, which has no <unk>: another text?"
    )


def test_unknown_tokens_are_counted_among_those_used(tmp_path: Path) -> None:
    text = own_text(write(tmp_path, "a a <unk> q\n", "z y z a\n" + "y z x <unk>\n", "a\n"), "word")
    assert text.unknown(0, 5) == Unknown(2 / 5, {"q": 1})
    assert text.unknown(1, 4) == Unknown(3 / 4, {"z": 2, "y": 1})
    assert text.unknown(1, 10) == Unknown(7 / 10, {"z": 3, "y": 2, "x": 1})
    assert text.unknown(2, 2) == Unknown(0.0, {})


def test_lines_that_end_with_a_carriage_return_alone_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_text(write(tmp_path, "a b\ra b\r", "a\n", "b\r\n"), "word")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}/train.txt has \\r (carriage return) and no newline: all of it is one line"
    )


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (write(tmp_path, "a\n", "a\n", "a\n") / missing).unlink()
    with pytest.raises(DataError) as caught:
        own_text(tmp_path, "word")
    expected = "type task.text_dir=… for a folder that holds train.txt, valid.txt and test.txt"
    assert str(caught.value) == f"{tmp_path} has no {missing}: {expected}"


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_missing_folder_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "novel"
    if kind == "file":
        folder.write_text("a\n")
    with pytest.raises(DataError) as caught:
        own_text(folder, "word")
    expected = "type task.text_dir=… for a folder that holds train.txt, valid.txt and test.txt"
    assert str(caught.value) == f"{folder} is no folder: {expected}"


def test_an_empty_file_is_named(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for where, content, token_level in product(
        (0, 1, 2), ("", " ", "\n\n", "\t \r\n", "\ufeff"), ("word", "character")
    ):
        with subtests.test(where=where, content=content, token_level=token_level):
            parts = ["a \n", "a \n", "a \n"]
            parts[where] = content
            with pytest.raises(DataError) as caught:
                own_text(write(tmp_path, *parts), token_level)
            size = len(content.encode())
            expected = f"{tmp_path}/{FILES[where]} has {size} bytes and no text: expected more than white space"
            assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("content", "place", "byte"),
    [(b"abc\xff\n", 3, "0xff"), ("日本\n".encode() + b"\xe9t\xe9", 7, "0xe9"), (b"\xef\xbb\xbfa\x80", 4, "0x80")],
)
def test_what_is_not_utf8_is_named_with_its_byte(tmp_path: Path, content: bytes, place: int, byte: str) -> None:
    with pytest.raises(DataError) as caught:
        own_text(write(tmp_path, "a\n", content, "a\n"), "character")
    assert str(caught.value).startswith(f"{tmp_path}/valid.txt is not UTF-8: byte {place} ({byte}), ")


@pytest.mark.parametrize("token_level", ["word", "character"])
def test_the_penn_treebank_must_be_there(tmp_path: Path, token_level: TokenLevel) -> None:
    with pytest.raises(DataError) as caught:
        penn_treebank(tmp_path, token_level)
    first = next(iter(PENN_TREEBANK[token_level]))
    assert str(caught.value) == (
        f"{tmp_path}/ptb has no {first}. Get the Penn Treebank with: fptt-dist data fetch ptb --root {tmp_path}; or "
        "type data.root=… for the folder that holds ptb/, or task.text_dir=… for a folder with a text of your own"
    )


@pytest.mark.parametrize(("more", "guess"), [(-1, "truncated?"), (1, "another text?")])
def test_the_penn_treebank_must_be_whole(tmp_path: Path, more: int, guess: str) -> None:
    (tmp_path / "ptb").mkdir()
    for name, size in PENN_TREEBANK["word"].items():
        with (tmp_path / "ptb" / name).open("wb") as file:
            file.truncate(size + (more if name == "ptb.valid.txt" else 0))
    with pytest.raises(DataError) as caught:
        penn_treebank(tmp_path, "word")
    assert str(caught.value) == (
        f"{tmp_path}/ptb/ptb.valid.txt has {399782 + more} bytes, expected 399782 ({guess}). "
        f"Get it with: fptt-dist data fetch ptb --root {tmp_path}"
    )


@pytest.mark.slow
@pytest.mark.skipif("FPTT_DATA" not in os.environ, reason="needs FPTT_DATA, the folder that holds ptb/")
@pytest.mark.parametrize(
    ("token_level", "size", "tokens", "first"),
    [
        ("word", 10000, [929589, 73760, 82430], ["the", "<unk>", "<eos>", "N", "of", "to", "a", "in"]),
        ("character", 50, [5017482, 393042, 442423], ["_", "e", "t", "a", "n", "o", "i", "s"]),
    ],
)
def test_the_real_penn_treebank(
    caplog: pytest.LogCaptureFixture, token_level: TokenLevel, size: int, tokens: list[int], first: list[str]
) -> None:
    text = penn_treebank(Path(os.environ["FPTT_DATA"]), token_level)
    assert caplog.records == []
    assert len(text.vocabulary) == len(set(text.vocabulary)) == size
    assert [len(ids) for ids in text.ids] == tokens
    assert text.vocabulary[:8] == first
    for path, ids in zip(text.paths, text.ids, strict=True):
        lines = path.read_text().splitlines()
        expected = [symbol for line in lines if line.strip() for symbol in [*line.split(), "<eos>"]]
        assert [text.vocabulary[i] for i in ids] == expected
