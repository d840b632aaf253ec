"""YAML 1.2: the core schema's scalars, lines of keys, and what is refused."""

import math
from typing import Any

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.config.loading.yaml import parse


def value(text: str) -> Any:
    return parse(text, lambda line: f"x:{line}")[0]


def test_values() -> None:
    expected = {
        "1e-3": 1e-3,
        "1E3": 1000.0,
        ".5": 0.5,
        "1.": 1.0,
        "-7": -7,
        "007": 7,
        "0o17": 15,
        "0x1F": 31,
        "true": True,
        "FALSE": False,
        "null": None,
        "~": None,
        ".inf": math.inf,
        "-.Inf": -math.inf,
        "yes": "yes",
        "on": "on",
        "1_000": "1_000",
        "12:30": "12:30",
        "2024-01-01": "2024-01-01",
        "'1'": "1",
        '"a\\u00e9"': "aé",
        "!!str 12": "12",
        "!!int '3'": 3,
        "[1, [a, null]]": [1, ["a", None]],
        "{a: {b: 1.5}}": {"a": {"b": 1.5}},
        "%YAML 1.1\n---\nyes": "yes",
        "a: &x [1]\nb: *x": {"a": [1], "b": [1]},
        "": None,
        "# nothing\n": None,
    }
    found = {text: value(text) for text in expected}
    assert found == expected
    assert {text: type(each) for text, each in found.items()} == {text: type(each) for text, each in expected.items()}


def test_not_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_lines_of_keys() -> None:
    assert parse("a: 1\n\nb:\n  c: {d: 1}\n", str)[1] == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", "d"): 4,
    }


def test_what_is_refused() -> None:
    wrong = {}
    for text, message in (
        ("a: 1\nb: 2\na: 3", "x:3: the key a is given twice, first on line 1"),
        ("b:\n  a: 1\n  a: 1", "x:3: the key b.a is given twice, first on line 2"),
        ("\n1: 2", "x:2: the key 1 is not text"),
        ("a: [1", "x:1: not YAML: expected"),
        ("a: 1\nb: @c", "x:2: not YAML: found character '@'"),
        ("a: 1\nb: \x01", "x:2: not YAML: unacceptable character"),
        ("a: 1\n---\nb: 1", "x:2: not YAML: but found another document"),
        ("a: *b", "x:1: not YAML: found undefined alias"),
        ("a: &a [*a]", "x:1: the alias *a stands inside what it repeats"),
        ("a: !foo 3", "x:1: the tag !foo is not allowed"),
        ("a: !foo {b: 1}", "x:1: the tag !foo is not allowed"),
        ("a: !!int x", "x:1: 'x' is no int"),
        ("a: " + "9" * 5000, "x:1: a whole number of 5000 digits is too long"),
    ):
        try:
            wrong[text] = value(text)
        except ConfigError as error:
            if not str(error).startswith(message):
                wrong[text] = str(error)
    assert wrong == {}


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, lambda line: f"f:{line}")
    return str(caught.value)


@pytest.mark.parametrize("text", ["{a: " * 2000, "- " * 400, "? " * 400, "[" * 51 + "]" * 51])
def test_depth(text: str) -> None:
    assert refused(text) == "f:1: not a configuration: its values are nested more than 50 deep"
    assert value("[" * 50 + "]" * 50)


def test_aliases_of_aliases() -> None:
    """A text of 400 bytes, and one of a long value many times."""
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    long = f"a: &a {'x' * 10**4}\nb: [{', '.join(['*a'] * 200)}]"
    for text in ("\n".join(lists), long):
        assert "its aliases stand for more than a configuration holds: write out what is meant" in refused(text)


def test_whole_numbers_have_64_bits() -> None:
    assert value(str(2**63 - 1)) == 2**63 - 1
    assert value(str(-(2**63))) == -(2**63)
    for text in (str(2**63), "9" * 20, "-" + "9" * 20, "0x" + "f" * 20, "9" * 5000):
        assert refused(text) == f"f:1: a whole number of {len(text)} digits is too long"
