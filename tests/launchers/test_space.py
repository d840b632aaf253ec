"""The file of an array: which runs it asks for, and what is wrong with one that asks for none, or for one too many."""

import logging
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError, load
from fptt_dist.config.cluster import Cluster
from fptt_dist.launchers.slurm import script
from fptt_dist.launchers.space import read_grid


def grid(tmp_path: Path, text: str) -> list[dict[str, object]]:
    (tmp_path / "sweep.yaml").write_text(text)
    return read_grid(tmp_path / "sweep.yaml")


def test_the_last_key_varies_fastest(tmp_path: Path) -> None:
    text = "fptt.alpha: {grid: [0.1, 0.5]}\ntrain.batches: 7\nseed: {grid: [3, 1, 2]}\n"
    points = [(alpha, seed) for alpha in (0.1, 0.5) for seed in (3, 1, 2)]
    expected = [{"fptt.alpha": alpha, "train.batches": 7, "seed": seed} for alpha, seed in points]
    assert grid(tmp_path, text) == expected
    assert [list(run) for run in grid(tmp_path, text)] == [["fptt.alpha", "train.batches", "seed"]] * 6


def test_all_kinds_of_values(tmp_path: Path) -> None:
    runs = grid(
        tmp_path,
        "train.max_norm: {grid: [null, 1.5]}\n"
        "optimizer.betas: [0.8, 0.95]\n"
        "schedule: {grid: [{name: cosine}, {name: constant}]}\n",
    )
    assert len(runs) == 4
    configs = [load("add_task", run) for run in runs]
    assert [config.train.max_norm for config in configs] == [None, None, 1.5, 1.5]
    assert [config.schedule.name for config in configs] == ["cosine", "constant"] * 2
    assert {config.optimizer.betas for config in configs} == {(0.8, 0.95)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {lr: 2}\n", ":2: b needs a value, or {grid: [one, another]}"),
        ("b: {}\n", ":1: b needs a value, or {grid: [one, another]}"),
        ("b: {grid: 3}\n", ":1: b needs a value, or {grid: [one, another]}"),
        ("b: {grid: []}\n", ":1: b needs a value, or {grid: [one, another]}"),
        ("b: {grid: [1], step: 2}\n", ":1: b needs a value, or {grid: [one, another]}"),
        ("b: {grid: {0: 1}}\n", ":1: the key 0 is not text"),
        ("a: 1\n", ": nothing varies: write a key with {grid: [one, another]}"),
        ("a: {grid: [1]}\nb: {grid: [2]}\n", ": nothing varies: write a key with {grid: [one, another]}"),
        ("", ": nothing varies: write a key with {grid: [one, another]}"),
        ("[1, 2]\n", ": not a mapping of keys to values"),
        ("a: {grid: [1, 2]}\na: 3\n", ":2: the key a is given twice, first on line 1"),
        ("a: {grid: [1, 2}\n", ":1: not YAML: "),
    ],
)
def test_a_mistake(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.yaml'}{message}")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grid(tmp_path / "gone.yaml")
    assert str(caught.value) == f"{tmp_path / 'gone.yaml'}: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("sweep", "words", "message"),
    [
        (
            "optimizer.lr: {grid: [0.1, -1]}",
            [],
            "optimizer.lr: -1 is not allowed; allowed: float > 0 (override optimizer.lr=-1)",
        ),
        (
            "train.batch_size: {grid: [4, 1]}",
            [],
            "train.batch_size=1 is the global batch, fewer sequences than the 2 p",
        ),
        (
            "seed: {grid: [1, 2]}\nfptt.alpha: 0.5",
            ["fptt.alpha=0.3"],
            "sweep.yaml: fptt.alpha is set for the whole array: leave it out here, or type no fptt.alpha=…",
        ),
        (
            "run.dir: {grid: [a, b]}",
            [],
            "sweep.yaml: run.dir is set for the whole array: leave it out here, or type no run.dir=…",
        ),
        ("fptt: {alpha: {grid: [0.1, 0.2]}}", [], "sweep.yaml:1: fptt needs a value, or {grid: [one, another]}"),
        ("", [], "sweep.yaml: nothing varies: write a key with {grid: [one, another]}"),
    ],
)
def test_an_array_with_one_mistake(
    sweep: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(sweep)
    with pytest.raises(ConfigError) as caught:
        script("add_task", words, Cluster(tasks_per_node=2), array=Path("sweep.yaml"))
    assert str(caught.value).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_an_array_has_the_name_of_its_folder_and_says_all_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sweep.yaml").write_text("seed: {grid: [1, 2, 3]}\n")
    words = ["optimizer.name=adamw", f"run.dir={tmp_path / 'mine'}"]
    with caplog.at_level(logging.WARNING):
        text = script("add_task", words, Cluster(), array=tmp_path / "sweep.yaml")
    assert "#SBATCH --job-name=mine\n" in text
    assert caplog.messages == ["optimizer.name=adamw replaces adam: dropped optimizer.lr=0.003"]
