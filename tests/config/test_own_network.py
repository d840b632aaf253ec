"""`model.network`: a variant that is chosen by a key of its own in place of `model.layer`."""

from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import (
    Config,
    ConfigError,
    Train,
    UserLayer,
    WholeNetwork,
    apply_overrides,
    changes,
    dump,
    load,
    short_name,
)

BASE = Config(train=Train(max_epochs=1))
OPTIONS: dict[str, Any] = {"width": 3, "deep": {"rates": [0.5, None, True], "name": "a: b"}}
NETWORK = WholeNetwork(network="my/nets.py:Net", options=OPTIONS)


def chosen(overrides: dict[str, Any], base: Config = BASE) -> Any:
    return apply_overrides(base, overrides).model


def refused(overrides: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, overrides)
    return str(caught.value)


def test_wherever_it_is_given(tmp_path: Path) -> None:
    expected = apply_overrides(BASE, {"model.network": "my/nets.py:Net", "model.options": OPTIONS})
    assert expected.model == NETWORK
    assert Config(train=Train(max_epochs=1), model=NETWORK) == expected
    (tmp_path / "a.yaml").write_text(dump(expected))
    assert load(tmp_path / "a.yaml") == expected
    (tmp_path / "base.yaml").write_text("model: {layer: gru, hidden: 7, layers: 2}\ntrain: {max_epochs: 1}\n")
    text = "extends: base.yaml\nmodel: {network: 'my/nets.py:Net', options: {width: 3}}\n"
    (tmp_path / "b.yaml").write_text(text)
    assert load(tmp_path / "b.yaml", {"model.options.deep": OPTIONS["deep"]}) == expected
    assert load(tmp_path / "b.yaml", {"model.options.width": 5}).model == WholeNetwork(
        network="my/nets.py:Net", options={"width": 5}
    )
    assert chosen({"model.layer": "my.py:Cell", "model.options.a": 1}) == UserLayer(
        layer="my.py:Cell", options={"a": 1}
    )


def test_it_replaces_a_layer_and_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    gru = apply_overrides(BASE, {"model.layer": "gru", "model.hidden": 7})
    network = apply_overrides(gru, {"model.network": "a.py:Net", "model.options.width": 3})
    assert network.model == WholeNetwork(network="a.py:Net", options={"width": 3})
    assert apply_overrides(network, {"model.layer": "gru", "model.hidden": 7}) == gru
    assert chosen({"model.network": "b.py:Net"}, network) == WholeNetwork(network="b.py:Net")
    assert chosen({"model.network": "a.py:Net"}, network) == network.model
    assert caplog.messages == [
        'model.network="a.py:Net" replaces model.layer=gru: dropped model.hidden=7',
        'model.layer=gru replaces model.network="a.py:Net": dropped model.options.width=3',
        'model.network="b.py:Net" replaces "a.py:Net": dropped model.options.width=3',
    ]
    differing = changes(gru, network)
    assert differing["model.layer"] == ("gru", None)
    assert differing["model.network"] == (None, "a.py:Net")
    assert not {key for key in differing if not key.startswith("model.")}


def test_what_is_refused() -> None:
    network = {"model.network": "a.py:Net"}
    messages = {
        "both": refused({**network, "model.layer": "gru"}),
        "layer's": refused({**network, "model.hidden": 7}),
        "typo": refused({**network, "model.option": {}}),
        "alone": refused({"model.options.width": 3}),
        "name": refused({"model.layer": "network"}),
        "null": refused({"model.network": None}),
        "path": refused({"model.network": "a.py"}),
        "given": refused({**network, "model.options.outputs": 3}),
        "hidden": refused({"model.layer": "a.py:Cell", "model.options.hidden": 3}),
        "value": refused({**network, "model.options.width": float("nan")}),
    }
    expected = {
        "both": "model.layer: gru does not go with model.network, which takes its place: leave one of them out (",
        "layer's": "model.hidden: unknown key with model.network; it goes with model.layer (override model.hidden=7)",
        "typo": "model.option: unknown key; did you mean model.options? (",
        "alone": "model.options: unknown key with model.layer=lstm; it belongs to PATH.py:CLASS, model.network (",
        "name": "model.layer: network is not allowed; allowed: one of lstm, gru, ",
        "null": "model.network: null is not allowed; allowed: PATH.py:CLASS (",
        "path": "model.network: a.py is not allowed; allowed: PATH.py:CLASS (",
        "given": "model.options.outputs: the class is given the task's: leave it out (",
        "hidden": "model.options.hidden: the class is given model.hidden: type model.hidden=3 (",
        "value": "model.options.width=.nan is not allowed; allowed: text, a finite number",
    }
    assert {name: text[: len(expected[name])] for name, text in messages.items()} == expected


def test_files_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = apply_overrides(BASE, {"model.network": "a.py:Net"}).with_absolute_files()
    (own,) = config.user_classes
    assert (own.key, own.file, own.name) == ("model.network", tmp_path / "a.py", "Net")
    passed = apply_overrides(BASE, {"model.network": "python:Net"})
    assert passed.user_classes == []
    assert [short_name(each) for each in ("x/a.py:Net", "python:Net", "lstm")] == ["Net", "Net", "lstm"]
