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
from fptt_dist.tasks.data.nearby import get_it

UNSIGNED_BYTE = 0x08
CHUNK = 1 << 20  # bytes


def find_idx(folder: Path, name: str, dataset: str) -> Path:
    """`folder/name.gz`, else `folder/name`: the archive first, as `fetch` brings it and `check` checks it.

    Raises:
        DataError: neither, and the message says what gets them; or the folder may not be searched.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if is_file(path):
            return path
    get = get_it(folder.parent, folder / name, of=dataset)
    raise DataError(
        f"{folder} has neither {name} nor {name}.gz. {get} {dataset} with: fptt-dist data fetch {dataset} "
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


def magic_number(dimensions: int) -> int:
    """Return what an IDX file of unsigned bytes begins with."""
    return (UNSIGNED_BYTE << 8) + dimensions


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of one IDX file of unsigned bytes, plain or gzipped; no more is decompressed than its header announces.

    Args:
        path: the file; a name ending in .gz is decompressed.
        dimensions: 3 for images (count, rows, columns), 1 for labels.

    Raises:
        DataError: it cannot be read or decompressed, has another magic number, or another length than it announces.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _shape(path, stream.read(4 + 4 * dimensions), dimensions)
            announced = math.prod(shape)
            content = bytearray()
            # Piece by piece: Python allocates at once what it is asked to read. One more, to see that it ends there.
            while chunk := stream.read(min(CHUNK, announced + 1 - len(content))):
                content += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) != announced:
        held = "more" if len(content) > announced else len(content)
        raise DataError(f"{path} announces {' × '.join(map(str, shape))} = {announced} bytes and holds {held}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _shape(path: Path, head: bytes, dimensions: int) -> tuple[int, ...]:
    header, expected = 4 + 4 * dimensions, magic_number(dimensions)
    if len(head) < header:
        raise DataError(f"{path} is no IDX file: {len(head)} bytes, and the header alone has {header}")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", head)
    if magic != expected:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimension(s): its magic number is "
            f"{magic:#010x}, expected {expected:#010x}"
        )
    return tuple(shape)


def _read_only_version(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a file of which there may be an archive and a plain version, that must be the same."""
    array, plain = read_idx(path, dimensions), path.with_suffix("")
    if path.suffix == ".gz" and is_file(plain):
        try:
            same = np.array_equal(array, read_idx(plain, dimensions))
        except DataError:
            same = False
        if not same:
            raise DataError(f"{path} and {plain} differ: delete the one that is wrong")
    return array


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
    images, labels = _read_only_version(image_path, 3), _read_only_version(label_path, 1)
    if len(images) == 0:
        raise DataError(f"{image_path} holds no image")
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels")
    if labels.max() >= classes:
        at = int(np.argmax(labels >= classes))
        raise DataError(f"{label_path}: label {at} is {labels[at]}, expected 0 to {classes - 1}")
    return images, labels
