"""Getting the public data sets: several mirrors, checksums of the uncompressed files, downloads that go on where they
broke off. All addresses and checksums stand in `DATASETS`."""

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptt_dist.tasks.data_error import DataError
from fptt_dist.tasks.idx import is_file

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        name: of the uncompressed file.
        bytes: of the uncompressed file; None where only the archive's checksum is known.
        checksum: "sha256:…" of the uncompressed file, or "md5:…" of the archive.
    """

    name: str
    bytes: int | None
    checksum: str


@dataclass(frozen=True)
class RemoteDataset:
    """A data set of gzipped files, the same on all mirrors.

    Attributes:
        mirrors: addresses that `<name>.gz` is appended to, the first one tried first.
        files: what it consists of.
    """

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


DATASETS = {
    "mnist": RemoteDataset(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte",
                47040016,
                "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte",
                60008,
                "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte",
                7840016,
                "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte",
                10008,
                "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": RemoteDataset(
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        files=(
            RemoteFile("train-images-idx3-ubyte", None, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            RemoteFile("train-labels-idx1-ubyte", None, "md5:25c81989df183df01b3e8a0aad5dffbe"),
            RemoteFile("t10k-images-idx3-ubyte", None, "md5:bef4ecab320f06d8554ea6380940ec79"),
            RemoteFile("t10k-labels-idx1-ubyte", None, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
}


def check(name: str, root: Path) -> list[str]:
    """What is wrong with a data set on disk, one line a file; nothing if it is whole.

    Raises:
        DataError: an unknown data set.
    """
    folder = root / name
    return [problem for file in _dataset(name).files if (problem := _problem(folder, file)) is not None]


def fetch(name: str, root: Path, *, progress: bool = False) -> Path:
    """Bring a data set to `root/name`; files that are there and whole are left as they are.

    Args:
        name: a key of `DATASETS`.
        root: where data sets live; created if needed.
        progress: whether to draw a progress bar.

    Returns:
        The data set's folder.

    Raises:
        DataError: no mirror gave a file with the right checksum; the message says what each of them did.
    """
    dataset, folder = _dataset(name), root / name
    for file in dataset.files:
        if _problem(folder, file) is not None:
            _fetch_file(dataset.mirrors, folder, file, progress)
    return folder


def _dataset(name: str) -> RemoteDataset:
    if name not in DATASETS:
        raise DataError(f"{name} is no data set that can be fetched; there are: {', '.join(DATASETS)}")
    return DATASETS[name]


def _fetch_file(mirrors: tuple[str, ...], folder: Path, file: RemoteFile, progress: bool) -> None:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    failures = []
    final = folder / f"{file.name}.gz"
    for mirror in mirrors:
        url = f"{mirror}{file.name}.gz"
        part = folder / f"{file.name}.gz.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetched = pooch.retrieve(
                url, known_hash=None, fname=f"{part.name}.new", path=folder, downloader=_resuming(part, progress)
            )
        except OSError as error:  # requests' errors are OSErrors too
            failures.append(f"{url}: {_reason(error)}")
            continue
        problem = _content_problem(Path(fetched), file)
        if problem is None:
            os.replace(fetched, final)
            part.unlink(missing_ok=True)
            return
        failures.append(f"{url}: {problem}")
        Path(fetched).unlink()
        part.unlink(missing_ok=True)
    wanted = f"{file.name}.gz" if file.checksum.startswith("md5:") else f"{file.name} or {file.name}.gz"
    raise DataError(
        f"{file.name} could not be fetched:\n  " + "\n  ".join(failures) + f"\nWithout a network, put {wanted} into "
        f"{folder} yourself; `fptt-dist data check` says whether it is right"
    )


def _resuming(part: Path, progress: bool) -> Callable[..., None]:
    """A downloader for pooch that keeps what it has in `part` and asks for the rest."""

    def download(url: str, output_file: Any, pooch: Any) -> None:
        import requests
        import urllib3
        from rich.progress import Progress

        held = part.stat().st_size if part.is_file() else 0
        headers = (
            {"Range": f"bytes={held}-", "Accept-Encoding": "identity"} if held else {"Accept-Encoding": "identity"}
        )
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if held and response.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()
                return download(url, output_file, pooch)
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            received = held if resumed else 0
            rest = int(response.headers.get("Content-Length", 0))
            expected = received + rest if rest else None
            with part.open("ab" if resumed else "wb") as file, Progress(disable=not progress) as bar:
                task = bar.add_task(part.name.removesuffix(".part"), total=expected, completed=received)
                try:
                    # Not iter_content: it would decompress where a server calls .gz an encoding, and lose the last
                    # bytes before a break.
                    for chunk in response.raw.stream(CHUNK, decode_content=False):
                        file.write(chunk)
                        received += len(chunk)
                        bar.update(task, completed=received)
                except urllib3.exceptions.HTTPError as error:
                    raise OSError(
                        f"broke off after {received} of {expected or '?'} bytes; the next try goes on from there"
                    ) from error
        os.replace(part, output_file)
        return None

    return download


def _problem(folder: Path, file: RemoteFile) -> str | None:
    """What is wrong with one file of a data set on disk, plain or gzipped."""
    for path in (folder / f"{file.name}.gz", folder / file.name):
        try:
            there = is_file(path)
        except DataError as error:
            return str(error)
        if there:
            if path.name == file.name and file.checksum.startswith("md5:"):
                return f"{path}: only the archive's checksum is known, keep {file.name}.gz"
            problem = _content_problem(path, file)
            return None if problem is None else f"{path}: {problem}"
    return f"{folder / file.name}: missing (as .gz too)"


def _content_problem(path: Path, file: RemoteFile) -> str | None:
    kind, _, expected = file.checksum.partition(":")
    digest, size = hashlib.new(kind, usedforsecurity=False), 0
    try:
        for chunk in _chunks(path, decompress=kind == "sha256" and path.name != file.name):
            digest.update(chunk)
            size += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        return f"cannot be decompressed: {error}"
    if file.bytes is not None and size != file.bytes:
        return f"{size} bytes uncompressed, expected {file.bytes}"
    if digest.hexdigest() != expected:
        return f"its {kind} is {digest.hexdigest()}, expected {expected}"
    return None


def _chunks(path: Path, *, decompress: bool) -> Iterator[bytes]:
    with gzip.open(path, "rb") if decompress else path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _reason(error: OSError) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT} s"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is there a network?)"
    return str(error)
