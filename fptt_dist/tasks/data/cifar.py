"""CIFAR-10 in its binary version (Krizhevsky 2009): records of a label and an image's red, green and blue planes.

The Python version is refused: it is pickled, and unpickling a file runs code from it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import is_file
from fptt_dist.tasks.data.nearby import get_it

FOLDER = "cifar-10-batches-bin"
PICKLED_FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
CLASSES, SIDE, CHANNELS = 10, 32, 3
RECORD = 1 + CHANNELS * SIDE * SIDE  # bytes
PICKLE = b"\x80"  # what a pickle of protocol 2 or later begins with, and no label


def read_cifar10(root: Path) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Training images and labels, then test images and labels: bytes (N, 32, 32, 3) and (N,), in the files' order.

    Args:
        root: folder that holds `cifar-10-batches-bin/` with the six .bin files.

    Raises:
        DataError: a file is missing or unreadable, has a truncated record, or has a label above 9; or there is
            the pickled Python version only.
    """
    folder = root / FOLDER
    for name in (*TRAIN, TEST):
        if not is_file(folder / name):
            raise _missing(root, name)
    batches = [read_batch(folder / name) for name in TRAIN]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images, labels, *read_batch(folder / TEST)


def read_batch(path: Path) -> tuple[NDArray, NDArray]:
    """Images (N, 32, 32, 3) and labels (N,) of one .bin file.

    Raises:
        DataError: it cannot be read, is pickled or empty, has a truncated record, or has a label above 9.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if content.startswith(PICKLE):
        raise _pickled(path)
    again = f"get it again with: {_fetch(path.parent.parent)}"
    if not content or len(content) % RECORD:
        raise DataError(
            f"{path} has {len(content)} bytes, expected a multiple of {RECORD}, at least one image's label and "
            f"{CHANNELS} × {SIDE} × {SIDE} values; {again}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].copy()
    if labels.max() >= CLASSES:
        at = int(np.argmax(labels >= CLASSES))
        raise DataError(f"{path}: label {at} is {labels[at]}, expected 0 to {CLASSES - 1}; {again}")
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _missing(root: Path, name: str) -> DataError:
    folder, plain = root / FOLDER, name.removesuffix(".bin")
    for pickled in (folder / plain, root / PICKLED_FOLDER / plain, root / plain):
        if is_file(pickled):
            return _pickled(pickled, root)
    get = get_it(root, folder / name)
    return DataError(
        f"{folder / name} is missing. {get} cifar10 with: {_fetch(root)}; or type data.root=… for the folder that "
        f"holds {FOLDER}/"
    )


def _pickled(path: Path, root: Path | None = None) -> DataError:
    return DataError(
        f"{path} is of CIFAR-10's Python version, which is pickled, and unpickling a file runs code from it: expected "
        f"the binary version, {TRAIN[0]} to {TEST}. Get that with: {_fetch(root or path.parent.parent)}"
    )


def _fetch(root: Path) -> str:
    return f"fptt-dist data fetch cifar10 --root {root}"
