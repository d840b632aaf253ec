"""A network on disk gives what it gave before, in a fresh process too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fptt_dist.models import Network, load_network, penalty_of, recurrent_layer, save_network, serialization
from tests.models.networks import ALL, NUMBERS, network, some_inputs, tensors

OutputSteps = Literal["last", "all"]


def small(cell: str = "lstm", layers: int = 1, output_steps: OutputSteps = "all", dropout: float = 0.0) -> Network:
    torch.manual_seed(3)
    return Network(recurrent_layer(cell, 3, 5, layers=layers, dropout=dropout), 5, 2, output_steps=output_steps)


def rewrite(folder: Path, **values: object) -> None:
    """Change values of an exported network, and make its checksums right."""
    path = folder / "model.json"
    values = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**values, "sha256": serialization._checksums(folder, values)}))


def test_outputs_are_the_same_to_the_bit(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in ALL:
        with subtests.test(name=name):
            folder = tmp_path / name / "folder"
            model, x = network(name), some_inputs(name, 7)
            save_network(model, folder, {"task": "none"})
            torch.manual_seed(99)
            loaded = load_network(folder)
            assert type(loaded) is type(model)
            assert not loaded.training
            output, state = loaded(x)
            expected, expected_state = model.eval()(x)
            assert torch.equal(output, expected)
            assert all(map(torch.equal, tensors(state), tensors(expected_state)))
            assert len(tensors(state)) == len(tensors(expected_state))
            windows = [one(x[3:], one(x[:3])[1])[0] for one in (loaded, model)]
            assert torch.equal(*windows)
            assert loaded.describe() == model.describe()
            assert {name: (p.dtype, p.requires_grad) for name, p in loaded.named_parameters()} == {
                name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()
            }


def test_who_trains_on_trains_as_before(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in ALL:
        with subtests.test(name=name):
            keys = {"output_dropout": 0.25} if name in NUMBERS else {"dropout": 0.5} if name == "words" else {}
            model, x = network(name, 2, **keys), some_inputs(name, 5)
            save_network(model, tmp_path / name, {})
            loaded = load_network(tmp_path / name)
            assert torch.equal(loaded(x)[0], loaded(x)[0])
            results = []
            for one in (model.train(), loaded.train()):
                torch.manual_seed(8)
                y, state = one(x)
                penalty = penalty_of(state)
                (y.square().sum() + (0.0 if penalty is None else penalty)).backward()
                results.append([y, *tensors(state), *(p.grad for p in one.parameters())])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
            assert not torch.equal(loaded(x)[0], loaded(x)[0]), "it drops something"


@pytest.mark.parametrize("cell", ["gru", "antisymmetric"])
def test_dropout_between_layers_is_kept(tmp_path: Path, cell: str) -> None:
    save_network(small(cell, 2, dropout=0.25), tmp_path, {})
    assert load_network(tmp_path).recurrent.dropout == 0.25


@pytest.mark.parametrize("output_steps", ["last", "all"])
def test_what_is_in_the_folder(tmp_path: Path, output_steps: OutputSteps) -> None:
    model = small("gru", 2, output_steps)
    save_network(model, tmp_path, {"task": {"name": "pixels"}, "weights": "averaged"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    values = json.loads((tmp_path / "model.json").read_text())
    assert values.pop("sha256").keys() == {"model.safetensors", "model.json"}
    assert values == {
        "format": "fptt_dist network 4",
        "network": {
            "kind": "recurrent",
            "recurrent": {"cell": "gru", "inputs": 3, "hidden": 5, "layers": 2, "dropout": 0.0},
            "outputs": 2,
            "output_steps": output_steps,
            "symbols": None,
            "embedding": None,
            "dropout": 0.0,
            "output_dropout": 0.0,
        },
        "task": {"name": "pixels"},
        "weights": "averaged",
    }
    kept = load_file(tmp_path / "model.safetensors")
    assert kept.keys() == model.state_dict().keys()
    assert all(torch.equal(kept[name], p) for name, p in model.state_dict().items())


def test_a_description_does_not_replace_what_rebuilds_the_network(tmp_path: Path) -> None:
    model, x = small(output_steps="last"), torch.randn(7, 4, 3)
    save_network(model, tmp_path, {"format": "mine", "network": {"kind": "awd_lstm"}, "note": "kept"})
    assert torch.equal(load_network(tmp_path)(x)[0], model(x)[0])
    assert json.loads((tmp_path / "model.json").read_text())["note"] == "kept"


@pytest.mark.parametrize("found", ["fptt_dist network 2", None])
def test_another_format_is_refused(tmp_path: Path, found: str | None) -> None:
    save_network(small(), tmp_path, {})
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": found}))
    with pytest.raises(ValueError) as caught:
        load_network(tmp_path)
    assert str(caught.value) == f"{tmp_path}/model.json has format {found!r}, expected 'fptt_dist network 4'"


def test_another_kind_is_refused(tmp_path: Path) -> None:
    save_network(small(), tmp_path, {})
    rewrite(tmp_path, network={"kind": "transformer"})
    with pytest.raises(ValueError) as caught:
        load_network(tmp_path)
    said = f"{tmp_path}/model.json has network.kind 'transformer', expected one of recurrent, awd_lstm"
    assert str(caught.value) == said


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    save_network(small(), tmp_path, {"note": "ü"})
    for name in ("model.safetensors", "model.json"):
        content = (tmp_path / name).read_bytes()
        for place in range(0, len(content), 1 if name == "model.json" else 7):
            changed = bytearray(content)
            changed[place] ^= 1
            (tmp_path / name).write_bytes(changed)
            with pytest.raises(ValueError, match=rf"^{tmp_path}(/model\.| has no network)"):
                load_network(tmp_path)
        (tmp_path / name).write_bytes(content[:-20])
        with pytest.raises(ValueError, match=name):
            load_network(tmp_path)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_network(tmp_path)


def test_what_makes_no_sense_is_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Also with right checksums."""
    save_network(small(), tmp_path, {})
    network = json.loads((tmp_path / "model.json").read_text())["network"]
    changes: dict[str, Any] = {
        "no network": None,
        "a list": [],
        "no kind": {"recurrent": {}},
        "no layer": {**network, "recurrent": None},
        "another layer": {**network, "recurrent": {**network["recurrent"], "cell": "mine"}},
        "another size": {**network, "recurrent": {**network["recurrent"], "hidden": 6}},
        "a huge size": {**network, "recurrent": {**network["recurrent"], "hidden": 2**40}},
        "a size of text": {**network, "recurrent": {**network["recurrent"], "hidden": "5"}},
        "an unknown key": {**network, "more": 1},
    }
    for name, value in changes.items():
        with subtests.test(name):
            rewrite(tmp_path, network=value)
            with pytest.raises(ValueError):
                load_network(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ValueError, match="has no network that can be loaded"):
        load_network(tmp_path)


def test_what_cannot_be_rebuilt_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    own: Any = nn.LSTM(3, 5)
    with pytest.raises(TypeError, match=r"a network of Network \| AwdLstm, not LSTM"):
        save_network(own, tmp_path / "folder", {})
    with pytest.raises(TypeError, match=r"lstm \| gru \| .*, not Identity"):
        save_network(Network(nn.Identity(), 5, 2), tmp_path / "folder", {})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_network(tmp_path)


@pytest.mark.slow
def test_three_lines_load_it_in_a_fresh_process(tmp_path: Path) -> None:
    model = small("lstm", 2, "last")
    save_network(model, tmp_path / "exported", {})
    lines = (
        "from fptt_dist.models import load_network\n"
        "network = load_network('exported')\n"
        "output, state = network(__import__('torch').ones(6, 2, 3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lines + "print(output.tolist(), type(state).__name__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{model(torch.ones(6, 2, 3))[0].tolist()} tuple\n"
    assert [path.name for path in tmp_path.iterdir()] == ["exported"], "loading writes nothing"
