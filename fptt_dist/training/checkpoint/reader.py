"""The weights and the optimizer state of a checkpoint, whichever workers wrote which shard of them.

A copy of the model is in one folder, or sharded over several: then each holds a range of elements of each parameter
(flat, in memory order), which its `pieces.json` lists. So any shard of any parameter can be read, for any number of
workers and any strategy. Where workers had copies of their own, their weighted mean is read.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from fptt_dist.algorithm.fptt import CENTER
from fptt_dist.parallel import ParameterShard
from fptt_dist.training.checkpoint.store import read_tensors, read_values

MODEL, OPTIMIZER, PIECES = "model.safetensors", "optimizer.safetensors", "pieces.json"


def rank_folder(folder: Path, rank: int) -> Path:
    """Return the folder of what a worker wrote for itself alone."""
    return folder / "rank" / str(rank)


def copies_of(folder: Path, values: dict[str, Any]) -> list[tuple[list[int], list[Path]]]:
    """Return each copy's workers, and the folders that hold it; `values`: the content of `state.json`."""
    if values["replicated"]:
        return [(list(range(len(values["shares"]))), [folder])]
    return [(ranks, [rank_folder(folder, rank) for rank in ranks]) for ranks in values["copies"]]


def plain_optimizer_values(
    folder: Path, values: dict[str, Any], ranks: list[int] | None = None
) -> list[dict[str, Any]]:
    """Return what the optimizer's state has besides tensors, of each worker that wrote a part of it.

    `ranks`: of one copy's workers; None: of all.
    """
    if values["replicated"]:
        ranks = [0]
    elif ranks is None:
        ranks = list(range(len(values["shares"])))
    return [read_values(rank_folder(folder, rank), "state.json")["optimizer"] for rank in ranks]


def described(pieces: list[ParameterShard]) -> dict[str, list[int]]:
    """Return the content of `pieces.json`: the range of elements of each parameter in this folder."""
    return {piece.name: [piece.start, piece.stop] for piece in pieces}


class SavedState:
    """Read access to a checkpoint's weights and optimizer state.

    Args:
        copies: the folders of each copy.
        shares: the copies' shares of the batch; they sum to 1.
        centers: W̄ by parameter, where it is not the copies' mean.
    """

    def __init__(self, copies: list[list[Path]], shares: list[float], centers: dict[str, Tensor] | None = None) -> None:
        self._centers = centers or {}
        self._copies = [[_Part(folder) for folder in copy] for copy in copies]
        self._shares = shares
        self._keys: dict[str, list[str]] = {}
        for part in (part for copy in self._copies for part in copy):
            for name in part.names(OPTIMIZER):
                parameter, _, key = name.rpartition("/")
                if key not in self._keys.setdefault(parameter, []):
                    self._keys[parameter].append(key)

    @classmethod
    def mean_of(cls, folder: Path, values: dict[str, Any]) -> Self:
        """Return the mean of a checkpoint's copies, weighted by shares of the batch, with Z for W̄ if it has Z."""
        copies = copies_of(folder, values)
        shares = [math.fsum(values["shares"][rank] for rank in ranks) for ranks, _ in copies]
        shared = read_tensors(folder, "sync.safetensors").items()
        centers = {name.removeprefix("center/"): z for name, z in shared if name.startswith("center/")}
        return cls([folders for _, folders in copies], shares, centers)

    def weight(self, piece: ParameterShard) -> Tensor:
        """Return the elements of the parameter or buffer that `piece` names (flat)."""
        value = self._mean(MODEL, piece.name, piece)
        assert value is not None
        return value

    def entries(self, piece: ParameterShard) -> Iterator[tuple[str, Tensor]]:
        """Yield key and value of the optimizer state for `piece`: flat, or 0-dimensional where it is one number."""
        for key in self._keys.get(piece.name, []):
            value = self._mean(OPTIMIZER, f"{piece.name}/{key}", piece)
            if key == CENTER and piece.name in self._centers:
                value = self._centers[piece.name].reshape(-1)[piece.start : piece.stop]
            if value is not None:
                yield key, value

    def _mean(self, file: str, name: str, piece: ParameterShard) -> Tensor | None:
        """Return the mean over the copies that have it (a worker without a gradient so far has no optimizer state)."""
        read = [(_read(copy, file, name, piece), share) for copy, share in zip(self._copies, self._shares, strict=True)]
        held = [(value, share) for value, share in read if value is not None]
        if len(held) < 2:
            return held[0][0] if held else None
        if name.endswith("/step"):
            return torch.stack([value for value, _ in held]).amax(0)
        total = sum(share for _, share in held)
        sum_ = sum((value.double() * (share / total) for value, share in held), torch.zeros(()))
        return sum_.to(held[0][0].dtype)


class _Part:
    """One folder with a full copy, or a shard of it."""

    def __init__(self, folder: Path) -> None:
        self.pieces: dict[str, list[int]] | None = None
        if (folder / PIECES).is_file():
            self.pieces = read_values(folder, PIECES)
        self._files: dict[str, Any] = {
            file: safe_open(folder / file, "pt") for file in (MODEL, OPTIMIZER) if (folder / file).is_file()
        }

    def names(self, file: str) -> set[str]:
        """Return the names of the tensors in a file."""
        return set(self._files[file].keys()) if file in self._files else set()

    def whole(self, file: str, name: str) -> Tensor:
        """Read a tensor as it is in the file."""
        return self._files[file].get_tensor(name)

    def run(self, file: str, name: str, start: int, stop: int) -> Tensor:
        """Read a range of elements of a flat tensor, without the rest."""
        return self._files[file].get_slice(name)[start:stop]

    def is_number(self, file: str, name: str) -> bool:
        """Return whether a tensor is 0-dimensional."""
        return self._files[file].get_slice(name).get_shape() == []


def _read(copy: list[_Part], file: str, name: str, piece: ParameterShard) -> Tensor | None:
    """Read the elements of `piece`, assembled from the folders that have them; None where there are none."""
    found: Tensor | None = None
    for part in copy:
        if name not in part.names(file):
            continue
        if part.is_number(file, name):
            return part.whole(file, name)
        if part.pieces is None or piece.name not in part.pieces:  # a buffer, which all have in full
            return part.whole(file, name).reshape(-1)[piece.start : piece.stop]
        start, stop = part.pieces[piece.name]
        first, last = max(start, piece.start), max(start, min(stop, piece.stop))
        value = part.run(file, name, min(first, last) - start, last - start)
        if found is None:
            found = torch.empty(piece.stop - piece.start, dtype=value.dtype)
        if first < last:
            found[first - piece.start : last - piece.start] = value
    return found
