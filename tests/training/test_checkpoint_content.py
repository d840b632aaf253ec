"""A checkpoint with right checksums whose content makes no sense is skipped, as a damaged one is."""

import functools
import json
import math
import operator
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fptt_dist.config import Config, ConfigError
from fptt_dist.tasks import Pixels
from fptt_dist.training.checkpoint.content import ContentCheck
from fptt_dist.training.checkpoint.store import CheckpointStore, entry
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run, open_run
from fptt_dist.training.setup.task_factory import build_task
from tests.training.helpers import checkpoints, resumed, tiny, trainer_for, write_manifest


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change the values of a `*.json` file, or the tensors of a `*.safetensors` file, and make the manifest right."""

    def harm(folder: Path) -> None:
        path = folder / name
        content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
        change(content)
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            path.write_text(json.dumps(content))
        write_manifest(folder)

    return harm


def set_value(name: str, *keys: str, to: object) -> Callable[[Path], None]:
    """Replace the value of a `*.json` file at the end of `keys`."""
    return edit(name, lambda values: functools.reduce(operator.getitem, keys[:-1], values).update({keys[-1]: to}))


def set_tensor(name: str, key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return edit(name, lambda tensors: tensors.update({key: change(tensors[key])}))


def set_position(key: str, to: object) -> Callable[[Path], None]:
    return set_value("state.json", "position", key, to=to)


def by_three(folder: Path) -> None:
    write_manifest(folder, world=3)


RANK, MOMENT = "rank/0/state.json", "readout.weight/exp_avg"
NONSENSE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no files": (
        lambda f: write_manifest(f, files={}),
        "manifest.json lists other files: model.safetensors, optimizer",
    ),
    "a file elsewhere": (
        lambda f: write_manifest(f, files={"../latest": entry(f.parent / "latest")}),
        "manifest.json lists other files: ../latest",
    ),
    "other workers": (by_three, "1 shares of 3 workers"),
    "other batches": (lambda f: (f / "state.json").write_text(json.dumps([])) and write_manifest(f), "AttributeError"),
    "a shape": (
        set_tensor("model.safetensors", "readout.weight", lambda w: w[:, :-1].contiguous()),
        r"readout.weight has shape \(1, 3\)",
    ),
    "a type": (set_tensor("model.safetensors", "readout.weight", Tensor.double), "readout.weight is torch.float64"),
    "NaN": (set_tensor("model.safetensors", "readout.bias", lambda b: b * math.nan), "readout.bias is not finite"),
    "no weight": (
        edit("model.safetensors", lambda t: t.pop("readout.bias")),
        "readout.bias/center belongs to no parameter",
    ),
    "a weight too many": (edit("model.safetensors", lambda t: t.update(w=torch.ones(1))), "has other names"),
    "a moment's shape": (set_tensor("optimizer.safetensors", MOMENT, lambda m: m[:, 1:].clone()), "exp_avg has shape"),
    "a moment's type": (set_tensor("optimizer.safetensors", MOMENT, Tensor.int), "exp_avg is torch.int32"),
    "a center alone": (edit("optimizer.safetensors", lambda t: t.pop("readout.bias/scaled_dual")), "center alone"),
    "a permutation": (
        edit("task.safetensors", lambda t: t.update(permutation=torch.arange(3))),
        "task.safetensors: it ",
    ),
    "a random stream": (set_tensor("rank/0/random.safetensors", "torch", lambda s: s[1:].clone()), "RuntimeError"),
    "numpy's stream": (set_value(RANK, "random", "numpy", to=[[1, 2], 0, 0, 0.0]), "IndexError"),
    "a carried state": (set_value(RANK, "carried", to={"list": [{"tensor": "c"}]}), "carried.safetensors has no c"),
    "a learning rate": (
        edit(RANK, lambda v: v["optimizer"]["param_groups"][0].update(lr="1")),
        "the learning rate is '1'",
    ),
    "a batch below 0": (set_position("batch", -5), "position.batch is -5"),
    "another batch": (set_position("batch", 3), "position.batch=3 in step-00000004"),
    "a cursor past the end": (set_position("cursor", 10**9), "position.cursor=1000000000"),
    "a cursor between": (set_position("cursor", 3), "position.cursor=3"),
    "an epoch to come": (set_position("epoch", 9), "'epoch': 9"),
    "other sequences": (set_position("sequences", 15), "15 sequences in 4 batches of 4"),
    "a time of no length": (set_position("seconds", math.nan), "position.seconds is nan"),
    "no position": (set_value("state.json", "position", to=None), "AttributeError"),
    "a best to come": (
        set_value("state.json", "best", to={"batch": 9, "value": 1.0, "metrics": {}, "since": 0}),
        "has not been trained yet",
    ),
    "shares": (set_value("state.json", "shares", to=[0.5]), r"shares=\[0.5\]"),
    "no key": (edit("state.json", lambda values: values.pop("validations")), "state.json has the keys"),
    "a scheduler": (set_value("state.json", "schedulers", to={"lr": 3, "alpha": {}}), "schedulers have no values"),
}


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """A run with checkpoints after batches 2 and 4, to be resumed."""
    config = tiny(tmp_path / "run", {"checkpoint.every_batches": 2}, batches=4)
    train(config)
    (tmp_path / "run/result.json").unlink()
    return resumed(config)


def test_a_checkpoint_that_makes_no_sense_is_skipped(
    run: Config, subtests: pytest.Subtests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When a run is resumed, and when its latest checkpoint is evaluated or exported."""
    store = trainer_for(run).store
    read_only = CheckpointStore(store.root, check=ContentCheck(build_task(run), run.train.batch_size))
    kept = Path(shutil.copytree(store.root, tmp_path / "kept"))
    for name, (harm, problem) in NONSENSE.items():
        with subtests.test(change=name):
            shutil.rmtree(store.root)
            shutil.copytree(kept, store.root)
            harm(store.path_of(4))
            for each in (store, read_only):
                caplog.clear()
                assert each.newest() == each.path_of(2)
                (said,) = caplog.messages
                assert re.search(rf"step-00000004 is skipped, the previous one is used: .*{problem}", said), said


@pytest.mark.parametrize("name", ["no files", "a shape", "a cursor past the end"])
def test_the_one_before_is_used(name: str, run: Config, tmp_path: Path) -> None:
    earlier, newest = checkpoints(tmp_path / "run")
    NONSENSE[name][0](newest)
    assert trainer_for(run).state.position.batch == 2
    center = load_file(earlier / "optimizer.safetensors")
    for parameter, weight in open_run(tmp_path / "run", "latest").network.named_parameters():
        assert torch.equal(weight, center[f"{parameter}/center"])


def test_groups_of_parameters_are_the_optimizers(run: Config, tmp_path: Path) -> None:
    more = edit(RANK, lambda values: values["optimizer"]["param_groups"].append({"lr": 1, "alpha": 1}))
    more(checkpoints(tmp_path / "run")[-1])
    assert trainer_for(run).state.position.batch == 2


def test_a_pixel_comes_once() -> None:
    pixels = Pixels.__new__(Pixels)
    pixels.permutation = torch.arange(4)
    assert pixels.validate_state({"permutation": torch.tensor([2, 0, 3, 1])}) is None
    for wrong in ([2, 0, 3, 3], [1, 2, 3, 4], [-1, 0, 1, 2], [0, 1, 2]):
        assert pixels.validate_state({"permutation": torch.tensor(wrong)}) is not None


def test_another_type_of_the_same_shapes_is_another_model(run: Config, tmp_path: Path) -> None:
    """It fits its own state.json, so nothing is damaged: the layer has changed."""
    newest = checkpoints(tmp_path / "run")[-1]
    set_tensor("model.safetensors", "readout.bias", Tensor.double)(newest)
    set_value("state.json", "dtypes", "readout.bias", to="float64")(newest)
    said = r"readout.bias: \(1,\) float64 in the checkpoint, \(1,\) float32 in the model\nType the model's old keys"
    for use in (lambda: trainer_for(run), lambda: evaluate_run(tmp_path / "run", "latest")):
        with pytest.raises(ConfigError, match=said):
            use()


def test_the_best_checkpoint_must_make_sense_too(run: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = CheckpointStore(tmp_path / "run/checkpoints").resolve_pointer("best")
    assert best is not None
    set_position("updates", -1)(best)
    with pytest.raises(ConfigError, match="has no complete best checkpoint"):
        evaluate_run(tmp_path / "run")
    assert "position.updates is -1" in caplog.text
