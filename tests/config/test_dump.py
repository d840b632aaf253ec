"""A dumped configuration is read back the same."""

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fptt_dist.config import Config, Train, dump, load
from fptt_dist.config.schema.pretrained import Pretrained
from fptt_dist.config.schema.section import Section, choice_of, section_of
from fptt_dist.config.values import show


def texts() -> st.SearchStrategy[str]:
    awkward = ["null", "1e-3", ".5e3", "yes", "-", "a: b", "#", "\x7f\x85\u2028\ufeff\uffff", "\x01", "😀", " a ", "'"]
    no_nul = st.characters(exclude_characters="\0", codec="utf-8")  # all keys of text are paths
    return st.one_of(st.sampled_from(awkward), st.text(no_nul, min_size=1))


def values(annotation: Any, marks: list[Any]) -> st.SearchStrategy[Any]:
    args = get_args(annotation)
    if get_origin(annotation) is Annotated:
        own = [mark for info in args[1:] for mark in (info.metadata if isinstance(info, FieldInfo) else [info])]
        return values(args[0], [*marks, *own])
    if get_origin(annotation) is Literal:
        return st.sampled_from(args)
    if get_origin(annotation) is tuple:
        if args == (str, ...):
            return st.lists(texts(), min_size=1, max_size=2).map(tuple)
        if args[-1] is Ellipsis:
            return st.sets(st.integers(1, 50), min_size=1).map(sorted)
        return st.tuples(*(values(arg, []) for arg in args))
    if NoneType in args:
        return st.none() | values(args[0], marks)
    if get_origin(annotation) is dict:
        whole = st.integers(-(2**63), 2**63 - 1)
        plain = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | texts()
        names = st.sampled_from(["null", "true", "yes", "e1", "größe", "plain"])
        return st.dictionaries(names, plain | st.lists(plain) | st.dictionaries(texts(), plain))
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        own = any(getattr(mark, "pattern", None) for mark in marks)
        return texts().map(lambda text: f"{''.join(text.split())}.py:Cell_2") if own else texts()
    bounds = {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if annotation is int:
        return st.integers(low, 2**63 - 1 if high is None else high - 1)
    return st.floats(
        low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False
    )


def sections(model: type[Section]) -> st.SearchStrategy[dict[str, Any]]:
    found = st.fixed_dictionaries({name: contents(field) for name, field in model.model_fields.items()})
    if not issubclass(model, Pretrained):
        return found
    return found.map(lambda keys: keys if keys["init_from"] else {**keys, "init_names": None})  # has no effect alone


def contents(field: FieldInfo) -> st.SearchStrategy[Any]:
    choice = choice_of(field)
    inner = section_of(field)
    if choice:
        return st.one_of([sections(variant) for variant in choice.variants.values()])
    return sections(inner) if inner else values(field.annotation, field.metadata)


def fits(values: dict[str, Any]) -> bool:
    try:
        Config.model_validate(values)
    except ValidationError:
        return False
    return True


def without_most_conflicts(values: dict[str, Any]) -> dict[str, Any]:
    values["train"].update(max_epochs=3, micro_batch_size=None, cuda_graph=False)
    values["fptt"].update(windows=2, window_length=None, metric="euclidean")
    return values


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(sections(Config).map(without_most_conflicts).filter(fits))
def test_a_dump_is_read_back_the_same(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config = Config.model_validate(values)
    path: Path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_bytes(dump(config).encode())
    assert load(path) == config


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(texts())
def test_any_text_is_read_back_the_same(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_bytes(f"run: {{dir: {show(text)}}}\ntrain: {{max_epochs: 1}}\n".encode())
    assert load(path).run.dir == text


def test_a_dump_holds_every_value() -> None:
    text = dump(Config(train=Train(max_epochs=1)))
    assert "optimizer:\n  name: adam\n  lr: 0.001\n  betas: [0.9, 0.999]\n  eps: 1e-08\n" in text
    assert "  schedule:\n    name: constant\n" in text
    assert "  dir: null\n" in text
    assert "\nresume: never\n" in text
