"""A data set that comes as one tar archive: fetched as other files are, and nothing but its own files unpacked."""

import gzip
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data import download
from fptt_dist.tasks.data.cifar import read_cifar10
from fptt_dist.tasks.data.datasets import DATASETS
from fptt_dist.tasks.data.download import check, fetch
from tests.tasks.test_cifar import NAMES, some_records
from tests.tasks.test_download import CUT, OTHER, Server, listing, md5, server

__all__ = ["server"]

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
RECORDS = 40
CONTENT = {name: some_records(RECORDS, seed) for seed, name in enumerate(NAMES)}


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", claims: int = 0) -> Member:
    """A member, and what follows its header; `claims`: the size that the header says, if another one."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = claims or len(content), kind, link
    return info, content


def tar(*members: Member) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if content else None)
    return gzip.compress(stream.getvalue(), mtime=0)


MEMBERS = {name: member(f"{FOLDER}/{name}", content) for name, content in CONTENT.items()}
USUAL = tar(  # as the real one, with files that nobody reads
    member(FOLDER, kind=tarfile.DIRTYPE),
    member(f"{FOLDER}/readme.html", b"<html>"),
    *MEMBERS.values(),
    member(f"{FOLDER}/batches.meta.txt", b"airplane\n"),
)


def known(monkeypatch: pytest.MonkeyPatch, server: Server | None, archive: bytes, *mirrors: str) -> None:
    """Let `cifar10` be six small files in `archive`, which the mirrors serve."""
    real = DATASETS["cifar10"]
    assert real.archive is not None
    if server is not None:
        server.served[ARCHIVE] = archive
    small = replace(
        real,
        mirrors=server.mirrors(*mirrors) if server else (),
        files=tuple(replace(file, bytes=RECORDS * 3073) for file in real.files),
        archive=replace(real.archive, checksum=f"md5:{md5(archive)}"),
    )
    monkeypatch.setattr(download, "DATASETS", {"cifar10": small})


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch("cifar10", root)
    return str(caught.value)


def put(root: Path, archive: bytes) -> Path:
    path = root / FOLDER / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(archive)
    return path


@pytest.mark.parametrize("mirror", ["ranged", "unranged", "unsized", "encoded"])
def test_the_files_come_whole_and_leave_nothing_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, mirror: str
) -> None:
    known(monkeypatch, server, USUAL, mirror)
    root = tmp_path / "not" / "yet"
    assert fetch("cifar10", root) == root / FOLDER
    assert listing(root / FOLDER) == CONTENT
    assert check("cifar10", root) == []
    assert len(read_cifar10(root)[0]) == 5 * RECORDS
    fetch("cifar10", root)
    assert server.seen == [(mirror, ARCHIVE, None)], "once"


def test_a_broken_off_archive_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server, USUAL, "cut")
    url = f"{server.mirrors('cut')[0]}{ARCHIVE}"
    for held in (CUT, 2 * CUT):
        assert refusal(tmp_path) == (
            f"{ARCHIVE} could not be fetched:\n"
            f"  {url}: interrupted after {held} of {len(USUAL)} bytes; the next attempt resumes from there\n"
            f"Without a network, put {ARCHIVE} into {tmp_path}/{FOLDER} yourself; `fptt-dist data fetch` unpacks it"
        )
        assert listing(tmp_path / FOLDER) == {f"{ARCHIVE}.part": USUAL[:held]}
    fetch("cifar10", tmp_path)
    assert server.ranges(ARCHIVE) == [("cut", None), ("cut", f"bytes={CUT}-"), ("cut", f"bytes={2 * CUT}-")]
    assert listing(tmp_path / FOLDER) == CONTENT


def test_an_archive_with_another_md5_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server, USUAL, "other", "404")
    mirrors = server.mirrors("other", "404")
    assert refusal(tmp_path).splitlines()[1:3] == [
        f"  {mirrors[0]}{ARCHIVE}: its md5 is {md5(OTHER)}, expected {md5(USUAL)}",
        f"  {mirrors[1]}{ARCHIVE}: HTTP status 404",
    ]
    assert listing(tmp_path / FOLDER) == {}
    server.served[ARCHIVE] = tar(*MEMBERS.values())  # the right files, packed otherwise
    known(monkeypatch, None, USUAL)
    put(tmp_path / "own", server.served[ARCHIVE])
    assert refusal(tmp_path / "own").startswith(f"{ARCHIVE} could not be fetched:")
    assert listing(tmp_path / "own" / FOLDER).keys() == {ARCHIVE}


def test_an_archive_put_there_by_hand_is_unpacked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, None, USUAL)
    put(tmp_path, USUAL)
    fetch("cifar10", tmp_path)
    assert listing(tmp_path / FOLDER) == {**CONTENT, ARCHIVE: USUAL}


def test_only_what_is_wrong_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, None, USUAL)
    put(tmp_path, USUAL)
    folder = fetch("cifar10", tmp_path)
    stamps = {name: (folder / name).stat().st_mtime_ns for name in NAMES}
    (folder / "test_batch.bin").write_bytes(CONTENT["test_batch.bin"][:-1])
    (folder / "data_batch_4.bin").unlink()
    fetch("cifar10", tmp_path)
    assert {name: (folder / name).read_bytes() for name in NAMES} == CONTENT
    kept = {name for name in NAMES if (folder / name).stat().st_mtime_ns == stamps[name]}
    assert kept == set(NAMES) - {"test_batch.bin", "data_batch_4.bin"}


def test_what_check_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, None, USUAL)
    folder = put(tmp_path, USUAL).parent
    assert check("cifar10", tmp_path) == [f"{folder}/{name}: missing" for name in NAMES]
    fetch("cifar10", tmp_path)
    right = CONTENT["data_batch_2.bin"]
    again = f"get it again with: fptt-dist data fetch cifar10 --root {tmp_path}"
    for written, problem in (
        (right, None),
        (right[:-3073], f"{39 * 3073} bytes, expected {40 * 3073}"),
        (b"", f"0 bytes, expected {40 * 3073}"),
        (right[: 7 * 3073] + b"\x0a" + right[7 * 3073 + 1 :], f"label 7 is 10, expected 0 to 9; {again}"),
    ):
        path = folder / "data_batch_2.bin"
        path.write_bytes(written)
        assert check("cifar10", tmp_path) == ([] if problem is None else [f"{path}: {problem}"])


@pytest.mark.parametrize(
    "evil", ["above", "absolute", "symlink", "symlink outside", "hardlink", "folder", "elsewhere", "twice"]
)
def test_hostile_members_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, evil: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    worse = CONTENT["data_batch_1.bin"][::-1]
    name = f"{FOLDER}/data_batch_1.bin"
    hostile = {
        "above": [member("../evil", worse), member(f"{FOLDER}/../../evil", worse)],
        "absolute": [member(str(tmp_path / "evil"), worse), member(str(root / name), worse)],
        "symlink": [member(f"{FOLDER}/x", worse), member(name, kind=tarfile.SYMTYPE, link="x", claims=len(worse))],
        "symlink outside": [member(name, kind=tarfile.SYMTYPE, link=str(outside / "mine"), claims=len(worse))],
        "hardlink": [member(name, kind=tarfile.LNKTYPE, link=str(outside / "mine"), claims=len(worse))],
        "folder": [member(FOLDER, kind=tarfile.SYMTYPE, link=str(outside)), member(name, kind=tarfile.DIRTYPE)],
        "elsewhere": [member(f"other/{name}", worse), member("data_batch_1.bin", worse)],
        "twice": [member(name, worse + b"x"), member(name, b"")],
    }[evil]
    known(monkeypatch, server, tar(*hostile, *MEMBERS.values()), "ranged")
    fetch("cifar10", root)
    assert listing(root / FOLDER) == CONTENT
    assert not any(path.is_symlink() for path in root.rglob("*"))
    assert listing(outside) == {"mine": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"root", "outside"}
    assert {path.name for path in root.iterdir()} == {FOLDER}


@pytest.mark.parametrize("instead", ["nothing", "symlink", "shorter", "longer"])
def test_an_archive_that_lacks_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str) -> None:
    name, content = f"{FOLDER}/data_batch_3.bin", CONTENT["data_batch_3.bin"]
    members = {
        "nothing": [],
        "symlink": [member(name, kind=tarfile.SYMTYPE, link="test_batch.bin")],
        "shorter": [member(name, content[:-1])],
        "longer": [member(name, content + b"x")],
    }[instead]
    rest = [other for other in MEMBERS if other != "data_batch_3.bin"]
    archive = tar(*members, *(MEMBERS[other] for other in rest))
    known(monkeypatch, None, archive)
    path = put(tmp_path, archive)
    assert (
        refusal(tmp_path)
        == f"{path} does not hold {name}, a file of {RECORDS * 3073} bytes. Delete it, and fetch again"
    )
    assert listing(tmp_path / FOLDER).keys() == {ARCHIVE, *rest}


@pytest.mark.parametrize("damage", ["cut short", "no tar", "no gzip"])
def test_an_archive_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    archive = {
        "cut short": USUAL[: len(USUAL) // 2],
        "no tar": gzip.compress(b"x" * 2000),
        "no gzip": hashlib.sha256(b"").digest() * 100,
    }[damage]
    known(monkeypatch, None, archive)
    path = put(tmp_path, archive)
    assert refusal(tmp_path).startswith(f"{path} cannot be unpacked: ")
    for name, content in listing(tmp_path / FOLDER).items():
        assert name == ARCHIVE or name.endswith(".part") or content == CONTENT[name], "whole, or under another name"
