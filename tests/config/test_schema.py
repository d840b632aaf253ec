"""The schema: defaults, types, ranges, variants, and that every key is described."""

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import ValidationError

from fptt_dist.config import LSTM, SGD, Adam, AddingTask, Config, Fptt, StepLr, Train
from fptt_dist.config.schema.section import Section, choice_of, section_of

ENDS = {"train": {"max_epochs": 1}}


def sections(model: type[Section]) -> Iterator[type[Section]]:
    yield model
    for field in model.model_fields.values():
        choice = choice_of(field)
        inner = section_of(field)
        for below in choice.variants.values() if choice else [inner] if inner else []:
            yield from sections(below)


def read(**values: Any) -> Config:
    return Config.model_validate({**ENDS, **values})


def test_every_section_and_key_is_described() -> None:
    bare = {
        f"{model.__name__}.{name}"
        for model in sections(Config)
        for name, field in model.model_fields.items()
        if not field.description
    }
    assert bare | {model.__name__ for model in sections(Config) if not model.__doc__} == set()


def test_the_first_variant_is_the_default_of_its_field() -> None:
    fields = [(model, name, field) for model in sections(Config) for name, field in model.model_fields.items()]
    choices = [(model, name, field, choice) for model, name, field in fields if (choice := choice_of(field))]
    assert choices
    for model, name, field, choice in choices:
        assert type(field.default) is choice.variants[choice.default], f"{model.__name__}.{name}"


def test_defaults_are_those_of_the_named_variants() -> None:
    config = read()
    assert config.task == AddingTask(length=200, markers="halves", examples=12800, validation=2000, test=2000)
    assert config.optimizer == Adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False)
    assert config.model == LSTM(hidden=128)
    assert (config.schedule.name, config.parallel.strategy) == ("constant", "auto")
    assert (config.train.batch_size, config.train.max_norm, config.algorithm) == (128, 1.0, "fptt")


def test_a_missing_tag_is_the_default_variant() -> None:
    assert read(optimizer={"lr": 0.01}).optimizer == Adam(lr=0.01)


def test_a_tag_chooses_the_variant() -> None:
    assert read(optimizer={"name": "sgd"}).optimizer == SGD(lr=0.1)


def test_a_section_may_be_given_as_an_object() -> None:
    assert Config(optimizer=SGD(), train=Train(max_epochs=1)).optimizer.name == "sgd"


def test_an_int_is_a_float_and_a_list_is_a_tuple() -> None:
    config = read(fptt={"alpha": 1}, optimizer={"betas": [0, 0.5]}, schedule={"name": "step", "milestones": [1, 2]})
    assert type(config.fptt.alpha) is float
    assert getattr(config.optimizer, "betas") == (0.0, 0.5)  # noqa: B009
    assert config.schedule == StepLr(milestones=(1, 2))


def test_values_out_of_type_or_range_are_refused() -> None:
    accepted = []
    for section, key, value in (
        ("task", "length", 1),
        ("task", "length", True),
        ("task", "length", 20.0),
        ("task", "length", "20"),
        ("model", "dropout", 1.0),
        ("model", "dropout", False),
        ("fptt", "alpha", -0.1),
        ("fptt", "alpha", math.inf),
        ("fptt", "alpha", math.nan),
        ("fptt", "alpha", "0.1"),
        ("fptt", "beta", 0),
        ("fptt", "beta", 1.1),
        ("fptt", "reset_dual", 1),
        ("fptt", "windows", 0),
        ("optimizer", "lr", 0),
        ("optimizer", "betas", [0.9, 1.0]),
        ("optimizer", "betas", [0.9]),
        ("schedule", "milestones", []),
        ("train", "max_norm", 0),
        ("checkpoint", "keep_last", 0),
        ("run", "dir", ""),
        ("nothing", "like", "it"),
    ):
        with suppress(ValidationError):
            Config.model_validate({"train": {"max_epochs": 1} if section != "train" else {}, section: {key: value}})
            accepted.append((section, key, value))
    assert accepted == []


def test_a_seed_has_63_bits() -> None:
    assert read(seed=2**63 - 1).seed == 2**63 - 1
    for seed in (2**63, -1):
        with pytest.raises(ValidationError):
            read(seed=seed)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(read().fptt, "alpha", 1.0)  # noqa: B010


def test_windows_are_resolved() -> None:
    expected: dict[tuple[Any, int, int | None], int] = {
        ("fptt", 200, None): 14,
        ("fptt", 200, 20): 20,
        ("tbptt_accumulated", 784, None): 28,
        ("fptt", 2, None): 1,
        ("bptt", 200, 20): 1,
    }
    found = {}
    for algorithm, length, given in expected:
        task = AddingTask(length=length)
        config = Config(algorithm=algorithm, task=task, fptt=Fptt(windows=given), train=Train(max_batches=1))
        found[algorithm, length, given] = config.windows
        assert config.task.sequence_length == length
    assert found == expected
