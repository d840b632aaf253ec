"""CIFAR-10's binary version: what is read, and what each bad file is told."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from fptt_dist.tasks import DataError, Pixels
from fptt_dist.tasks.data.cifar import read_batch, read_cifar10
from fptt_dist.tasks.data.download import check

NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


def some_records(count: int, seed: int) -> bytes:
    """Noise, whose first red value says which image it is, and labels 0 to 9 in turn."""
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    records[:, 1] = np.arange(count)
    return records.tobytes()


def write_cifar(root: Path, count: int = 4) -> Path:
    """`count` records in each of the six files; returns their folder."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(some_records(count, seed))
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        Pixels(root=root, dataset="cifar10", validation=1)
    return str(caught.value)


def test_every_value_is_where_the_records_say(tmp_path: Path) -> None:
    write_cifar(tmp_path, 3)
    images, labels, test_images, test_labels = read_cifar10(tmp_path)
    assert images.shape == (15, 32, 32, 3)
    assert test_images.shape == (3, 32, 32, 3)
    assert images.dtype == labels.dtype == np.uint8
    for batch in range(6):
        content = some_records(3, batch)
        found = test_images if batch == 5 else images[3 * batch : 3 * batch + 3]
        assert (test_labels if batch == 5 else labels[3 * batch : 3 * batch + 3]).tolist() == [0, 1, 2]
        for image in range(3):
            for row, column, channel in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (31, 30, 2), (17, 5, 1)):
                offset = image * 3073 + 1 + channel * 1024 + row * 32 + column
                assert found[image, row, column, channel] == content[offset]


def test_all_values_are_read_and_may_be_written_to(tmp_path: Path) -> None:
    images, _ = read_batch(write_cifar(tmp_path) / NAMES[0])
    content = np.frombuffer(some_records(4, 0), dtype=np.uint8).reshape(4, 3073)
    for channel in range(3):
        plane = content[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(4, 32, 32)
        assert np.array_equal(images[..., channel], plane)
    assert images.flags.writeable, "torch.from_numpy warns of arrays that may not be written"


@pytest.mark.parametrize("missing", ["data_batch_3.bin", "test_batch.bin", "folder"])
def test_a_missing_file(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    if missing != "folder":
        (write_cifar(tmp_path) / missing).unlink()
    name = "data_batch_1.bin" if missing == "folder" else missing
    assert refusal(tmp_path) == (
        f"{folder}/{name} is missing. Get cifar10 with: fptt-dist data fetch cifar10 --root {tmp_path}; "
        "or type data.root=… for the folder that holds cifar-10-batches-bin/"
    )


def test_no_whole_number_of_records(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for size in (0, 1, 3072, 3074, 4 * 3073 - 1):
        with subtests.test(size=size):
            root = tmp_path / str(size)
            path = write_cifar(root) / "data_batch_2.bin"
            path.write_bytes(bytes(size))
            expected = "a multiple of 3073, at least one image's label and 3 × 32 × 32 values"
            again = f"get it again with: fptt-dist data fetch cifar10 --root {root}"
            assert refusal(root) == f"{path} has {size} bytes, expected {expected}; {again}"


@pytest.mark.parametrize("label", [10, 127, 255])
def test_a_label_above_9(tmp_path: Path, label: int) -> None:
    path = write_cifar(tmp_path) / "test_batch.bin"
    content = bytearray(some_records(4, 5))
    content[2 * 3073] = label
    path.write_bytes(content)
    assert refusal(tmp_path) == (
        f"{path}: label 2 is {label}, expected 0 to 9; "
        f"get it again with: fptt-dist data fetch cifar10 --root {tmp_path}"
    )


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-bin/data_batch_1", "data_batch_1"]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_pickled_version_is_refused_unread(tmp_path: Path, place: str, protocol: int) -> None:
    root = tmp_path / "data"
    path = root / place
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol))
    expected = (
        "{} is of CIFAR-10's Python version, which is pickled, and unpickling a file runs code from it: expected the "
        f"binary version, data_batch_1.bin to test_batch.bin. Get that with: fptt-dist data fetch cifar10 --root {root}"
    )
    assert refusal(root) == expected.format(path)
    renamed = write_cifar(root / "renamed") / "data_batch_1.bin"
    renamed.write_bytes(path.read_bytes())
    assert refusal(root / "renamed") == expected.format(renamed) + "/renamed"
    assert not (tmp_path / "ran").exists()


def test_the_pickled_version_beside_the_binary_one_is_nobodys_business(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02")
    assert len(read_cifar10(tmp_path)[0]) == 20


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.mkdir()
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))} cannot be read: \[Errno 21\] Is a directory"):
        read_batch(path)


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("FPTT_DATA", "")) / "cifar-10-batches-bin").is_dir(),
    reason="needs FPTT_DATA, the folder that holds cifar-10-batches-bin/",
)
def test_the_real_cifar10() -> None:
    folder = Path(os.environ["FPTT_DATA"])
    assert check("cifar10", folder) == []
    images, labels, test_images, test_labels = read_cifar10(folder)
    assert (images.shape, test_images.shape) == ((50000, 32, 32, 3), (10000, 32, 32, 3))
    assert np.bincount(labels).tolist() == [5000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    # Published means of the channels: 0.4914, 0.4822, 0.4465. Planes in another order would have others.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), atol=1e-3)
    # Neighbouring values are alike along rows and columns, which they are not where rows are cut at a wrong place.
    for axis in (1, 2):
        steps = np.diff(test_images[:1000].astype(np.int16), axis=axis)
        assert np.abs(steps).mean() < 15
