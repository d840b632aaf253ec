"""IDX files, as MNIST and Fashion-MNIST come: a magic number, the dimensions, then bytes."""

import gzip
import math
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError

UNSIGNED_BYTE = 0x08


def find_idx(folder: Path, name: str, dataset: str) -> Path:
    """`folder/name.gz`, else `folder/name`: the archive first, as `fetch` brings it and `check` checks it.

    Raises:
        DataError: neither, and the message says what gets them; or the folder may not be searched.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if is_file(path):
            return path
    raise DataError(
        f"{folder} has neither {name} nor {name}.gz. Get {dataset} with: fptt-dist data fetch {dataset} "
        f"--root {folder.parent}; or type data.root=… for the folder that holds {folder.name}/"
    )


def is_file(path: Path) -> bool:
    """Return whether there is a file at `path`.

    Raises:
        DataError: it cannot be known, as when its folder may not be searched.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of one IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file; a name ending in .gz is decompressed.
        dimensions: 3 for images (count, rows, columns), 1 for labels.

    Raises:
        DataError: it cannot be read or decompressed, has another magic number, or another length than it announces.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    expected = (UNSIGNED_BYTE << 8) + dimensions
    if len(content) < header:
        raise DataError(f"{path} is no IDX file: {len(content)} bytes, and the header alone has {header}")
    (magic,) = struct.unpack(">I", content[:4])
    if magic != expected:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimension(s): its magic number is "
            f"{magic:#010x}, expected {expected:#010x}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    announced, held = math.prod(shape), len(content) - header
    if held != announced:
        raise DataError(f"{path} announces {' × '.join(map(str, shape))} = {announced} bytes and holds {held}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def read_labelled_images(folder: Path, prefix: str, dataset: str, classes: int) -> tuple[NDArray, NDArray]:
    """Images (N, rows, columns) and labels (N,) of one split.

    Args:
        folder: of the data set.
        prefix: "train" or "t10k".
        dataset: its name, for messages.
        classes: labels are below this.

    Raises:
        DataError: as `read_idx`; also an empty split, unequal counts, or a label out of range.
    """
    image_path = find_idx(folder, f"{prefix}-images-idx3-ubyte", dataset)
    label_path = find_idx(folder, f"{prefix}-labels-idx1-ubyte", dataset)
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) == 0:
        raise DataError(f"{image_path} holds no image")
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels")
    if labels.max() >= classes:
        at = int(np.argmax(labels >= classes))
        raise DataError(f"{label_path}: label {at} is {labels[at]}, expected 0 to {classes - 1}")
    return images, labels


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
