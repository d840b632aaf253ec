"""Records are strict JSON whose numbers need not be finite, and a damaged one counts as missing."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.records import dumps, loads, read_lines, read_record

NUMBERS = st.floats() | st.integers() | st.none() | st.text(max_size=3)
NAMES = st.text("ab c1.", min_size=1, max_size=4)
VALUES = st.recursive(NUMBERS, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=3))
DAMAGES = {
    "empty": b"",
    "zeroed": b"\0" * 40,
    "cut": b'{"a": 1, "b',
    "a list": b"[1]",
    "not UTF-8": b'{"a": "\xff"}',
    "nested": b"[" * 100_000,
}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_what_is_written_is_read_and_is_strict_json(record: dict[str, Any]) -> None:
    text = dumps(record)
    json.loads(text, parse_constant=refuse)
    assert repr(loads(text)) == repr(record)


def test_the_reason_is_beside_the_null() -> None:
    text = dumps({"value": math.inf, "losses": [0.5, math.nan], "best": {"value": -math.inf}})
    assert json.loads(text) == {
        "value": None,
        "losses": [0.5, None],
        "best": {"value": None},
        "non_finite": {"value": "inf", "losses/1": "nan", "best/value": "-inf"},
    }


def test_a_reason_that_leads_nowhere_changes_nothing() -> None:
    reasons = {"a": "inf", "b/9": "inf", "c/d/e": "nan", "x": "1.0", "f": "nan"}
    record = {"a": 1, "b": [None], "c": None, "x": None, "f": None}
    found = loads(json.dumps({**record, "non_finite": reasons}))
    assert math.isnan(found.pop("f"))
    assert found == {"a": 1, "b": [None], "c": None, "x": None}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_missing(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "versions.json"
    with caplog.at_level(logging.WARNING):
        assert read_record(file) is None
        assert caplog.messages == []
        file.write_bytes(DAMAGES[damage])
        assert read_record(file) is None
        assert read_record(file) is None
    [message] = caplog.messages
    assert message.startswith(f"{file} cannot be read and counts as missing: ")


def test_a_damaged_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    assert list(read_lines(file)) == []
    file.write_bytes(b'{"batch": 1}\n{"batch": 2\xff}\n{"batch": 3}\n{"batch"')
    with caplog.at_level(logging.WARNING):
        assert list(read_lines(file)) == [{"batch": 1}, {"batch": 3}]
    [message] = caplog.messages
    assert message.startswith(f"{file}:2 cannot be read and is left out: ")
