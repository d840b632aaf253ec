"""A trained network on disk, apart from any run: `model.safetensors`, and `model.json` with the checksums of both."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fptt_dist.files import write_atomic
from fptt_dist.models.awd_lstm import AwdLstm
from fptt_dist.models.network import Network

FORMAT = "fptt_dist network 4"
CHECKSUMS = "sha256"
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
    values |= {name: value for name, value in description.items() if name not in (*values, CHECKSUMS)}
    folder.mkdir(parents=True, exist_ok=True)
    weights, temporary = folder / "model.safetensors", folder / "model.safetensors.tmp"
    try:
        write_tensors({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, temporary)
        os.replace(temporary, weights)
    finally:
        temporary.unlink(missing_ok=True)
    values[CHECKSUMS] = _checksums(folder, json.loads(json.dumps(values)))  # as they are read back
    write_atomic(folder / "model.json", json.dumps(values, indent=1) + "\n")


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
        ValueError: files of another format or version, or that are not as they were written.
    """
    folder = Path(folder)
    try:
        return _load(folder)
    except (KeyError, TypeError, AttributeError, RuntimeError, MemoryError, OverflowError, SafetensorError) as error:
        raise ValueError(f"{folder} has no network that can be loaded: {type(error).__name__}: {error}") from error


def _load(folder: Path) -> Network | AwdLstm:
    try:
        values = json.loads((folder / "model.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder}/model.json is not JSON: {error}") from error
    if values.get("format") != FORMAT:
        raise ValueError(f"{folder}/model.json has format {values.get('format')!r}, expected {FORMAT!r}")
    written = values.get(CHECKSUMS, {})
    for name, checksum in _checksums(folder, values).items():
        if written.get(name) != checksum:
            raise ValueError(f"{folder}/{name} is not as it was written, its checksum differs: export the run again")
    network = dict(values["network"])
    kind = network.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"{folder}/model.json has network.kind {kind!r}, expected one of {', '.join(KINDS)}")
    model = KINDS[kind].rebuild(**network)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _checksums(folder: Path, values: dict[str, Any]) -> dict[str, str]:
    """Return the checksums of both files: of the tensors' bytes, and of the values besides the checksums."""
    with (folder / "model.safetensors").open("rb") as file:
        tensors = hashlib.file_digest(file, "sha256").hexdigest()
    others = {name: value for name, value in values.items() if name != CHECKSUMS}
    text = json.dumps(others, sort_keys=True)
    return {"model.safetensors": tensors, "model.json": hashlib.sha256(text.encode()).hexdigest()}
