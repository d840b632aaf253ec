"""A sweep's file: its sections and ranges, what wins over it, and what is said of wrong values."""

import logging
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.config import ConfigError
from fptt_dist.config.loading.loader import PACKAGED, packaged
from fptt_dist.config.schema.section import choice_of
from fptt_dist.config.schema.sweep import Asha, GridSearch, OptunaSearch, RandomSearch, RunAll, Sweep, load_sweep
from fptt_dist.config.schema.sweep import packaged_sweeps as names

HEAD = "config: add_task\nspace:\n  fptt.alpha: {grid: [0.1, 1]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)
    return path


def message_of(path: Path, overrides: dict[str, Any] | None = None) -> str:
    try:
        load_sweep(path, overrides)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_the_least_a_file_must_say(file: Path) -> None:
    sweep, places = load_sweep(file)
    assert sweep == Sweep(config="add_task", space={"fptt.alpha": {"grid": [0.1, 1]}})
    assert places == {"fptt.alpha": f"{file}:3"}
    assert (sweep.search, sweep.scheduler) == (GridSearch(), RunAll())
    assert (sweep.workers, sweep.cpus, sweep.gpus, sweep.max_concurrent, sweep.max_failures) == (1, 1.0, None, None, 2)


def test_all_that_a_file_may_say(file: Path) -> None:
    file.write_text(
        HEAD + "  'fptt.windows':\n    integers: [2, 9]\n"
        "search: {name: optuna, trials: 3, seed: 7, objectives: [quality, bytes_sent]}\n"
        "scheduler:\n  name: asha\n  grace: 4\n  reduction: 2\n"
        "workers: 2\ncpus: 0.5\ngpus: 0.25\nmax_concurrent: 3\nmax_failures: 0\n"
    )
    sweep, places = load_sweep(file)
    assert places == {"fptt.alpha": f"{file}:3", "fptt.windows": f"{file}:4"}
    assert sweep.search == OptunaSearch(trials=3, seed=7, objectives=("quality", "bytes_sent"))
    assert sweep.scheduler == Asha(grace=4, reduction=2)
    assert (sweep.workers, sweep.cpus, sweep.gpus, sweep.max_concurrent, sweep.max_failures) == (2, 0.5, 0.25, 3, 0)


def test_a_word_wins_over_the_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(HEAD + "search: {name: random, trials: 9, seed: 4}\nworkers: 3\n")
    sweep, _ = load_sweep(file, {"sweep.search.trials": 5, "sweep.scheduler": {"name": "median"}, "sweep.workers": 1})
    assert sweep.search == RandomSearch(trials=5, seed=4)
    assert (sweep.scheduler.name, sweep.workers) == ("median", 1)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        sweep, _ = load_sweep(file, {"sweep.search.name": "grid"})
    assert sweep.search == GridSearch()
    assert caplog.messages == ["search.name=grid replaces random: dropped search.trials=9, search.seed=4"]


@given(st.data())
def test_every_number_in_its_range_is_taken_and_no_other(data: st.DataObject) -> None:
    key, kind, low, _ = data.draw(st.sampled_from(NUMBERS))
    value = data.draw(st.integers(-3, 3) if kind is int else st.floats(-3, 3))
    path, _, leaf = key.rpartition(".")
    variant = {"search": {"name": "random"}, "scheduler": {"name": "asha"}}.get(path, {})
    values = {"config": "add_task", "space": {"a": 1}, **({path: {**variant, leaf: value}} if path else {leaf: value})}
    fits = value > 0 if low is None else value >= low
    if key == "gpus" and value > 1 and value != int(value):
        fits = False
    try:
        sweep = Sweep.model_validate(values)
    except ValueError:
        assert not fits
    else:
        assert fits
        section = getattr(sweep, path) if path else sweep
        assert getattr(section, leaf) == value


NUMBERS: list[tuple[str, type, int | None, bool]] = [  # key, type, least value (None: above 0), may be null
    ("workers", int, 1, False),
    ("cpus", float, None, False),
    ("gpus", float, 0, True),
    ("max_concurrent", int, 1, True),
    ("max_failures", int, 0, False),
    ("search.trials", int, 1, False),
    ("search.seed", int, 0, False),
    ("scheduler.grace", int, 1, True),
    ("scheduler.reduction", int, 2, False),
]


def test_a_number_that_is_refused_is_named_with_what_is_allowed(file: Path, subtests: pytest.Subtests) -> None:
    file.write_text(HEAD + "search: {name: random}\nscheduler: {name: asha}\n")
    for key, kind, low, null in NUMBERS:
        bound = "> 0" if low is None else f">= {low}"
        more = " and < 4294967296" if key == "search.seed" else ""
        permitted = f"allowed: {kind.__name__} {bound}{more}{' or null' if null else ''}"
        with subtests.test(key):
            for value, shown in [(-1, "-1"), ("many", "many"), (True, "true"), *([] if null else [(None, "null")])]:
                assert message_of(file, {f"sweep.{key}": value}) == (
                    f"{key}: {shown} is not allowed; {permitted} (override sweep.{key}={shown})"
                )
            wrong, shown = (1.5, "1.5") if kind is int else (math.inf, ".inf")
            said = message_of(file, {f"sweep.{key}": wrong})
            finite = "" if kind is int else ", finite"
            assert said.startswith(f"{key}: {shown} is not allowed; {permitted}{finite}")
            if null:
                load_sweep(file, {f"sweep.{key}": None})


def test_a_mistake(file: Path) -> None:
    wrong = {}
    for more, message in (
        ("worker: 2\n", "worker: unknown key; did you mean workers? (FILE:4)"),
        (
            "\nsearch:\n  name: random\n  trails: 2\n",
            "search.trails: unknown key; did you mean search.trials? (FILE:7)",
        ),
        ("search: {trials: 3}\n", "search.trials: unknown key with search.name=grid; it belongs to random, optuna"),
        (
            "scheduler: {name: median, reduction: 3}\n",
            "scheduler.reduction: unknown key with scheduler.name=median; it belongs to asha (FILE:4)",
        ),
        (
            "scheduler: {name: none, grace: 3}\n",
            "scheduler.grace: unknown key with scheduler.name=none; it belongs to asha, median (FILE:4)",
        ),
        (
            "search: {name: tpe}\n",
            "search.name: tpe is not allowed; allowed: one of grid, random, optuna (FILE:4)",
        ),
        (
            "scheduler: {name: ahsa}\n",
            "scheduler.name: ahsa is not allowed; allowed: one of none, asha, median; did you mean asha? (FILE:4)",
        ),
        (
            "search: random\n",
            "search: random is not allowed; allowed: a section of keys, such as search.name=grid (FILE:4)",
        ),
        (
            "search: {name: random, seed: 4294967296}\n",
            "search.seed: 4294967296 is not allowed; allowed: int >= 0 and < 4294967296 (FILE:4)",
        ),
        *(
            (
                f"search: {{name: optuna, objectives: {value}}}\n",
                f"search.objectives{index}: {shown} is not allowed; allowed: list of one or more: one of quality, "
                "seconds, bytes_sent (FILE:4)",
            )
            for value, index, shown in [
                ("[]", "", "[]"),
                ("quality", "", "quality"),
                ("[quality, loss]", "[1]", "loss"),
            ]
        ),
        ("workers: 2\nworkers: 3\n", "FILE:5: the key workers is given twice, first on line 4"),
        # What does not fit together.
        (
            "search: {name: optuna, objectives: [seconds, quality, seconds]}\n",
            "search.objectives=[seconds, quality, seconds] has one twice: leave it out (FILE:4)",
        ),
        (
            "gpus: 1.5\n",
            "gpus=1.5: more than one GPU is a whole number of them; a worker uses one: type gpus=1 (FILE:4)",
        ),
    ):
        file.write_text(HEAD + more)
        said = message_of(file)
        if not said.startswith(message.replace("FILE", str(file))) or "\n" in said:
            wrong[more] = said
    assert wrong == {}


def test_a_file_that_is_no_sweep(file: Path) -> None:
    wrong = {}
    for text, message in (
        ("config: 3\nspace: {a: 1}\n", "config: 3 is not allowed; allowed: text (FILE:1)"),
        ("config: ''\nspace: {a: 1}\n", 'config: "" is not allowed; allowed: text (FILE:1)'),
        ("config: x\nspace: {}\n", "space: {} is not allowed; allowed: keys with their values (FILE:2)"),
        ("config: x\nspace: [a, b]\n", "space: [a, b] is not allowed; allowed: keys with their values (FILE:2)"),
        ("config: x\n", "space: must be set; allowed: keys with their values"),
        ("space: {a: 1}\n", "config: must be set; allowed: text"),
        *(
            (text, f"FILE is no sweep, which has config and space, as {names()[0]} has")
            for text in ("", "task: {name: adding}\ntrain: {max_epochs: 1}\n")  # a run's configuration
        ),
        ("config: x\nspace: {1: 2}\n", "FILE:2: the key 1 is not text"),
        ("- a\n", "FILE: not a mapping of keys to values, such as seed: 1"),
        ("config: [\n", "FILE:"),
    ):
        file.write_text(text)
        said = message_of(file)
        if not said.startswith(message.replace("FILE", str(file))):
            wrong[text] = said
    assert wrong == {}


def test_all_mistakes_at_once(file: Path) -> None:
    file.write_text(HEAD + "workers: 0\ngpus: -1\nsearch: {name: random, trials: 0}\n")
    lines = message_of(file, {"sweep.cpus": 0, "sweep.retrys": 1}).splitlines()
    assert {line.partition(":")[0] for line in lines} == {"workers", "gpus", "search.trials", "cpus", "retrys"}
    assert len(lines) == 5


def test_several_conflicts_at_once(file: Path) -> None:
    file.write_text(HEAD + "search: {name: optuna, objectives: [quality, quality]}\ngpus: 2.5\n")
    assert len(message_of(file).splitlines()) == 2


def test_no_word_changes_the_space(file: Path) -> None:
    keys = ("sweep.space.fptt.alpha", "sweep.space", "sweep.space.x")
    said = f"it cannot be typed, what varies is written in {file}"
    assert {key: message_of(file, {key: 0.3}) for key in keys} == {key: f"override {key}=0.3: {said}" for key in keys}


# Where the files are.


def test_the_configuration_is_the_file_beside_the_sweep_or_a_packaged_one(file: Path) -> None:
    assert load_sweep(file)[0].config == "add_task"
    beside = file.parent / "add_task"
    beside.write_text("train: {max_batches: 3}\n")
    assert load_sweep(file)[0].config == str(beside)


def test_a_packaged_sweep_by_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names()
    for name in names():
        plain = name.removeprefix("sweeps/").removesuffix(".yaml")
        found, places = load_sweep(PACKAGED / name)
        for typed in (plain, f"{plain}.yaml", f"sweeps/{plain}", name, f"configs/{name}"):
            assert load_sweep(Path(typed)) == (found, places)
        (tmp_path / plain).write_text(f"{HEAD}nodes: 3\n")  # the user's own comes first
        assert message_of(Path(plain)) == f"nodes: unknown key ({plain}:4)"
        assert name not in packaged()


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gone.yaml", "alpha_window", "/sweeps/alpha_windows", "clusters/example", "x" * 5000):
        said = message_of(Path(name))
        assert said.startswith(f"{name}: no such file; packaged: {', '.join(names())}")
        assert ("; did you mean sweeps/alpha_windows.yaml" in said) == ("alpha" in name)


def test_a_folder(tmp_path: Path) -> None:
    assert message_of(tmp_path) == f"{tmp_path}: is a folder, not a file"


def test_each_variant_says_its_name() -> None:
    for field in ("search", "scheduler"):
        choice = choice_of(Sweep.model_fields[field])
        assert choice is not None
        for name, section in choice.variants.items():
            assert get_args(section.model_fields["name"].annotation) == (name,)
            assert all(each.description for each in section.model_fields.values())
