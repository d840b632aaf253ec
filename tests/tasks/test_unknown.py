"""The warning of unknown tokens: shares, names of symbols that cannot be seen, the remedy of each token level."""

from pathlib import Path

import pytest

from fptt_dist.tasks.data.unknown import Unknown, many_unknown, named, summary, warn

PATHS = [Path(f"{name}.txt") for name in ("train", "valid", "test")]
NONE = Unknown(0.0, {})
LEARNED = Unknown(0.01, {})  # "<unk>" in the file itself


def warning(caplog: pytest.LogCaptureFixture, *parts: Unknown, known: str = "a", level: str = "word") -> str:
    caplog.clear()
    warn(list(parts), PATHS, known.split(), level)  # pyright: ignore[reportArgumentType]
    return "\n".join(record.getMessage() for record in caplog.records)


def test_nothing_unknown_is_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    assert warning(caplog, NONE, NONE, NONE) == ""
    assert warning(caplog, Unknown(0.05, {}), LEARNED, LEARNED) == "", "the text has <unk> of its own"


def test_shares_and_the_commonest_are_named(caplog: pytest.LogCaptureFixture) -> None:
    said = warning(caplog, LEARNED, Unknown(0.031, {"z": 3, "b": 1}), Unknown(0.2, dict.fromkeys("vwxyz", 1)))
    assert said == (
        "of the words and line ends, 1.00% of train.txt and 3.10% of valid.txt ('z' 3×, 'b' 1×) and 20.00% of test.txt "
        "('v' 1×, 'w' 1×, 'x' 1×, 'y' 1×, 'z' 1×, …) are read as <unk>"
    )


def test_what_the_training_text_never_shows_is_not_learned(caplog: pytest.LogCaptureFixture) -> None:
    for level in ("word", "character"):
        said = warning(caplog, NONE, NONE, Unknown(0.1, {"V": 1}), level=level)
        assert said.endswith(
            f"Nothing in train.txt is, so the model cannot learn what <unk> is like: add these {level}s there, or "
            "raise task.min_count so that its rarest ones become <unk>"
        )


def test_many_unknown_words_are_a_reason_to_read_characters(caplog: pytest.LogCaptureFixture) -> None:
    words = warning(caplog, LEARNED, NONE, Unknown(0.31, {"日本": 1}))
    assert words.endswith("type task.token_level=character to read the text by characters")
    assert "task.token_level" not in warning(caplog, LEARNED, NONE, Unknown(0.31, {"日": 1}), level="character")
    assert "task.token_level" in warning(caplog, Unknown(0.5, {}), NONE, NONE), "however it came into the text"


def test_symbols_that_cannot_be_seen_are_named() -> None:
    names = {"V": "'V'", "é": "'é'", "\r": r"'\r' (carriage return)", "\n": r"'\n' (newline)"}
    names |= {"\u2028": r"'\u2028' (LINE SEPARATOR)", "\u0301": r"'\u0301' (COMBINING ACUTE ACCENT)"}
    names |= {"\x1b": r"'\x1b' (U+001B)", "e\u0301a": r"'e\u0301a'", "x" * 31: f"'{'x' * 30}…'"}
    assert {symbol: named(symbol) for symbol in names} == names


@pytest.mark.parametrize(
    ("symbol", "known", "hint"),
    [
        ("\r", "a", r"lines end with \r\n or \r is no continuation of train.txt, whose lines end with \n alone"),
        ("é", "e \u0301", "'é' is in train.txt in another Unicode form (NFD)"),
        ("cafe\u0301", "caf\u00e9", r"'cafe\u0301' is in train.txt in another Unicode form (NFC)"),
        ("\u0301", "\u00e9", "belongs to a letter in the Unicode form NFD"),
    ],
)
def test_the_likely_reason_is_named(caplog: pytest.LogCaptureFixture, symbol: str, known: str, hint: str) -> None:
    assert hint in warning(caplog, LEARNED, NONE, Unknown(0.01, {symbol: 1}), known=known, level="character")


def test_newlines_where_the_training_text_has_carriage_returns(caplog: pytest.LogCaptureFixture) -> None:
    warn([LEARNED, NONE, Unknown(0.1, {"\n": 1})], PATHS, {"a", "\r"}, "character")
    assert r"The lines of train.txt end with \r alone" in caplog.text


def test_a_test_metric_says_how_much_is_unknown() -> None:
    def of(share: float) -> str:
        return many_unknown(summary(dict.fromkeys(("train", "validation", "test"), Unknown(share, {}))))

    assert [of(0.2), of(0.314), many_unknown({})] == ["", " (31% <unk>)", ""]
