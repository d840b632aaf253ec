"""Images under a data set's name are recognized by checksums: another's, another part, or nobody's."""

import gzip
import hashlib
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data import identity
from fptt_dist.tasks.data.datasets import RemoteDataset, RemoteFile
from fptt_dist.tasks.data.identity import check_identity
from fptt_dist.tasks.data.idx import read_idx

LABELS = {
    name: np.array(values, dtype=np.uint8) for name, values in (("train", [1, 2]), ("t10k", [3]), ("old", [4, 5]))
}


def content(labels: NDArray) -> bytes:
    return struct.pack(">2I", 0x0801, len(labels)) + labels.tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, while the catalogue has two small sets, "mnist" by content and "old" by archive."""
    files = tuple(
        RemoteFile(
            f"{name}-labels", 8 + len(LABELS[name]), f"sha256:{hashlib.sha256(content(LABELS[name])).hexdigest()}"
        )
        for name in ("train", "t10k")
    )
    archive = hashlib.md5(gzip.compress(content(LABELS["old"]), mtime=0), usedforsecurity=False).hexdigest()
    old = (RemoteFile("train-labels", None, f"md5:{archive}"),)
    sets = {"mnist": RemoteDataset("mnist", (), files), "old": RemoteDataset("old", (), old)}
    monkeypatch.setattr(identity, "DATASETS", sets)
    return tmp_path


def check(folder: Path, dataset: str, labels: NDArray, *, ending: str = ".gz") -> None:
    name, written = "train-labels", content(labels)
    (folder / f"{name}{ending}").write_bytes(gzip.compress(written, mtime=0) if ending else written)
    check_identity(folder, {name: labels}, dataset)


def test_the_real_ones_are_known(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(folder, "mnist", LABELS["train"])
    check(folder, "mnist", LABELS["train"], ending="")
    check(folder, "old", LABELS["old"])
    assert caplog.records == []


@pytest.mark.parametrize(
    ("dataset", "labels", "real"),
    [("mnist", "old", "train-labels of old"), ("mnist", "t10k", "t10k-labels of mnist"), ("old", "train", "of mnist")],
)
def test_another_ones_are_refused(folder: Path, dataset: str, labels: str, real: str) -> None:
    with pytest.raises(DataError) as caught:
        check(folder, dataset, LABELS[labels])
    assert f"{real} by its checksum, not train-labels of {dataset}: put the right one there" in str(caught.value)


def test_nobodys_are_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fptt_dist"):
        check(folder, "old", LABELS["old"], ending="")  # the checksum of the archive alone is known
        assert caplog.records == []
        (folder / "train-labels").unlink()
        check(folder, "mnist", LABELS["train"] + 1)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{folder}: train-labels.gz: not the public mnist by the checksum; results are those of another data set"
    )


@pytest.mark.skipif("FPTT_DATA" not in os.environ, reason="needs FPTT_DATA, the folder that holds mnist/")
def test_the_real_mnist(caplog: pytest.LogCaptureFixture) -> None:
    name = "t10k-images-idx3-ubyte"
    folder = Path(os.environ["FPTT_DATA"]) / "mnist"
    images = read_idx(next(folder.glob(f"{name}*")), 3)
    check_identity(folder, {name: images}, "mnist")
    assert caplog.records == []
    with pytest.raises(DataError, match=f"is {name} of mnist by its checksum, not {name} of fashion-mnist"):
        check_identity(folder, {name: images}, "fashion-mnist")
