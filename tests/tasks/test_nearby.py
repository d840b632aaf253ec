"""Data that lies beside the place where it is looked for is named, with the command that puts it there."""

import os
from pathlib import Path

import pytest

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.cifar import read_cifar10
from fptt_dist.tasks.data.idx import find_idx
from fptt_dist.tasks.data.nearby import get_it
from fptt_dist.tasks.data.text import penn_treebank

IMAGES = "train-images-idx3-ubyte"


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def command(said: str) -> str:
    return said.partition(": type ")[2].partition(". Or get")[0]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_folders_of_torchvision(tmp_path: Path, ending: str) -> None:
    put(tmp_path / f"MNIST/raw/{IMAGES}{ending}", tmp_path / f"FashionMNIST/raw/{IMAGES}{ending}")
    for dataset, raw in (("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")):
        with pytest.raises(DataError) as caught:
            find_idx(tmp_path / dataset, IMAGES, dataset)
        assert str(caught.value) == (
            f"{tmp_path}/{dataset} has neither {IMAGES} nor {IMAGES}.gz. It is in {tmp_path}/{raw}/raw: type ln -s "
            f"{tmp_path}/{raw}/raw {tmp_path}/{dataset}. Or get {dataset} with: fptt-dist data fetch {dataset} --root "
            f"{tmp_path}; or type data.root=… for the folder that holds {dataset}/"
        )
        assert os.system(command(str(caught.value))) == 0
        assert find_idx(tmp_path / dataset, IMAGES, dataset) == tmp_path / dataset / f"{IMAGES}{ending}"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_another_spelling(tmp_path: Path, ending: str) -> None:
    root = tmp_path / "a b"
    put(root / f"mnist/train-images.idx3-ubyte{ending}")
    with pytest.raises(DataError) as caught:
        find_idx(root / "mnist", IMAGES, "mnist")
    assert os.system(command(str(caught.value))) == 0
    assert find_idx(root / "mnist", IMAGES, "mnist") == root / "mnist" / f"{IMAGES}{ending}"


def test_texts_and_batches_in_other_folders(tmp_path: Path) -> None:
    put(tmp_path / "simple-examples/data/ptb.train.txt", tmp_path / "images/data_batch_1.bin")
    with pytest.raises(
        DataError, match=rf"ptb has no ptb.train.txt. It is in {tmp_path}/simple-examples/data: type ln"
    ):
        penn_treebank(tmp_path, "word")
    with pytest.raises(DataError, match=rf"data_batch_1.bin is missing. It is in {tmp_path}/images: type ln -s"):
        read_cifar10(tmp_path)


def test_what_is_not_near_is_not_named(tmp_path: Path) -> None:
    target = tmp_path / "mnist" / IMAGES
    assert get_it(tmp_path / "nowhere", target) == "Get"
    target.mkdir(parents=True)  # a folder of that name
    put(tmp_path / ".cache/mnist" / IMAGES, tmp_path / "1/2/3/mnist" / IMAGES, tmp_path / "other" / IMAGES)
    assert get_it(tmp_path, target, of="mnist") == "Get"
