"""One layer over another."""

from fptt_dist.config.loading.merge import Layer, merge


def test_values_merge_key_by_key() -> None:
    base = Layer({"seed": 1, "fptt": {"alpha": 1, "schedule": {"name": "linear"}}})
    top = Layer({"fptt": {"beta": 2, "schedule": {"start": 3}}})
    assert merge(base, top).values == {
        "seed": 1,
        "fptt": {"alpha": 1, "beta": 2, "schedule": {"name": "linear", "start": 3}},
    }
    assert base.values["fptt"] == {"alpha": 1, "schedule": {"name": "linear"}}


def test_another_variant_drops_the_old_keys() -> None:
    base = Layer({"fptt": {"alpha": 1, "schedule": {"name": "linear", "start": 3}}})
    result = merge(base, Layer({"fptt": {"schedule": {"name": "cosine"}}}))
    assert result.values == {"fptt": {"alpha": 1, "schedule": {"name": "cosine"}}}
    assert result.notes == ("fptt.schedule.name=cosine replaces linear: dropped fptt.schedule.start=3",)


def test_the_same_variant_drops_nothing() -> None:
    result = merge(Layer({"optimizer": {"lr": 1}}), Layer({"optimizer": {"name": "adam", "eps": 2}}))
    assert result.values == {"optimizer": {"lr": 1, "name": "adam", "eps": 2}}
    assert result.notes == ()


def test_a_key_that_is_set_again_is_not_told() -> None:
    base = Layer({"optimizer": {"lr": 1, "eps": 2, "amsgrad": True}})
    result = merge(base, Layer({"optimizer": {"name": "sgd", "lr": 3}}))
    assert result.values == {"optimizer": {"name": "sgd", "lr": 3}}
    assert result.notes == ("optimizer.name=sgd replaces adam: dropped optimizer.eps=2, optimizer.amsgrad=true",)


def test_origins_follow_the_values() -> None:
    base = Layer(
        {"optimizer": {"lr": 1}, "seed": 1}, {("optimizer",): "a:1", ("optimizer", "lr"): "a:2", ("seed",): "a:3"}
    )
    top = Layer({"optimizer": {"name": "sgd"}}, {("optimizer",): "b:1", ("optimizer", "name"): "b:2"})
    assert merge(base, top).where == {("optimizer",): "b:1", ("optimizer", "name"): "b:2", ("seed",): "a:3"}


def test_a_value_replaces_a_section_and_the_other_way_round() -> None:
    assert merge(Layer({"a": {"b": 1}}), Layer({"a": 2})).values == {"a": 2}
    assert merge(Layer({"a": 2}), Layer({"a": {"b": 1}})).values == {"a": {"b": 1}}


def test_a_tag_of_a_wrong_type_is_left_to_validation() -> None:
    result = merge(Layer({"optimizer": {"lr": 1}}), Layer({"optimizer": {"name": [1], "eps": 1}}))
    assert result.values == {"optimizer": {"name": [1], "eps": 1}}
