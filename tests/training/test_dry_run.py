"""A dry run builds all, says what it takes, and writes nothing."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import ConfigError, load
from fptt_dist.config.loader import PACKAGED
from fptt_dist.training.run import try_out
from tests.training.helpers import MEMORY, tiny


def parameters(hidden: int) -> int:
    return 4 * hidden * (2 + hidden) + 8 * hidden + hidden + 1


@pytest.mark.parametrize(
    ("optimizer", "moments", "steps"),
    [
        ({"optimizer.name": "adam"}, 2, True),
        ({"optimizer.name": "adamw", "optimizer.amsgrad": True}, 3, True),
        ({"optimizer.name": "rmsprop"}, 1, True),
        ({"optimizer.name": "rmsprop", "optimizer.momentum": 0.9}, 2, True),
        ({"optimizer.name": "sgd"}, 0, False),
        ({"optimizer.name": "sgd", "optimizer.momentum": 0.9}, 1, False),
    ],
)
def test_memory_of_the_state_is_exact(optimizer: dict[str, Any], moments: int, steps: bool, tmp_path: Path) -> None:
    tried = try_out(tiny(tmp_path / "run", {**optimizer, "model.hidden": 8}))
    count = parameters(8)
    assert tried.parameters == {"total": count, "recurrent": count - 9}
    assert tried.memory["weights"] == tried.memory["gradients"] == 4 * count
    assert tried.memory["W̄ and u"] == 2 * 4 * count
    assert tried.memory["moments of the base optimizer"] == moments * 4 * count + (6 * 4 if steps else 0)
    assert tried.memory["the batch"] == 12 * 4 * 2 * 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "windows", "first", "updates"),
    [
        ({}, [(0, 4), (4, 8), (8, 12)], 4, 3),
        ({"fptt.windows": 5}, [(0, 2), (2, 4), (4, 7), (7, 9), (9, 12)], 2, 5),
        ({"algorithm": "bptt"}, [(0, 12)], 12, 1),
        ({"algorithm": "bptt_aux"}, [(0, 4), (4, 8), (8, 12)], 12, 1),
        ({"algorithm": "tbptt"}, [(0, 4), (4, 8), (8, 12)], 4, 1),
        ({"fptt.update": "algorithm2"}, [(0, 4), (4, 8), (8, 12)], 4, 3),
        ({"train.micro_batch_size": 2}, [(0, 4), (4, 8), (8, 12)], 4, 3),
    ],
)
def test_shapes_and_windows(
    overrides: dict[str, Any], windows: list[tuple[int, int]], first: int, updates: int, tmp_path: Path
) -> None:
    tried = try_out(tiny(tmp_path / "run", overrides))
    part = overrides.get("train.micro_batch_size", 4)
    assert tried.windows == windows
    assert tried.updates_per_batch == updates
    assert list(tried.shapes.values()) == [(12, 4, 2), (first, part, 2), (4, 1), (1, part, 1)]
    assert tried.loss > 0
    assert tried.lines()[-1] == "nothing was written"


def test_activations_grow_with_the_graph(tmp_path: Path) -> None:
    def activations(**more: Any) -> int:
        overrides = {"task.length": 96, **more}
        return try_out(tiny(tmp_path / "run", overrides)).memory["activations of one graph"]

    whole = activations(algorithm="bptt")
    assert whole > activations() * 2.5
    assert whole < activations() * 3.5


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is more than the 20 training sequences"):
        try_out(tiny(tmp_path / "run", {"train.batch_size": 24}))


def write_images(folder: Path, name: str, count: int) -> None:
    """A data set of grey images in the files of MNIST."""
    folder.mkdir(exist_ok=True)
    images, labels = (2051).to_bytes(4, "big"), (2049).to_bytes(4, "big")
    size = count.to_bytes(4, "big")
    side = (28).to_bytes(4, "big")
    (folder / f"{name}-images-idx3-ubyte").write_bytes(images + size + side + side + bytes([127]) * (count * 28 * 28))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels + size + bytes(n % 10 for n in range(count)))


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        write_images(Path(folder) / "mnist", "train", 5200)
        write_images(Path(folder) / "mnist", "t10k", 10)
        yield Path(folder)


@pytest.mark.parametrize("path", sorted(PACKAGED.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_configuration_runs(
    path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = try_out(load(path, {"device": "cpu", "data.root": str(data)}))
    assert tried.parameters["total"] > tried.parameters["recurrent"] > 0
    assert math.isfinite(tried.loss)
    assert list(tmp_path.iterdir()) == []
