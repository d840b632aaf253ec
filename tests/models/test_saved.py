"""A network on disk gives what it gave before, in a fresh process too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from fptt_dist.models import CellName, Network, load_network, recurrent_layer, save_network

Reads = Literal["last", "every"]


def network(cell: CellName = "lstm", layers: int = 1, reads: Reads = "every", dropout: float = 0.0) -> Network:
    torch.manual_seed(3)
    return Network(recurrent_layer(cell, 3, 5, layers=layers, dropout=dropout), 5, 2, reads=reads)


@pytest.mark.parametrize("reads", ["last", "every"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_outputs_are_the_same_to_the_bit(tmp_path: Path, cell: CellName, layers: int, reads: Reads) -> None:
    model, x = network(cell, layers, reads, dropout=0.5 if layers == 2 else 0.0), torch.randn(7, 4, 3)
    save_network(model, tmp_path / "some" / "folder", cell, {"task": "none"})
    torch.manual_seed(99)
    loaded = load_network(tmp_path / "some" / "folder")
    assert not loaded.training
    output, state = loaded(x)
    expected, expected_state = model.eval()(x)
    assert output.shape == (7 if reads == "every" else 1, 4, 2)
    assert torch.equal(output, expected)
    pairs = zip(state, expected_state, strict=True) if cell == "lstm" else [(state, expected_state)]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(loaded(x[3:], loaded(x[:3])[1])[0][-1], expected[-1])
    assert {name: (p.dtype, p.requires_grad) for name, p in loaded.named_parameters()} == {
        name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()
    }


def test_dropout_is_kept_for_who_trains_on(tmp_path: Path) -> None:
    save_network(network("gru", 2, dropout=0.25), tmp_path, "gru", {})
    loaded = load_network(tmp_path)
    assert loaded.recurrent.dropout == 0.25
    x = torch.randn(7, 4, 3)
    assert torch.equal(loaded(x)[0], loaded(x)[0])
    loaded.train()
    assert not torch.equal(loaded(x)[0], loaded(x)[0])


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    model = network("gru", 2, "last")
    save_network(model, tmp_path, "gru", {"task": {"name": "pixels"}, "weights": "averaged"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "format": "fptt_dist network 1",
        "cell": "gru",
        "input_size": 3,
        "hidden_size": 5,
        "num_layers": 2,
        "dropout": 0.0,
        "outputs": 2,
        "reads": "last",
        "task": {"name": "pixels"},
        "weights": "averaged",
    }
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], p) for name, p in model.state_dict().items())


def test_a_description_does_not_replace_what_rebuilds_the_network(tmp_path: Path) -> None:
    model, x = network("lstm", reads="last"), torch.randn(7, 4, 3)
    save_network(model, tmp_path, "lstm", {"reads": "every", "hidden_size": 7, "note": "kept"})
    assert torch.equal(load_network(tmp_path)(x)[0], model(x)[0])
    assert json.loads((tmp_path / "model.json").read_text())["note"] == "kept"


@pytest.mark.parametrize("found", ["fptt_dist network 2", None])
def test_another_format_is_refused(tmp_path: Path, found: str | None) -> None:
    save_network(network(), tmp_path, "lstm", {})
    path = tmp_path / "model.json"
    values = json.loads(path.read_text())
    values["format"] = found
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as caught:
        load_network(tmp_path)
    assert str(caught.value) == f"{tmp_path}/model.json has format {found!r}, expected 'fptt_dist network 1'"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_network(tmp_path)


def test_three_lines_load_it_in_a_fresh_process(tmp_path: Path) -> None:
    model = network("lstm", 2, "last")
    save_network(model, tmp_path / "exported", "lstm", {})
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
