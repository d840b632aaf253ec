"""Whose file it is that has a data set's name: known by the checksums of all public data sets."""

import hashlib
import logging
import struct
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from fptt_dist.tasks.data.datasets import DATASETS
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import find_idx, magic_number

LOG = logging.getLogger("fptt_dist")


def check_identity(folder: Path, read: Mapping[str, NDArray], dataset: str) -> None:
    """Refuse files of another data set or another part; warn of files that are of none.

    Args:
        folder: of the data set.
        read: the arrays by their IDX files' names.
        dataset: the one that they are named after.

    Raises:
        DataError: a checksum is another file's.
    """
    others = []
    for name, array in read.items():
        path = find_idx(folder, name, dataset)
        sums = _checksums(path, array)
        found = [(known, file.name) for known, each in DATASETS.items() for file in each.files if file.checksum in sums]
        if found and (dataset, name) not in found:
            of, real = found[0]
            raise DataError(
                f"{path} is {real} of {of} by its checksum, not {name} of {dataset}: put the right one there, by "
                f"fptt-dist data fetch {dataset} --root {folder.parent}"
            )
        wanted = next((file.checksum for file in DATASETS[dataset].files if file.name == name), None) or ""
        if not found and wanted.split(":")[0] in {each.split(":")[0] for each in sums}:
            others.append(path.name)
    if others:
        LOG.warning(
            "%s: %s: not the public %s by the checksum; results are those of another data set",
            folder,
            ", ".join(others),
            dataset,
        )


def _checksums(path: Path, array: NDArray) -> set[str]:
    """Return the checksums of an IDX file, in the forms of the catalogue: the uncompressed file's, the archive's."""
    header = struct.pack(f">{1 + array.ndim}I", magic_number(array.ndim), *array.shape)
    uncompressed = hashlib.sha256(header)
    uncompressed.update(array.data)
    sums = {f"sha256:{uncompressed.hexdigest()}"}
    if path.suffix == ".gz":
        sums.add(f"md5:{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}")
    return sums
