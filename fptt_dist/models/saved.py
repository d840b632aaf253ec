"""A trained network on disk, apart from any run: `model.safetensors` and `model.json`."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fptt_dist.models.network import Network
from fptt_dist.models.recurrent import CellName, recurrent_layer

FORMAT = "fptt_dist network 1"


def save_network(model: Network, folder: Path, cell: CellName, description: dict[str, Any]) -> None:
    """Write a network and what rebuilds it.

    Args:
        model: an LSTM, GRU or RNN with its read-out.
        folder: created if needed.
        cell: the recurrent layer's kind.
        description: more that a reader may want (plain JSON values): where it comes from, how inputs are prepared.
    """
    layer = model.recurrent
    shape = {name: getattr(layer, name) for name in ("input_size", "hidden_size", "num_layers", "dropout")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, folder / "model.safetensors"
    )
    values = {"format": FORMAT, "cell": cell, **shape, "outputs": model.readout.out_features, "reads": model.reads}
    values |= {name: value for name, value in description.items() if name not in values}
    (folder / "model.json").write_text(json.dumps(values, indent=1) + "\n")


def load_network(folder: str | Path) -> Network:
    """The network that `fptt-dist export` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: no exported network there.
        ValueError: a file of another format or version.
    """
    folder = Path(folder)
    values = json.loads((folder / "model.json").read_text())
    if values.get("format") != FORMAT:
        raise ValueError(f"{folder}/model.json has format {values.get('format')!r}, expected {FORMAT!r}")
    layer = recurrent_layer(
        values["cell"],
        values["input_size"],
        values["hidden_size"],
        layers=values["num_layers"],
        dropout=values["dropout"],
    )
    model = Network(layer, values["hidden_size"], values["outputs"], reads=values["reads"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
