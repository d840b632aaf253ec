"""What varies in a sweep: its forms and mistakes, and the points that a grid, a draw and Optuna make of it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptt_dist.config import ConfigError
from fptt_dist.launchers.sweeps.search_space import ChoiceDomain, GridDomain, RangeDomain, Space

FORMS = "{grid: [0.1, 0.5]}, {choice: [7, 14]}, {uniform: [0, 1]}, {loguniform: [1e-3, 1]} or {integers: [1, 9]}"
NEEDS = f"k needs a value, {FORMS}"
NUMBER = st.floats(-1e6, 1e6, allow_nan=False)
VALUE = st.one_of(st.none(), st.booleans(), st.integers(), NUMBER, st.text(max_size=3), st.lists(NUMBER, max_size=2))


def problems(entries: dict[str, Any], places: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Space(entries, places)
    return str(caught.value).splitlines()


def suggested(space: Space, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    points = []
    for number in range(count):
        trial = study.ask()
        points.append(space.suggest(trial))
        study.tell(trial, float(number % 7))
    return points


# The forms, and what is wrong with one.


def test_every_form() -> None:
    space = Space(
        {
            "a": 3,
            "b": [0.8, 0.95],
            "c": {"grid": [1, None]},
            "d": {"choice": [{"name": "cosine"}, 2]},
            "e": {"uniform": [0, 1.5]},
            "f": {"loguniform": [1e-3, 1]},
            "g": {"integers": [-2, 9]},
            "h": {"grid": [5]},
            "i": {"choice": [6]},
        }
    )
    assert [each.key for each in space.dimensions] == list("abcdefghi")
    assert [each.domain for each in space.dimensions] == [
        GridDomain([3]),
        GridDomain([[0.8, 0.95]]),
        GridDomain([1, None]),
        ChoiceDomain([{"name": "cosine"}, 2]),
        RangeDomain(0, 1.5),
        RangeDomain(1e-3, 1, log=True),
        RangeDomain(-2, 9, whole=True),
        GridDomain([5]),
        ChoiceDomain([6]),
    ]
    assert space.fixed == {"a": 3, "b": [0.8, 0.95], "h": 5}
    assert space.varying == list("cdefg")
    assert space.drawn() == list("defgi")
    assert space.grids() == ["c"]


MISTAKES: list[tuple[Any, str]] = [
    ({}, NEEDS),
    ({"lr": 2}, NEEDS),
    ({"grid": [1], "choice": [2]}, NEEDS),
    ({"when": {"a": 1}}, NEEDS),
    ({"normal": [0, 1]}, NEEDS),
    ({"grid": 3}, "k: grid needs a list of values, such as {grid: [0.1, 0.5]}"),
    ({"grid": []}, "k: grid needs a list of values, such as {grid: [0.1, 0.5]}"),
    ({"choice": {"a": 1}}, "k: choice needs a list of values, such as {choice: [0.1, 0.5]}"),
    *(
        ({"uniform": value}, f"k: uniform: {shown} is not two numbers, the lower one first, such as {{uniform: ")
        for value, shown in [
            (3, "3"),
            ([1], "[1]"),
            ([1, 2, 3], "[1, 2, 3]"),
            ([1, 1], "[1, 1]"),
            ([2, 1], "[2, 1]"),
            ([0, "1"], '[0, "1"]'),
            ([False, True], "[false, true]"),
            ([0, None], "[0, null]"),
            ([0, math.inf], "[0, .inf]"),
            ([math.nan, 1], "[.nan, 1]"),
            ([0, 10**400], f"[0, {10**400}]"),
            ([-1.7e308, 1.7e308], "[-1.7e+308, 1.7e+308]"),
        ]
    ),
    ({"integers": [0, 1.5]}, "k: integers: [0, 1.5] is not two whole numbers, the lower one first, such as {int"),
    ({"integers": [0, 2**63]}, f"k: integers: [0, {2**63}] is not two whole numbers, the lower one first, such as"),
    ({"loguniform": [0, 1]}, "k: loguniform: [0, 1] must begin above 0, such as {loguniform: [1e-3, 1]}"),
    ({"loguniform": [-1, 1]}, "k: loguniform: [-1, 1] must begin above 0, such as {loguniform: [1e-3, 1]}"),
    ({"grid": [1], "when": 3}, "k: when: 3 is not a key with its values, such as {when: {task.name: adding}}"),
    ({"grid": [1], "when": {"b": 3}}, "k: when: b is not in the space above it: write it there, above k"),
    ({"grid": [1], "when": {"k": 3}}, "k: when: k is not in the space above it: write it there, above k"),
]


def test_a_mistake() -> None:
    wrong = []
    for entry, message in MISTAKES:
        alone = problems({"a": 1, "k": entry})
        placed = problems({"a": 1, "k": entry, "b": 2}, {"a": "f.yaml:1", "k": "f.yaml:2"})
        begins = [f"space.{message}", f"f.yaml:2: {message}"]
        if not all(said.startswith(words) for said, words in zip(alone + placed, begins, strict=True)):
            wrong.append((entry, alone, placed))
    assert wrong == []


def test_all_mistakes_at_once_and_none_that_follows_from_another() -> None:
    lines = problems(
        {"a": {"grid": []}, "b": {"grid": [1, 2], "when": {"a": 1}}, "c": {"when": 1}, "d": {"uniform": [1, 0]}},
        {"a": "f.yaml:2", "b": "f.yaml:3", "c": "f.yaml:4", "d": "f.yaml:5"},
    )
    assert [line.partition(" ")[0] for line in lines] == ["f.yaml:2:", "f.yaml:4:", "f.yaml:5:"]


# The grid.


def test_the_last_key_varies_fastest_and_fixed_keys_are_left_out() -> None:
    space = Space({"fptt.alpha": {"grid": [0.1, 0.5]}, "train.max_batches": 7, "seed": {"grid": [3, 1, 2]}})
    points = list(space.grid())
    assert points == [{"fptt.alpha": alpha, "seed": seed} for alpha in (0.1, 0.5) for seed in (3, 1, 2)]
    assert [list(point) for point in points] == [["fptt.alpha", "seed"]] * 6


@given(st.lists(st.lists(VALUE, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_grid_is_the_product_of_the_lists(lists: list[list[Any]]) -> None:
    space = Space({f"k{index}": {"grid": values} for index, values in enumerate(lists)})
    varying = [(index, values) for index, values in enumerate(lists) if len(values) > 1]
    expected = [
        {f"k{index}": value for (index, _), value in zip(varying, combination, strict=True)}
        for combination in itertools.product(*(values for _, values in varying))
    ]
    assert list(space.grid()) == expected
    assert space.fixed == {f"k{index}": values[0] for index, values in enumerate(lists) if len(values) == 1}


CONDITIONAL: dict[str, Any] = {
    "name": {"grid": ["sgd", "adam", "adamw"]},
    "momentum": {"grid": [0.0, 0.9], "when": {"name": "sgd"}},
    "decay": {"grid": [1, 2], "when": {"name": ["adam", "adamw"]}},
    "nesterov": {"grid": [True], "when": {"momentum": [0.9]}},
    "both": {"grid": [5], "when": {"name": "adam", "decay": 2}},
}


def test_a_key_is_set_where_its_conditions_hold_and_each_point_is_there_once() -> None:
    assert list(Space(CONDITIONAL).grid()) == [
        {"name": "sgd", "momentum": 0.0},
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        {"name": "adam", "decay": 1},
        {"name": "adam", "decay": 2, "both": 5},
        {"name": "adamw", "decay": 1},
        {"name": "adamw", "decay": 2},
    ]


def test_a_condition_on_a_fixed_key_and_on_a_section() -> None:
    entries: dict[str, Any] = {
        "layer": "lstm",
        "a": {"grid": [1, 2], "when": {"layer": "lstm"}},
        "b": {"grid": [1, 2], "when": {"layer": "gru"}},
        "schedule": {"grid": [None, {"name": "cosine"}]},
        "c": {"grid": [7, 8], "when": {"schedule": {"name": "cosine"}}},
        "d": {"grid": [9], "when": {"schedule": [None]}},
    }
    assert list(Space(entries).grid()) == [
        point
        for a in (1, 2)
        for point in (
            {"a": a, "schedule": None, "d": 9},
            {"a": a, "schedule": {"name": "cosine"}, "c": 7},
            {"a": a, "schedule": {"name": "cosine"}, "c": 8},
        )
    ]


# Draws.

DRAWN: dict[str, Any] = {
    "u": {"uniform": [-1, 3]},
    "l": {"loguniform": [1e-4, 10]},
    "i": {"integers": [2, 5]},
    "c": {"choice": ["x", None, {"name": "cosine"}]},
}


def test_a_draw_is_that_of_its_seed() -> None:
    one, again, other = (list(Space(DRAWN).draw(20, seed)) for seed in (3, 3, 4))
    assert one == again
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    assert list(Space(DRAWN).draw(5, 3)) == one[:5]
    assert len({point["u"] for point in one}) == 20


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, float, float]:
    name = draw(st.sampled_from(["uniform", "loguniform", "integers"]))
    if name == "integers":
        low = draw(st.integers(-(2**63) + 1, 2**63 - 2))
        return name, low, draw(st.integers(low + 1, 2**63 - 1))
    least = 1e-300 if name == "loguniform" else -1e300
    low = draw(st.floats(least, 1e300, exclude_max=True))
    return name, low, draw(st.floats(low, 1e300, exclude_min=True))


@given(ranges(), st.integers(0, 2**32 - 1))
def test_a_draw_is_within_its_range(drawn: tuple[str, float, float], seed: int) -> None:
    name, low, high = drawn
    space = Space({"k": {name: [low, high]}})
    for point in space.draw(5, seed):
        assert low <= point["k"] <= high
        assert not isinstance(point["k"], bool)
        assert isinstance(point["k"], int) or name != "integers"
    assert [point["k"] for point in space.corners()] == [low, high]


def test_draws_are_even_on_their_scale() -> None:
    low, high = 1e-4, 10.0
    scales: dict[str, Callable[[float], float]] = {"uniform": float, "loguniform": math.log10}
    for name, scale in scales.items():
        space = Space({"k": {name: [low, high]}})
        seen = np.array([scale(point["k"]) for point in space.draw(4000, 1)])
        ends = scale(low), scale(high)
        counts, _ = np.histogram(seen, bins=10, range=ends)
        assert counts.sum() == 4000
        assert np.abs(counts - 400).max() < 100  # five deviations of a binomial


def test_integers_and_choices_are_even_and_both_ends_are_drawn() -> None:
    points = list(Space({**DRAWN, "g": 1}).draw(4000, 2))
    for key, values in (("i", [2, 3, 4, 5]), ("c", ["x", None, {"name": "cosine"}])):
        counts = [sum(point[key] == value for point in points) for value in values]
        assert sum(counts) == 4000
        assert all(abs(count - 4000 / len(values)) < 150 for count in counts)
    assert all(type(point["i"]) is int for point in points)


def test_each_draw_is_at_every_combination_of_the_lists() -> None:
    entries = {"seed": {"grid": [0, 1]}, **DRAWN, "k": {"grid": [5, 6, 7]}, "fixed": 3}
    points = list(Space(entries).draw(4, 9))
    alone = list(Space(DRAWN).draw(4, 9))
    assert points == [
        {"seed": seed, **drawn, "k": k} for drawn in alone for seed, k in itertools.product((0, 1), (5, 6, 7))
    ]


def test_a_condition_changes_no_other_key_s_draws() -> None:
    last = {"integers": [0, 10**6]}
    entries: dict[str, Any] = {"name": {"choice": ["a", "b"]}, "m": {"uniform": [0, 1]}, "last": last}
    free = list(Space(entries).draw(50, 5))
    entries["m"] = {**entries["m"], "when": {"name": "a"}}
    bound = list(Space(entries).draw(50, 5))
    assert {point["name"] for point in free} == {"a", "b"}
    assert bound == [
        {key: value for key, value in point.items() if key != "m" or point["name"] == "a"} for point in free
    ]


# Corners.


def test_corners_are_all_ends_with_all_values() -> None:
    entries = {"fixed": 1, "u": {"uniform": [0, 1]}, "c": {"choice": ["a", "b", "c"]}, "i": {"integers": [3, 7]}}
    expected = [{"u": u, "c": c, "i": i} for u, c, i in itertools.product((0, 1), ("a", "b", "c"), (3, 7))]
    assert list(Space(entries).corners()) == expected
    assert list(Space(entries).corners(5)) == expected[:5]
    many = Space({f"k{index}": {"uniform": [0, 1]} for index in range(30)})
    assert len(list(many.corners())) == 1024


# Optuna.


def test_what_optuna_suggests_is_of_the_space() -> None:
    space = Space({"fixed": 1, **DRAWN, "one": {"choice": [4]}})
    points = suggested(space)
    for point in points:
        assert list(point) == ["u", "l", "i", "c", "one"]
        assert -1 <= point["u"] <= 3
        assert 1e-4 <= point["l"] <= 10
        assert point["i"] in (2, 3, 4, 5)
        assert type(point["i"]) is int
        assert point["one"] == 4
    trial = optuna.create_study().ask()
    space.suggest(trial)
    scales = {key: getattr(each, "log", None) for key, each in trial.distributions.items()}
    assert scales == {"u": False, "l": True, "i": False, "c": None}
    assert all(value in [point["c"] for point in points] for value in ("x", None, {"name": "cosine"}))
    assert suggested(space) == points
    assert suggested(space, seed=1) != points


def test_optuna_is_asked_for_what_is_set_alone() -> None:
    entries: dict[str, Any] = {
        "layer": "lstm",
        "name": {"choice": [{"name": "cosine"}, None, {"name": "constant"}]},
        "warmup": {"integers": [0, 9], "when": {"name": [{"name": "cosine"}, None]}},
        "m": {"loguniform": [0.1, 1], "when": {"warmup": [0, 1, 2, 3, 4], "layer": "lstm"}},
        "never": {"uniform": [0, 1], "when": {"layer": "gru"}},
    }
    space, study = Space(entries), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(60):
        trial = study.ask()
        point = space.suggest(trial)
        assert set(trial.params) == set(point)
        assert ("warmup" in point) == (point["name"] != {"name": "constant"})
        assert ("m" in point) == (point.get("warmup", 9) < 5)
        kinds.add(tuple(point))
        study.tell(trial, 0.0)
    assert kinds == {("name",), ("name", "warmup"), ("name", "warmup", "m")}


@settings(max_examples=20)
@given(st.floats(1e-12, 1e3), st.floats(1.001, 1e6))
def test_optuna_stays_within_any_range(low: float, factor: float) -> None:
    space = Space({"l": {"loguniform": [low, low * factor]}, "u": {"uniform": [-low, low * factor]}})
    for point in suggested(space, 3):
        assert low <= point["l"] <= low * factor
        assert -low <= point["u"] <= low * factor
