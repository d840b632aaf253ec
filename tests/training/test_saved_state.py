"""Reading a checkpoint's weights: shards redistributed, and buffers, which each shard has in full."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fptt_dist.parallel import ParameterShard
from fptt_dist.parallel.placement.shard import full_shard
from fptt_dist.training.checkpoint.reader import MODEL, OPTIMIZER, PIECES, SavedState
from fptt_dist.training.checkpoint.state_dict import joined


def written(folder: Path, weight: Tensor, start: int, buffer: Tensor) -> Path:
    """A worker's part of a parameter `w`, from `start`, and a buffer `b`."""
    folder.mkdir()
    save_file({"w": weight, "b": buffer.reshape(-1)}, folder / MODEL)
    save_file({"w/step": torch.tensor(3.0), "w/center": 10.0 * weight}, folder / OPTIMIZER)
    (folder / PIECES).write_text(json.dumps({"w": [start, start + len(weight)]}))
    return folder


def test_any_run_of_elements_is_read_from_any_parts(tmp_path: Path) -> None:
    w, b = torch.arange(12.0).view(4, 3), torch.arange(6.0).view(2, 3)
    cuts = [0, 5, 5, 12]  # the second worker has none
    parts = [
        written(tmp_path / str(i), w.reshape(-1)[start:stop].clone(), start, b)
        for i, (start, stop) in enumerate(pairwise(cuts))
    ]
    saved = SavedState([parts], [1.0])
    for start in range(12):
        for stop in range(start, 13):
            piece = ParameterShard("w", (4, 3), start, torch.zeros(stop - start), slice(0, stop - start))
            assert torch.equal(saved.weight(piece), w.reshape(-1)[start:stop])
            entries = dict(saved.entries(piece))
            assert torch.equal(entries["center"], 10.0 * w.reshape(-1)[start:stop])
            assert entries["step"] == 3.0
    assert torch.equal(saved.weight(full_shard("b", b)).view(2, 3), b)


def test_copies_are_averaged_by_their_shares_buffers_too(tmp_path: Path) -> None:
    w, b = torch.ones(4), torch.ones(2)
    copies = [[written(tmp_path / str(i), (i + 1) * w, 0, (i + 1) * b)] for i in range(2)]
    saved = SavedState(copies, [0.25, 0.75])
    assert torch.equal(saved.weight(full_shard("w", w)), torch.full((4,), 1.75))
    assert torch.equal(saved.weight(full_shard("b", b)), torch.full((2,), 1.75))


def test_plain_values_of_other_parts_and_copies_are_joined() -> None:
    """A parameter may be in one worker's part alone, and a reference rate larger where there was no gradient."""
    groups = [{"lr": 0.1}]
    first = {"param_groups": groups, "entries": {"a": {"reference_rate": 0.25, "momentum_buffer": None}}}
    second = {"param_groups": groups, "entries": {"a": {"reference_rate": 0.5}, "b": {"reference_rate": 0.125}}}
    rates = {"a": {"reference_rate": 0.5, "momentum_buffer": None}, "b": {"reference_rate": 0.125}}
    assert joined([first, second]) == joined([first, second, first]) == {"param_groups": groups, "entries": rates}
    assert joined([first]) == first
