"""IDX files: what is read, and what each bad file is told."""

import gzip
import os
import re
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.idx import find_idx, read_idx, read_labelled_images

IMAGES = (np.arange(3 * 4 * 5) % 256).astype(np.uint8).reshape(3, 4, 5)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_split(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> Path:
    write(folder / "train-images-idx3-ubyte", idx_bytes(images))
    write(folder / "train-labels-idx1-ubyte.gz", idx_bytes(labels))
    return folder


def refusal(path: Path, dimensions: int) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions)
    return str(caught.value)


@contextmanager
def without_the_rights_of_root() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_was_written_is_read(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for array, ending in product((IMAGES, LABELS, IMAGES[:0]), ("", ".gz")):
        with subtests.test(shape=array.shape, ending=ending):
            found = read_idx(write(tmp_path / f"file{ending}", idx_bytes(array)), array.ndim)
            assert found.dtype == np.uint8
            assert found.shape == array.shape
            assert np.array_equal(found, array)
            assert found.flags.writeable, "torch.from_numpy warns of arrays that may not be written"


def test_a_split_is_its_images_and_labels(tmp_path: Path) -> None:
    images, labels = read_labelled_images(write_split(tmp_path), "train", "mnist", 10)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)


def test_the_archive_is_taken_before_the_plain_file(tmp_path: Path) -> None:
    # `check` checks the archive and `fetch` brings it: a broken plain file beside it must not be what is trained on.
    plain = write(tmp_path / "file", idx_bytes(LABELS))
    assert find_idx(tmp_path, "file", "mnist") == plain
    archive = write(tmp_path / "file.gz", idx_bytes(LABELS))
    assert find_idx(tmp_path, "file", "mnist") == archive


@pytest.mark.parametrize("in_the_way", ["nothing", "no folder", "a file for the folder", "a folder for the file"])
def test_a_missing_file(tmp_path: Path, in_the_way: str) -> None:
    folder = tmp_path / "mnist"
    if in_the_way == "a file for the folder":
        folder.write_text("")
    elif in_the_way != "no folder":
        folder.mkdir()
    if in_the_way == "a folder for the file":
        (folder / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(DataError) as caught:
        read_labelled_images(folder, "train", "mnist", 10)
    assert str(caught.value) == (
        f"{folder} has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz. Get mnist with: "
        f"fptt-dist data fetch mnist --root {tmp_path}; or type data.root=… for the folder that holds mnist/"
    )


def test_a_header_cut_short(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for (dimensions, header), ending in product(((3, 16), (1, 8)), ("", ".gz")):
        with subtests.test(dimensions=dimensions, header=header, ending=ending):
            array = IMAGES if dimensions == 3 else LABELS
            for size in (0, 3, header - 1):
                path = write(tmp_path / f"file{ending}", idx_bytes(array)[:size])
                assert refusal(path, dimensions) == (
                    f"{path} is no IDX file: {size} bytes, and the header alone has {header}"
                )


def test_another_magic_number(tmp_path: Path) -> None:
    images, labels = write(tmp_path / "images", idx_bytes(IMAGES)), write(tmp_path / "labels", idx_bytes(LABELS) * 2)
    floats = write(tmp_path / "floats", b"\0\0\x0d" + idx_bytes(IMAGES)[3:])
    text = "is no IDX file of unsigned bytes with"
    assert refusal(images, 1) == f"{images} {text} 1 dimension(s): its magic number is 0x00000803, expected 0x00000801"
    assert refusal(labels, 3) == f"{labels} {text} 3 dimension(s): its magic number is 0x00000801, expected 0x00000803"
    assert refusal(floats, 3) == f"{floats} {text} 3 dimension(s): its magic number is 0x00000d03, expected 0x00000803"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_another_length_than_announced(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"file{ending}"
    assert refusal(write(path, idx_bytes(IMAGES)[:-1]), 3) == f"{path} announces 3 × 4 × 5 = 60 bytes and holds 59"
    assert refusal(write(path, idx_bytes(IMAGES) + b"xy"), 3) == f"{path} announces 3 × 4 × 5 = 60 bytes and holds more"
    assert refusal(write(path, idx_bytes(LABELS)[:-3]), 1) == f"{path} announces 3 = 3 bytes and holds 0"


def test_sizes_that_overflow_are_counted_right(tmp_path: Path) -> None:
    path = write(
        tmp_path / "file", struct.pack(">4I", 0x0803, 2**31, 2**31, 4)
    )  # 2⁶⁴ bytes: nothing, if cut to 64 bits
    assert refusal(path, 3).endswith(f"= {2**64} bytes and holds 0")


@pytest.mark.parametrize("magic", [0, 0x0803])
def test_a_bomb_is_not_decompressed_to_its_end(tmp_path: Path, magic: int) -> None:
    header, path = struct.pack(">4I", magic, 2, 3, 4), tmp_path / "file.gz"
    path.write_bytes(gzip.compress(header + bytes(1 << 25), compresslevel=1))
    tracemalloc.start()
    try:
        message = refusal(path, 3)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.endswith("holds more" if magic else "its magic number is 0x00000000, expected 0x00000803")
    assert most < 1 << 21


def test_a_plain_file_that_differs_from_its_archive_is_refused(tmp_path: Path) -> None:
    plain, archive = tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-labels-idx1-ubyte.gz"
    write_split(tmp_path)
    write(plain, idx_bytes(LABELS))
    assert np.array_equal(read_labelled_images(tmp_path, "train", "mnist", 10)[1], LABELS), "the same twice"
    for content in (idx_bytes(LABELS[::-1]), idx_bytes(LABELS)[:-1]):
        write(plain, content)
        with pytest.raises(DataError) as caught:
            read_labelled_images(tmp_path, "train", "mnist", 10)
        assert str(caught.value) == f"{archive} and {plain} differ: delete the one that is wrong"


def test_an_archive_cut_short(tmp_path: Path) -> None:
    archive = gzip.compress(idx_bytes(IMAGES))
    path = tmp_path / "file.gz"
    for size in (1, 9, 20, len(archive) - 1):
        path.write_bytes(archive[:size])
        assert re.fullmatch(
            rf"{re.escape(str(path))} cannot be read: (Compressed file ended|Not a gzipped).*", refusal(path, 3)
        )
    path.write_bytes(archive[:-9])
    assert refusal(path, 3) == (
        f"{path} cannot be read: Compressed file ended before the end-of-stream marker was reached"
    )


def test_no_archive_in_spite_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(idx_bytes(IMAGES))
    assert refusal(path, 3) == rf"{path} cannot be read: Not a gzipped file (b'\x00\x00')"


def test_an_archive_with_a_flipped_bit(tmp_path: Path) -> None:
    path, archive = tmp_path / "file.gz", gzip.compress(idx_bytes(IMAGES))
    for at in (10, len(archive) // 2, len(archive) - 5):
        path.write_bytes(archive[:at] + bytes([archive[at] ^ 0xFF]) + archive[at + 1 :])
        assert refusal(path, 3).startswith(f"{path} cannot be read: ")


def test_a_folder_that_may_not_be_searched(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "mnist")
    folder.chmod(0)
    try:
        with without_the_rights_of_root(), pytest.raises(DataError) as caught:
            read_labelled_images(folder, "train", "mnist", 10)
    finally:
        folder.chmod(0o700)
    path = folder / "train-images-idx3-ubyte.gz"
    assert str(caught.value) == f"{path} cannot be read: [Errno 13] Permission denied: '{path}'"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "file", idx_bytes(LABELS))
    path.chmod(0)
    with without_the_rights_of_root():
        message = refusal(path, 1)
    assert message == f"{path} cannot be read: [Errno 13] Permission denied: '{path}'"


def test_a_label_out_of_range(tmp_path: Path) -> None:
    folder = write_split(tmp_path, labels=np.array([9, 10, 255], dtype=np.uint8))
    with pytest.raises(DataError) as caught:
        read_labelled_images(folder, "train", "mnist", 10)
    assert str(caught.value) == f"{folder}/train-labels-idx1-ubyte.gz: label 1 is 10, expected 0 to 9"


def test_an_empty_split(tmp_path: Path) -> None:
    folder = write_split(tmp_path, IMAGES[:0], LABELS[:0])
    with pytest.raises(DataError) as caught:
        read_labelled_images(folder, "train", "mnist", 10)
    assert str(caught.value) == f"{folder}/train-images-idx3-ubyte holds no image"


@pytest.mark.parametrize("labels", [0, 2])
def test_unequal_counts(tmp_path: Path, labels: int) -> None:
    folder = write_split(tmp_path, labels=LABELS[:labels])
    with pytest.raises(DataError) as caught:
        read_labelled_images(folder, "train", "mnist", 10)
    assert str(caught.value) == (
        f"{folder}/train-images-idx3-ubyte holds 3 images and {folder}/train-labels-idx1-ubyte.gz {labels} labels"
    )


def test_labels_in_the_images_place(tmp_path: Path) -> None:
    folder = write_split(tmp_path)
    write(folder / "train-labels-idx1-ubyte.gz", idx_bytes(IMAGES))
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz is no IDX file .* 0x00000803, expected 0x00000801"
    ):
        read_labelled_images(folder, "train", "mnist", 10)
