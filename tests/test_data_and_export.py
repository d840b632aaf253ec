"""Real files in, a trained network out: the verbs `data`, `export` and `doctor`, and a run on images."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fptt_dist import __version__
from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.models import load_network
from fptt_dist.parallel import Communicator, LaunchEnvironment
from fptt_dist.tasks import Pixels
from fptt_dist.tasks.data.datasets import DATASETS
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import open_run
from fptt_dist.training.setup.engine import build_engine
from fptt_dist.training.setup.task_factory import build_task
from fptt_dist.training.tools.export import export_run
from tests.tasks.test_pixels import some_images, write_images
from tests.test_cli import Command, fptt_dist
from tests.training.helpers import assert_same_run, isolated, records, result, resumed, tiny, train_until
from tests.training.texts import AWD, tiny_text

__all__ = ["fptt_dist"]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 training and 20 test images of noise, with labels that the first row's brightness gives away."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    for prefix, count in (("train", 80), ("t10k", 20)):
        images = some_images(count, len(prefix))
        labels = np.arange(count) % 10
        images[:, 0, :] = labels[:, None] * 25
        write_images(folder / "mnist", prefix, images, labels.astype(np.uint8))
    return folder


def on_images(run: Path, root: Path, overrides: dict[str, Any] | None = None, *, batches: int = 6) -> Config:
    base = Config(train=TrainSection(max_batches=batches))
    keys = {
        "task": {"name": "pixels", "pixels_per_step": 28, "permutation": 3, "validation": 20},
        "model.hidden": 6,
        "fptt.windows": 4,
        "optimizer.lr": 0.01,
        "train.batch_size": 12,
        "logging.every_batches": 1,
        "logging.tensorboard": False,
        "data.root": str(root),
        "run.dir": str(run),
        "device": "cpu",
    }
    return apply_overrides(base, {**keys, **(overrides or {})})


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with each estimate, in a folder of its name."""
    folder = tmp_path_factory.mktemp("straight")
    with isolated():
        for estimate in ("uniform", "class_mean", "example"):
            train(on_images(folder / estimate, root, {"task.target_estimate": estimate}, batches=12))
        keys = {"task.target_estimate": "class_mean", "task.loss_steps": "all"}
        train(on_images(folder / "every", root, keys, batches=12))
    return folder


def test_a_run_on_images_resumes_exactly_with_each_estimate_that_learns(
    straight: Path, root: Path, tmp_path: Path
) -> None:
    for name, estimate, reads in (("example", "example", "last"), ("every", "class_mean", "all")):
        parts = on_images(
            tmp_path / name, root, {"task.target_estimate": estimate, "task.loss_steps": reads}, batches=12
        )
        train_until(parts, 7)  # in the second epoch, when the first one's table is in use
        train(resumed(parts))
        assert_same_run(straight / name, tmp_path / name)


def test_the_estimates_differ_after_the_first_epoch(straight: Path) -> None:
    losses = [
        [record["loss"] for record in records(straight / estimate, "train")]
        for estimate in ("uniform", "class_mean", "example")
    ]
    assert len({tuple(values[:5]) for values in losses}) == 1, "uniform in the first epoch"
    assert len({values[-1] for values in losses}) == 3


def test_the_accuracy_of_each_window_is_recorded(straight: Path) -> None:
    for record in records(straight / "uniform", "train"):
        assert len(record["window_accuracy"]) == len(record["window_losses"]) == 4
        assert all(
            0.0 <= value <= 1.0 and value * 12 == pytest.approx(round(value * 12))
            for value in record["window_accuracy"]
        )


def test_an_estimate_by_example_needs_workers_that_keep_their_examples(
    root: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    two = LaunchEnvironment(0, 2, 0, "test"), Communicator(0, 2)
    for strategy in ("auto", "data_parallel", "consensus", "hierarchical"):
        config = on_images(tmp_path / "run", root, {"task.target_estimate": "example", "parallel.strategy": strategy})
        with subtests.test(strategy):
            with pytest.raises(ConfigError) as caught:
                build_engine(config, *two)
            assert str(caught.value) == (
                "task.target_estimate=example remembers each worker's own examples, and data.partition=shuffled gives "
                "the 2 workers other ones every epoch: type data.partition=fixed, or task.target_estimate=class_mean, "
                "or start one worker"
            )
            build_engine(config, LaunchEnvironment(), Communicator())
            if strategy != "hierarchical":  # whose machines must be counted by all
                for shards in ("fixed", "by_label"):
                    assert build_engine(apply_overrides(config, {"data.partition": shards}), *two).world == 2


@pytest.mark.parametrize(("cell", "algorithm"), [("lstm", "fptt"), ("antisymmetric", "bptt")])
def test_an_exported_network_is_the_one_that_was_evaluated(
    cell: str, algorithm: str, root: Path, tmp_path: Path, fptt_dist: Command
) -> None:
    run = tmp_path / "run"
    outcome = train(on_images(run, root, {"algorithm": algorithm, "model.layer": cell, "model.output_dropout": 0.1}))
    code, out, _ = fptt_dist("export", str(run), "--out", str(tmp_path / "network"))
    assert code == 0
    assert f"load_network('{tmp_path / 'network'}')" in out
    newest = next((run / "checkpoints").glob("step-*"))
    files = [*(tmp_path / "network").iterdir(), *newest.iterdir(), run / "config.yaml"]
    assert len({file.stat().st_mode for file in files if file.is_file()}) == 1, "who may read one may read the others"
    model = load_network(tmp_path / "network")
    description = json.loads((tmp_path / "network" / "model.json").read_text())
    assert description["weights"] == ("center" if algorithm == "fptt" else "weights")
    assert description["run_id"] == outcome.run_id
    task = Pixels(root=root, pixels_per_step=28, permutation=3, validation=20)
    assert description["input"]["permutation"] == task.permutation.tolist()
    right = sum(int(task.score(model(b.inputs)[0], b)[0]) for b in task.evaluation_batches("test", 0, 1))
    assert right / 20 == pytest.approx(outcome.value)
    network = open_run(run, "best").network
    x = torch.randn(28, 3, 28)
    with torch.no_grad():
        assert torch.equal(model(x)[0], network(x)[0])
    if algorithm == "fptt":
        saved = load_file(
            run / "checkpoints" / (run / "checkpoints" / "best").read_text().strip() / "model.safetensors"
        )
        assert not all(torch.equal(p, saved[name]) for name, p in network.named_parameters()), "W and W̄ differ"


@pytest.mark.parametrize("keys", [{}, AWD, {**AWD, "model.num_experts": 3}])
def test_an_exported_language_model_is_the_one_that_was_evaluated(keys: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_text(tmp_path / "run", keys)
    outcome = train(config)
    model = load_network(export_run(tmp_path / "run", tmp_path / "network"))
    description = json.loads((tmp_path / "network" / "model.json").read_text())
    task = build_task(config)
    assert sorted(description["input"]["vocabulary"]) == ["<eos>", "<unk>", *"abcdefgh"]
    state, total, items = None, 0.0, 0
    with torch.no_grad():
        for batch in task.evaluation_batches("test", 0, 1):
            output, state = model(batch.inputs, state)
            likelihood, count = task.score(output, batch)
            total, items = total + likelihood.item(), items + count
    assert math.exp(total / items) == pytest.approx(outcome.value, rel=1e-6)


def test_the_printed_lines_load_the_network(
    tmp_path: Path, fptt_dist: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(tmp_path / "run"))
    _, out, _ = fptt_dist("export", str(tmp_path / "run"))
    exec(f"import torch\nx = torch.zeros(12, 1, 2)\n{out}print(output.shape)", {})
    assert capsys.readouterr().out == "torch.Size([1, 1, 1])\n"


def test_data_check_says_what_is_missing(tmp_path: Path, fptt_dist: Command) -> None:
    code, out, _ = fptt_dist("data", "check", "mnist", "--root", str(tmp_path))
    assert code == 1
    assert len(out.splitlines()) == 4
    assert "train-images-idx3-ubyte: missing" in out
    code, _, err = fptt_dist("data", "fetch", "cifar", "--root", str(tmp_path))
    assert (code, err) == (
        2,
        "fptt-dist: cifar is no data set that can be fetched; there are: mnist, fashion-mnist, cifar10, ptb\n",
    )
    assert not list(tmp_path.iterdir())
    code, out, _ = fptt_dist("data", "check", "cifar10", "--root", str(tmp_path))
    assert code == 1
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    assert out.splitlines() == [f"{tmp_path}/cifar-10-batches-bin/{name}.bin: missing" for name in names]


def test_data_check_says_where_a_whole_data_set_is(
    tmp_path: Path, fptt_dist: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(bytes(10000 * 3073))
    one = replace(DATASETS["cifar10"], files=DATASETS["cifar10"].files[-1:])  # of its six files
    monkeypatch.setitem(DATASETS, "cifar10", one)
    for verb in ("check", "fetch"):  # which asks nobody for what is there
        code, out, _ = fptt_dist("data", verb, "cifar10", "--root", str(tmp_path))
        assert (code, out) == (0, f"cifar10 is complete in {folder}\n")


def test_missing_data_is_one_message_and_leaves_no_folder(tmp_path: Path, fptt_dist: Command) -> None:
    code, _, err = fptt_dist("train", "mnist_rows", f"data.root={tmp_path}", f"run.dir={tmp_path / 'run'}")
    assert code == 2
    assert "Traceback" not in err
    assert f"fptt-dist data fetch mnist --root {tmp_path}" in err
    assert not list(tmp_path.iterdir())


def test_doctor_prints_versions(fptt_dist: Command) -> None:
    code, out, _ = fptt_dist("doctor")
    assert code == 0
    assert __version__ in out
    assert torch.__version__ in out


@pytest.mark.slow
@pytest.mark.skipif("FPTT_DATA" not in os.environ, reason="needs FPTT_DATA, the folder that holds mnist/")
def test_mnist_by_rows_is_learnt(tmp_path: Path, fptt_dist: Command) -> None:
    data = os.environ["FPTT_DATA"]
    assert fptt_dist("data", "check", "mnist", "--root", data)[0] == 0
    run = tmp_path / "run"
    fewer = ("train.max_batches=300", "task.validation=1000", "task.test=2000")
    code, _, err = fptt_dist("train", "mnist_rows", f"data.root={data}", *fewer, f"run.dir={run}")
    assert code == 0, err
    assert result(run)["value"] > 0.92
