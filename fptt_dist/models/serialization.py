"""A trained network on disk, apart from any run: `model.safetensors` and `model.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fptt_dist.models.awd_lstm import AwdLstm
from fptt_dist.models.network import Network

FORMAT = "fptt_dist network 3"
KINDS: dict[str, type[Network | AwdLstm]] = {"recurrent": Network, "awd_lstm": AwdLstm}


def save_network(model: Network | AwdLstm, folder: Path, description: dict[str, Any]) -> None:
    """Write a network and the description that rebuilds it.

    Args:
        model: a network of this package.
        folder: created if needed.
        description: further metadata (plain JSON values): where it comes from, how inputs are prepared.

    Raises:
        TypeError: a network, or a recurrent layer, that is not of this package.
    """
    kind = next((name for name, network in KINDS.items() if isinstance(model, network)), None)
    if kind is None:
        raise TypeError(
            f"a network of {' | '.join(kind.__name__ for kind in KINDS.values())}, not {type(model).__name__}"
        )
    values = {"format": FORMAT, "network": {"kind": kind, **model.describe()}}
    values |= {name: value for name, value in description.items() if name not in values}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, folder / "model.safetensors"
    )
    (folder / "model.json").write_text(json.dumps(values, indent=1) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the usual permissions of new files; the library makes its files private.

    Raises:
        SafetensorError: it could not be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path)
    path.chmod(mode)


def load_network(folder: str | Path) -> Network | AwdLstm:
    """Load the network that `fptt-dist export` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: no exported network there.
        ValueError: a file of another format or version.
    """
    folder = Path(folder)
    values = json.loads((folder / "model.json").read_text())
    if values.get("format") != FORMAT:
        raise ValueError(f"{folder}/model.json has format {values.get('format')!r}, expected {FORMAT!r}")
    network = dict(values["network"])
    kind = network.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"{folder}/model.json has network.kind {kind!r}, expected one of {', '.join(KINDS)}")
    model = KINDS[kind].rebuild(**network)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
