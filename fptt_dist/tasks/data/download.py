"""Download of the public data sets: several mirrors, checksums, and resumption of interrupted downloads."""

import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fptt_dist.tasks.data.datasets import DATASETS, RemoteDataset, RemoteFile
from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import is_file

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18


def folder_of(name: str, root: Path) -> Path:
    """Return the folder of a data set, below `root`.

    Raises:
        DataError: an unknown data set.
    """
    return root / _dataset(name).folder


def check(name: str, root: Path) -> list[str]:
    """Return the problems of a data set on disk, one line per file; none if it is complete.

    Raises:
        DataError: an unknown data set.
    """
    folder = folder_of(name, root)
    found = ((_problem(folder, file) or _second_problem(folder, file)) for file in _dataset(name).files)
    return [problem for problem in found if problem is not None]


def fetch(name: str, root: Path, *, progress: bool = False) -> Path:
    """Download a data set to its folder in `root`; files that are complete already are left as they are.

    Args:
        name: a key of `DATASETS`.
        root: where data sets live; created if needed.
        progress: whether to draw a progress bar.

    Returns:
        The data set's folder.

    Raises:
        DataError: no mirror gave a file with the right checksum, and the message says what each of them did; or the
            archive cannot be unpacked.
    """
    dataset = _dataset(name)
    folder = folder_of(name, root)
    wrong = [file for file in dataset.files if _problem(folder, file) is not None]
    if dataset.archive is None:
        for file in wrong:
            _fetch_file(dataset, folder, file, progress)
    elif wrong:
        given = _problem(folder, dataset.archive) is None
        if not given:
            _fetch_file(dataset, folder, dataset.archive, progress)
        _unpack(folder, dataset.archive, wrong)
        if not given:
            (folder / dataset.archive.name).unlink()
    return folder


def _dataset(name: str) -> RemoteDataset:
    if name not in DATASETS:
        raise DataError(f"{name} is no data set that can be fetched; there are: {', '.join(DATASETS)}")
    return DATASETS[name]


def _fetch_file(dataset: RemoteDataset, folder: Path, file: RemoteFile, progress: bool) -> None:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    failures = []
    for mirror in dataset.mirrors:
        url = f"{mirror}{file.remote}"
        part = folder / f"{file.remote}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetched = pooch.retrieve(
                url, known_hash=None, fname=f"{part.name}.new", path=folder, downloader=_resuming(part, file, progress)
            )
        except OSError as error:  # requests' errors are OSErrors too
            if isinstance(error, TooLargeError):
                part.unlink(missing_ok=True)
            failures.append(f"{url}: {_reason(error)}")
            continue
        problem = _content_problem(Path(fetched), file)
        if problem is None:
            os.replace(fetched, folder / file.remote)
            part.unlink(missing_ok=True)
            return
        failures.append(f"{url}: {problem}")
        Path(fetched).unlink()
        part.unlink(missing_ok=True)
    wanted = file.remote if _only_as_remote(file) else f"{file.name} or {file.name}.gz"
    then = "fetch` unpacks it" if file is dataset.archive else "check` says whether it is right"
    raise DataError(
        f"{file.name} could not be fetched:\n  " + "\n  ".join(failures) + f"\nWithout a network, put {wanted} into "
        f"{folder} yourself; `fptt-dist data {then}"
    )


def _unpack(folder: Path, archive: RemoteFile, files: list[RemoteFile]) -> None:
    """Write `files` from the archive, and nothing else that it holds, wherever it says it belongs."""
    path = folder / archive.name
    wanted = {f"{folder.name}/{file.name}": file for file in files}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                file = wanted.get(member.name)
                if file is None or not member.isreg() or member.size != file.bytes:
                    continue
                part = folder / f"{file.name}.part"
                source = tar.extractfile(member)
                assert source is not None, "a regular member"
                with source, part.open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK)
                os.replace(part, folder / file.name)
                del wanted[member.name]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be unpacked: {error}. Delete it, and fetch again") from error
    if wanted:
        lacking = "\n".join(f"{name}, a file of {file.bytes} bytes" for name, file in wanted.items())
        raise DataError(f"{path} does not hold {lacking}. Delete it, and fetch again")


class TooLargeError(OSError):
    """A mirror sends more than the file can have; nothing of it is kept."""


def _resuming(part: Path, wanted: RemoteFile, progress: bool) -> Callable[..., None]:
    """Return a downloader for pooch that keeps what it has received in `part` and requests the rest."""

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
            if (expected or 0) > wanted.most_bytes:
                raise TooLargeError(f"announces {expected} bytes, and {wanted.remote} has at most {wanted.most_bytes}")
            with part.open("ab" if resumed else "wb") as file, Progress(disable=not progress) as bar:
                task = bar.add_task(part.name.removesuffix(".part"), total=expected, completed=received)
                try:
                    # Not iter_content: it would decompress where a server calls .gz an encoding, and lose the last
                    # bytes before an interruption.
                    for chunk in response.raw.stream(CHUNK, decode_content=False):
                        file.write(chunk)
                        received += len(chunk)
                        if received > wanted.most_bytes:
                            raise TooLargeError(f"sends more than the {wanted.most_bytes} bytes that it has at most")
                        bar.update(task, completed=received)
                except urllib3.exceptions.HTTPError as error:
                    raise OSError(
                        f"interrupted after {received} of {expected or '?'} bytes; the next attempt resumes from there"
                    ) from error
        os.replace(part, output_file)
        return None

    return download


def _problem(folder: Path, file: RemoteFile) -> str | None:
    """Return the problem of one file of a data set on disk, plain or gzipped, or None."""
    plain = folder / file.name
    for path in (folder / file.remote, plain):
        try:
            there = is_file(path)
        except DataError as error:
            return str(error)
        if there:
            if path.name != file.remote and _only_as_remote(file):
                return f"{path}: only the archive's checksum is known, keep {file.remote}"
            problem = _content_problem(path, file)
            return None if problem is None else f"{path}: {problem}"
    return f"{plain}: missing (as .gz too)" if file.gzipped else f"{plain}: missing"


def _second_problem(folder: Path, file: RemoteFile) -> str | None:
    """Return the problem of a plain file beside its archive, or None: training refuses two that differ."""
    plain = folder / file.name
    if _only_as_remote(file) or not (is_file(folder / file.remote) and is_file(plain)):
        return None
    problem = _content_problem(plain, file)
    return None if problem is None else f"{plain}: {problem}"


def _only_as_remote(file: RemoteFile) -> bool:
    """Return whether a file must be kept as on the mirrors: the checksum is of that form, or it is not gzipped."""
    return not file.gzipped or (file.checksum or "").startswith("md5:")


def _content_problem(path: Path, file: RemoteFile) -> str | None:
    kind, _, expected = (file.checksum or "md5:").partition(":")
    unpacked = " uncompressed" if file.gzipped else ""
    digest, size = hashlib.new(kind, usedforsecurity=False), 0
    try:
        for chunk in _chunks(path, decompress=file.gzipped and kind == "sha256" and path.name != file.name):
            digest.update(chunk)
            size += len(chunk)
            if file.bytes is not None and size > file.bytes:
                return f"more than {file.bytes} bytes{unpacked}, expected {file.bytes}"
    except (OSError, EOFError, zlib.error) as error:
        return f"cannot be decompressed: {error}" if file.gzipped else f"cannot be read: {error}"
    if file.bytes is not None and size != file.bytes:
        return f"{size} bytes{unpacked}, expected {file.bytes}"
    if file.checksum is not None and digest.hexdigest() != expected:
        return f"its {kind} is {digest.hexdigest()}, expected {expected}"
    if file.inspect is not None:
        try:
            file.inspect(path)
        except DataError as error:
            return str(error).removeprefix(str(path)).lstrip(": ")
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
