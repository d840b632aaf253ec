"""Runs that differ by their seed alone are one group; labels and differences name what tells groups apart."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fptt_dist.config import Config, Train, apply_overrides
from fptt_dist.reporting import History
from fptt_dist.reporting.runs.groups import differences, group_runs

PLAIN = {"kind": "train", "batch": 1}
WITH_TRAFFIC = {"kind": "train", "batch": 1, "bytes_sent": 8}


def run(name: str = "run", overrides: dict[str, Any] | None = None, *, workers: int | None = 1, **more: Any) -> History:
    """A run as its folder says it."""
    config = apply_overrides(Config(train=Train(max_batches=10)), overrides or {})
    values = json.loads(json.dumps(config.model_dump()))  # as its file has it, and read much sooner
    result = None if workers is None else {"workers": workers}
    return History(Path(name), values, more.get("training", [PLAIN]), [], result)


def test_seeds_are_one_group_in_their_order() -> None:
    runs = [run("b", {"seed": 3}), run("c", {"seed": 1}), run("a", {"seed": 2})]
    (group,) = group_runs(runs)
    assert [each.config["seed"] for each in group.runs] == [1, 2, 3]
    assert group.label == "fptt"
    assert differences([group]) == []


def test_no_runs_no_groups() -> None:
    assert group_runs([]) == []
    assert differences([]) == []


def test_groups_come_in_the_order_of_their_first_run() -> None:
    runs = [
        run("0", {"algorithm": "bptt"}, workers=None, training=[]),
        run("1", {"algorithm": "fptt"}),
        run("2", {"algorithm": "bptt", "seed": 1}),
        run("3", {"algorithm": "tbptt"}),
    ]
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["bptt", "fptt", "tbptt"]
    assert [[str(each.path) for each in group.runs] for group in groups] == [["0", "2"], ["1"], ["3"]]


def test_what_does_not_count() -> None:
    for overrides in (
        {"run.dir": "elsewhere"},
        {"data.root": "/elsewhere"},
        {"logging.every_batches": 3},
        {"logging.tensorboard": False},
        {"checkpoint.every_batches": 7},
        {"checkpoint.async_save": True},
        {"resume": "auto"},
        {"device": "cpu"},
        {"parallel.launcher": "torchrun"},
        {"parallel.timeout_seconds": 7.0},
        {"seed": 5},
    ):
        assert len(group_runs([run("a"), run("b", overrides)])) == 1, overrides


def test_what_counts_is_in_the_label() -> None:
    expected: dict[tuple[str, Any], tuple[str, list[Any]]] = {
        ("fptt.alpha", 0.25): ("fptt α=0.25", [0.5, 0.25]),
        ("fptt.windows", 7): ("fptt K=7", [None, 7]),
        ("optimizer.lr", 0.25): ("fptt lr=0.25", [0.001, 0.25]),
        ("model.layer", "gru"): ("fptt gru", ["lstm", "gru"]),
        ("task.length", 50): ("fptt T=50", [200, 50]),
        ("evaluate.weights", "center"): ("fptt weights=center", ["auto", "center"]),
        ("data.partition", "fixed"): ("fptt partition=fixed", ["shuffled", "fixed"]),
    }
    found = {}
    for key, value in expected:
        groups = group_runs([run("a"), run("b", {key: value})])
        ((differing, values),) = differences(groups)
        assert differing == key
        found[key, value] = (groups[1].label, values)
    assert found == expected


def test_a_window_length_shows_the_windows_too() -> None:
    groups = group_runs([run("a", {"fptt.windows": 10}), run("b", {"fptt.window_length": 40})])
    assert [group.label for group in groups] == ["fptt K=10 window_length=null", "fptt K=5 window_length=40"]


def test_the_keys_of_the_force_do_not_count_where_there_is_none() -> None:
    assert len(group_runs([run("a", {"algorithm": "bptt"}), run("b", {"algorithm": "bptt", "fptt.alpha": 1.0})])) == 1
    assert len(group_runs([run("a", {"algorithm": "bptt"}), run("b", {"algorithm": "bptt", "fptt.windows": 4})])) == 1
    tbptt = [run("a", {"algorithm": "tbptt"}), run("b", {"algorithm": "tbptt", "fptt.alpha": 1.0})]
    assert len(group_runs(tbptt)) == 1
    assert len(group_runs([tbptt[0], run("c", {"algorithm": "tbptt", "fptt.windows": 4})])) == 2


def test_a_label_has_the_keys_that_its_algorithm_has() -> None:
    runs = [
        run("a", {"fptt.alpha": 0.5, "fptt.windows": 10}),
        run("b", {"fptt.alpha": 1.0, "fptt.windows": 5}),
        run("c", {"algorithm": "tbptt_accumulated", "fptt.windows": 5}),
        run("d", {"algorithm": "bptt"}),
    ]
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["fptt α=0.5 K=10", "fptt α=1 K=5", "tbptt_accumulated K=5", "bptt"]
    assert differences(groups) == [
        ("algorithm", ["fptt", "fptt", "tbptt_accumulated", "bptt"]),
        ("fptt.alpha", [0.5, 1.0, None, None]),
        ("fptt.windows", [10, 5, 5, None]),
    ]


def test_numbers_of_processes_are_told_apart() -> None:
    groups = group_runs([run("a"), run("b", workers=2), run("c", {"seed": 1}, workers=2)])
    assert [group.label for group in groups] == ["fptt 1 worker", "fptt 2 workers"]
    assert differences(groups) == [("workers", [1, 2])]


def test_a_running_run_goes_with_those_of_its_configuration() -> None:
    begun = run("b", {"seed": 1}, workers=None, training=[])
    several = run("c", {"seed": 2}, workers=None, training=[WITH_TRAFFIC])
    (group,) = group_runs([several, begun, run("a", workers=4)])
    assert len(group.runs) == 3
    alone, other = group_runs([run("a", workers=4), run("d", {"seed": 3}, workers=None, training=[PLAIN])])
    assert [alone.label, other.label] == ["fptt 4 workers", "fptt 1 worker"]


def test_many_differences_make_no_long_label() -> None:
    one = run("a", {"task.length": 50, "task.examples": 640, "task.test": 32, "task.validation": 32, "model.hidden": 8})
    two = run("b", {"task.length": 50, "task.examples": 640, "task.test": 32, "task.validation": 32, "fptt.alpha": 1.0})
    groups = group_runs([run("c"), one, two])
    assert len({group.label for group in groups}) == 3
    assert all(len(group.label) < 40 for group in groups)
    assert len(differences(groups)) == 6  # but here they all are


def test_defaults_that_an_older_version_did_not_write() -> None:
    new = run("a")
    old = run("b", {"seed": 1})
    del old.config["fptt"]["window_remainder"], old.config["train"]["compile_update"]
    assert len(group_runs([new, old])) == 1


def test_a_configuration_of_another_version_is_taken_as_it_is() -> None:
    strange = [
        History(Path(name), {"algorithm": "fptt", "task": {"name": "adding"}, "x": name}, [], [], None) for name in "ab"
    ]
    groups = group_runs(strange)
    assert [group.label for group in groups] == ["fptt x=a", "fptt x=b"]
    assert differences(groups) == [("x", ["a", "b"])]


CHOICES = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(["fptt", "tbptt", "tbptt_accumulated", "bptt_aux", "bptt"]),
        "fptt.alpha": st.sampled_from([0.5, 0.1 + 0.2, 0.3]),  # two of them look alike
        "fptt.windows": st.sampled_from([None, 3, 4]),
        "optimizer.name": st.sampled_from(["adam", "sgd"]),
        "train.max_norm": st.sampled_from([None, 1.0]),
        "model.hidden": st.sampled_from([4, 8]),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=25)
@given(st.lists(st.tuples(CHOICES, st.sampled_from([1, 2])), max_size=12))
def test_groups_are_what_is_equal_and_labels_are_unique(drawn: list[tuple[dict[str, Any], int]]) -> None:
    def identity(choice: dict[str, Any], workers: int) -> tuple[Any, ...]:
        regularizer = choice["fptt.alpha"] if choice["algorithm"] == "fptt" else None
        windows = choice["fptt.windows"] if choice["algorithm"] != "bptt" else None
        rest = [choice[key] for key in ("algorithm", "optimizer.name", "train.max_norm", "model.hidden")]
        return (*rest, regularizer, windows, workers)

    groups = group_runs([run(str(n), choice, workers=workers) for n, (choice, workers) in enumerate(drawn)])
    members = [[drawn[int(each.path.name)] for each in group.runs] for group in groups]
    assert sorted(int(each.path.name) for group in groups for each in group.runs) == list(range(len(drawn)))
    assert all(len({identity(*each) for each in group}) == 1 for group in members)
    assert len({identity(*group[0]) for group in members}) == len(groups)
    assert len({group.label for group in groups}) == len(groups)
    columns = dict(differences(groups))
    for one in range(len(groups)):
        for two in range(one):
            assert any(column[one] != column[two] for column in columns.values())


def test_classes_of_the_users_are_named_without_their_paths() -> None:
    path = "/home/somebody/with/a/long/path"
    tasks = [
        {"task": {"name": f"{path}/{name}", "length": 4}, "model": {"layer": f"{path}/cell.py:{cell}"}}
        for name, cell in (("a.py:Gestures", "Gated"), ("b.py:Speech", "Leaky"))
    ]
    runs = [run(str(number), keys) for number, keys in enumerate(tasks)]
    assert [group.label for group in group_runs(runs)] == ["fptt Gestures Gated", "fptt Speech Leaky"]
    same = [run(str(n), {"task": {"name": f"/{file}.py:Waves", "length": 4}}) for n, file in enumerate("ab")]
    assert [group.label for group in group_runs(same)] == ['fptt "/a.py:Waves"', 'fptt "/b.py:Waves"']
