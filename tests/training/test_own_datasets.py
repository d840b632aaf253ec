"""Runs on a user's Dataset, that of docs/own-task.md: exact resume, any number of data workers, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.tasks import DataError
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.export import export_run
from tests.docs.snippets import snippets
from tests.program import ROOT
from tests.training.helpers import assert_same_run, result, resumed, train_until


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    return write_tones(tmp_path)


def write_tones(folder: Path) -> Path:
    """Write the page's example as `tones.py`, with fewer items."""
    [text] = [each.text for each in snippets((ROOT / "docs/own-task.md").read_text()) if "class Tones" in each.text]
    file = folder / "tones.py"
    file.write_text(text.replace("(600,)", "(60,)"))
    return file


def own(file: Path, folder: Path, overrides: dict[str, Any] | None = None, *, batches: int = 10) -> Config:
    """A run of a second."""
    keys = {
        "task": {"name": f"{file}:Tones", "length": 40, "target": "class"},
        "model": {"hidden": 4, "layers": 2, "dropout": 0.1},
        "fptt.windows": 3,
        "optimizer.lr": 1e-2,
        "train.batch_size": 12,  # 5 batches an epoch
        "logging": {"every_batches": 1, "tensorboard": False},
        "device": "cpu",
        "run.dir": str(folder),
    }
    return apply_overrides(apply_overrides(Config(train=TrainSection(max_batches=batches)), keys), overrides or {})


def test_the_example_is_short(tones: Path) -> None:
    assert len([line for line in tones.read_text().splitlines() if line]) < 15


def test_interrupted_is_uninterrupted(tones: Path, tmp_path: Path) -> None:
    train(own(tones, tmp_path / "straight"))
    parts = own(tones, tmp_path / "parts")
    train_until(parts, 7)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    done = result(tmp_path / "parts")
    assert (done["task"], done["metric"]) == ("Tones", "accuracy")
    assert evaluate_run(tmp_path / "parts")["test"] == pytest.approx(done["value"])
    export_run(tmp_path / "parts", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "model.json").read_text())["input"]
    assert described == {"target": "class", "classes": ["0", "1"]}


@pytest.mark.slow  # 15 s: three processes are started
def test_augmentation_does_not_depend_on_the_number_of_data_workers(tones: Path, tmp_path: Path) -> None:
    for workers in (0, 1):
        train(own(tones, tmp_path / str(workers), {"data.workers": workers}))
    parts = own(tones, tmp_path / "parts", {"data.workers": 2})
    train_until(parts, 3)
    train(resumed(parts, **{"data.workers": 0}))
    assert_same_run(tmp_path / "0", tmp_path / "1")
    assert_same_run(tmp_path / "0", tmp_path / "parts")


def test_a_run_on_other_items_is_not_resumed(tones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = own(tones, tmp_path / "run")
    train_until(config, 2)
    before = sorted((tmp_path / "run").rglob("*"))
    tones.write_text(tones.read_text().replace("manual_seed(len(split))", "manual_seed(3)"))
    with pytest.raises(ConfigError) as caught:
        train(resumed(config))
    said = f"was trained on other examples than those that {tones}:Tones has now"
    assert said in f"{caplog.text}\n{caught.value}"
    assert sorted((tmp_path / "run").rglob("*")) == before


MISTAKES: list[tuple[dict[str, Any], str, str, str]] = [  # keys, text of the file, what stands there instead, message
    (
        {"task.target": None},
        "",
        "",
        r"of .* is no class derived from fptt_dist\.Task; of a Dataset, .*target",
    ),
    (
        {"task.target": None, "task.metrics": ["mae"]},
        "",
        "",
        r"^task\.metrics=\[mae\] is for a Dataset, .* leave it",
    ),
    ({"task.options.split": "train"}, "", "", r"^task\.options\.split: a Dataset is made for each split, "),
    ({"task.options.nois": 1}, "", "", r"Tones\(split='train', nois=1\) failed: TypeError: .*'nois'"),
    ({"task.length": 39}, "", "", r"tones\.py: Tones\(split='\w+'\)\[\d+\] has 40 steps, .* type task\.length=40"),
    ({"task.metrics": ["mae"]}, "", "", r"^task\.metrics=\[mae\]: mae does not fit targets of the kind class"),
    ({"model.embedding": 3}, "", "", r"^model\.embedding=3 is for words .* no vocabulary_size: type model\.embedding"),
    (
        {"data.partition": "by_label", "task.target": "value"},
        "",
        "",
        r"^data\.partition=by_label: .*not one label",
    ),
    ({}, "class Tones", "class Tone", r"has no class or function Tones; it has Tone$"),
    ({}, "Tones(Dataset)", "Tones(fptt_dist.Task)", r"it is a Task, whose loss .*: leave task\.target=class out"),
    ({}, "return tone", "return {}[index]", r"Tones\(split='train'\)\[0\] failed: KeyError: 0 \(tones\.py, line 17\)"),
]


def test_mistakes_leave_no_folder(tones: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    good = tones.read_text().replace("import torch\n", "import torch, fptt_dist\n", 1)
    for keys, old, new, said in MISTAKES:
        with subtests.test(said=said):
            tones.write_text(good.replace(old, new, 1))
            with pytest.raises((ConfigError, DataError), match=said) as caught:
                train(own(tones, tmp_path / "run", keys))
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "run").exists()


def test_seed_is_an_option_like_others(tones: Path, tmp_path: Path) -> None:
    tones.write_text(tones.read_text().replace("noise: float = 0.3", "seed: int").replace("noise if", "seed if"))
    train(own(tones, tmp_path / "run", {"task.options.seed": 2}, batches=1))
    assert (tmp_path / "run" / "result.json").is_file()
