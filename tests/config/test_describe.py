"""The list of all keys, and the JSON schema."""

import re

import pytest

from fptt_dist.config import ConfigError, Key, describe, json_schema, parse_overrides


def test_a_key_says_all_about_itself() -> None:
    assert describe("fptt.windows") == [
        Key(
            name="fptt.windows",
            type="int >= 1 or null",
            default="null",
            help="parameter updates per sequence K, null = as window_length says, or round(sqrt(sequence length))",
            variant=None,
        )
    ]


def test_all_keys_are_complete() -> None:
    keys = describe()
    assert all(key.name and key.type and key.default and key.help for key in keys)
    assert {"seed", "task.name", "fptt.schedule.maximum", "parallel.strategy"} <= {key.name for key in keys}
    assert len({(key.name, key.variant) for key in keys}) == len(keys)


def test_variants_are_walked_and_their_tag_comes_once() -> None:
    keys = describe("optimizer")
    assert [key.name for key in keys].count("optimizer.name") == 1
    assert (keys[0].name, keys[0].default, keys[0].variant) == ("optimizer.name", "adam", None)
    lr = {key.variant: key.default for key in keys if key.name == "optimizer.lr"}
    assert lr == {"adam": "0.001", "adamw": "0.001", "sgd": "0.1", "rmsprop": "0.001", "nt_asgd": "30.0"}


def test_types_in_words() -> None:
    types = {key.name: key.type for key in describe()}
    assert types["fptt.beta"] == "float > 0 and <= 1"
    assert types["optimizer.betas"] == "list of 2: float >= 0 and < 1"
    assert types["schedule.milestones"] == "list of one or more: int >= 1"
    assert types["logging.tensorboard"] == "true or false"
    assert types["run.dir"] == "text or null"
    assert types["device"] == "one of auto, cpu, cuda"


def test_defaults_are_what_an_override_accepts() -> None:
    words = {key.default for key in describe() if key.default != "required"}
    assert parse_overrides([f"{index}={word}" for index, word in enumerate(words)])
    required = [key.name for key in describe() if key.default == "required"]
    assert required == [
        *("task.train", "task.length", "task.length", "task.length", "model.network", "schedule.milestones")
    ]


def test_a_prefix_is_a_whole_key_or_section() -> None:
    assert {key.name.split(".")[0] for key in describe("fptt.schedule")} == {"fptt"}
    assert all(key.name.startswith("fptt.schedule.") for key in describe("fptt.schedule"))


def test_an_unknown_prefix() -> None:
    for prefix, more in (("optimzer", "; did you mean optimizer"), ("lr", "; did you mean optimizer.lr?"), ("zzz", "")):
        with pytest.raises(ConfigError, match=rf"^{prefix}: no such key or section{re.escape(more)}"):
            describe(prefix)


def test_the_json_schema_admits_extends_and_nothing_unknown() -> None:
    schema = json_schema()
    assert "extends" in schema["properties"]
    assert schema["additionalProperties"] is False
    assert schema.get("required", []) == []


def test_a_section_without_tag_fits_the_default_variant_only() -> None:
    definitions = json_schema()["$defs"]
    assert "required" not in definitions["Adam"]
    assert definitions["AdamW"]["required"] == ["name"]
    assert definitions["StepLr"]["required"] == ["milestones", "name"]
    assert definitions["CosineAlpha"]["required"] == ["name"]
    assert definitions["GRU"]["required"] == ["layer"]
    assert definitions["WholeNetwork"]["required"] == ["network"]
