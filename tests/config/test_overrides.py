"""Overrides: words to values, values to a configuration, whatever their order."""

import logging
from itertools import permutations
from typing import Any

import pytest

from fptt_dist.config import (
    SGD,
    Config,
    ConfigError,
    Train,
    apply_overrides,
    changes,
    describe,
    parse_overrides,
)

BASE = Config(train=Train(max_epochs=1))


def failure(overrides: dict[Any, Any]) -> str:
    try:
        apply_overrides(BASE, overrides)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_values_are_yaml() -> None:
    words = ["a=1e-3", "b=true", "c=null", "d=[1, 2]", "e=text", "f={g: 1}", "h=x=y", "i='1'"]
    assert parse_overrides(words) == {
        "a": 1e-3,
        "b": True,
        "c": None,
        "d": [1, 2],
        "e": "text",
        "f": {"g": 1},
        "h": "x=y",
        "i": "1",
    }


def test_words_that_are_refused() -> None:
    for words, message in (
        (["seed"], "override seed: not of the form key=value, such as optimizer.lr=1e-3"),
        (["=3"], "override =3: not of the form key=value, such as optimizer.lr=1e-3"),
        (["seed="], "override seed=: the value is empty; type seed=null for none"),
        (["seed= "], "override seed= : the value is empty; type seed=null for none"),
        (["run.dir=#1"], "override run.dir=#1: the value is empty; type run.dir=null for none"),
        (["seed=1", "seed=2"], "override seed=2: seed is given twice, first as 1"),
        (["seed=[1"], "override seed=[1: not YAML: expected ',' or ']', but got '<stream end>'"),
        (["a={b: 1, b: 2}"], "override a={b: 1, b: 2}: the key b is given twice, first on line 1"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_overrides(words)
        assert str(caught.value) == message


def test_the_tag_comes_first_whatever_the_order() -> None:
    items = [("optimizer.lr", 0.5), ("optimizer.name", "sgd"), ("optimizer.momentum", 0.9)]
    for order in permutations(items):
        assert apply_overrides(BASE, dict(order)).optimizer == SGD(lr=0.5, momentum=0.9)


def test_a_whole_section_is_merged() -> None:
    config = apply_overrides(BASE, {"optimizer": {"name": "sgd", "lr": 0.3}, "optimizer.momentum": 0.5})
    assert config.optimizer == SGD(lr=0.3, momentum=0.5)
    assert apply_overrides(config, {"optimizer": {"momentum": 0.1}}).optimizer == SGD(lr=0.3, momentum=0.1)


def test_an_empty_section_changes_nothing_and_is_left_as_it_is() -> None:
    for overrides in ({"optimizer": {}, "seed": 1}, {"optimizer.lr": 1e-3, "optimizer": {}}):
        assert apply_overrides(BASE, overrides).optimizer == BASE.optimizer
        assert overrides["optimizer"] == {}


def test_the_given_configuration_stays() -> None:
    before = BASE.model_dump()
    apply_overrides(BASE, {"seed": 5, "fptt.alpha": 1.0})
    assert BASE.model_dump() == before


def test_only_what_somebody_set_counts_as_set() -> None:
    config = apply_overrides(BASE, {"optimizer.lr": 0.1})
    assert config.model_fields_set == {"train", "optimizer"}
    assert config.optimizer.model_fields_set == {"lr"}


def test_a_variant_chosen_in_python_stays() -> None:
    config = Config(optimizer=SGD(lr=0.5), train=Train(max_epochs=1))
    assert apply_overrides(config, {"optimizer.momentum": 0.1}).optimizer == SGD(lr=0.5, momentum=0.1)


def test_changing_the_variant_tells_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    config = apply_overrides(BASE, {"optimizer.lr": 0.003})
    with caplog.at_level(logging.WARNING, "fptt_dist"):
        assert apply_overrides(config, {"optimizer.name": "sgd"}).optimizer == SGD()
    assert [record.getMessage() for record in caplog.records] == [
        "optimizer.name=sgd replaces adam: dropped optimizer.lr=0.003"
    ]
    assert caplog.records[0].name == "fptt_dist"


def test_an_unknown_key_has_the_nearest_name() -> None:
    assert failure({"fptt.alhpa": 1}) == ("fptt.alhpa: unknown key; did you mean fptt.alpha? (override fptt.alhpa=1)")


def test_overrides_that_are_refused() -> None:
    refused: list[tuple[dict[Any, Any], str]] = [
        (
            {"optimizer": {"lr": 1}, "optimizer.lr": 2},
            "optimizer.lr is given twice: override optimizer={lr: 1} and override optimizer.lr=2",
        ),
        ({"seed": 1, "seed.x": 2}, "seed is given twice: override seed=1 and override seed.x=2"),
        ({"seed.x": 2, "seed": 1}, "seed is given twice: override seed.x=2 and override seed=1"),
        ({"optimizer": {1: 2}}, "override optimizer={1: 2}: its keys must be text"),
        ({3: 2}, "override 3=2: its keys must be text"),
        ({"seed.x": 1}, "seed: {x: 1} is not allowed; allowed: int >= 0 and < 9223372036854775808 (override seed.x=1)"),
        ({"": 1}, ": unknown key (override =1)"),
    ]
    assert [(overrides, failure(overrides)) for overrides, _ in refused] == refused


SOME = {"task.train": "x.csv", "task.length": "9", "model.network": "x.py:Net"}  # values of keys that have no default


def test_a_default_given_as_an_override_changes_nothing() -> None:
    keys, wrong = describe(), {}
    for key in keys:
        if key.default == "required":
            continue
        words = ["task.name=language"] if key.name == "model.embedding" or key.variant == "awd_lstm" else []
        base = Config(train=Train(max_batches=5) if key.name == "train.max_epochs" else Train(max_epochs=5))
        if key.variant:
            section = key.name.rpartition(".")[0]
            below = [item for item in keys if item.name.rpartition(".")[0] == section]
            tag = next(item.name for item in below if item.variant is None)
            if key.variant != "network":  # is chosen by a required key
                words.append(f"{tag}={key.variant}")
            words += [
                f"{each.name}={SOME.get(each.name, '[1]')}"
                for each in below
                if each.variant == key.variant and each.default == "required"
            ]
        before = apply_overrides(base, parse_overrides(words))
        changed = changes(before, apply_overrides(before, parse_overrides([f"{key.name}={key.default}"])))
        if changed:
            wrong[key.name, key.variant] = changed
    assert wrong == {}
