"""Downloads from a real server on this machine, which can do all that mirrors do wrong."""

import gzip
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data import datasets, download
from fptt_dist.tasks.data.datasets import DATASETS, RemoteDataset, RemoteFile
from fptt_dist.tasks.data.download import check, fetch

CONTENT = {"images": np.random.default_rng(0).bytes(700_000), "labels": np.random.default_rng(1).bytes(1000)}
ARCHIVE = {name: gzip.compress(content, mtime=0) for name, content in CONTENT.items()}
WHOLE = {f"{name}.gz": archive for name, archive in ARCHIVE.items()}
CUT = 300_001  # bytes after which the mirror "cut" hangs up
OTHER = gzip.compress(b"x" * 1000, mtime=0)


class Handler(BaseHTTPRequestHandler):
    """`/<mirror>/<name>`, where the mirror's name says how it behaves."""

    timeout = 10

    @property
    def host(self) -> "Server":
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        mirror, name = self.path.strip("/").split("/")
        self.host.seen.append((mirror, name, self.headers.get("Range")))
        archive = self.host.served[name]
        match mirror:
            case "flood":
                self.flood()
            case "long":
                self.answer(200, b"x" * (archive_limit(name) + 1))
            case "404" | "500" | "416":
                self.send_error(int(mirror))
            case "labels-only" if "labels" not in name:
                self.send_error(404)
            case "other":
                self.answer(200, OTHER)
            case "page":
                self.answer(200, b"<html>Please log in</html>")
            case "silent":
                self.host.released.wait(10)
            case "stalls":
                self.answer(200, archive, send=CUT, stall=True)
            case "unranged":
                self.answer(200, archive)
            case "unsized":
                self.answer(200, archive, sized=False)
            case "encoded":
                self.answer(200, archive, encoding="gzip")
            case "ranged" | "labels-only":
                self.ranged(archive)
            case "cut":
                self.ranged(archive, send=CUT)
            case _:
                raise AssertionError(mirror)

    def flood(self) -> None:
        """Send zeros without an end."""
        self.send_response(200)
        self.end_headers()
        with suppress(ConnectionError):
            while True:
                self.wfile.write(bytes(1 << 16))

    def ranged(self, archive: bytes, send: int | None = None) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found.group(1)) if found else 0
        if start >= len(archive):
            self.send_error(416)
        else:
            self.answer(206 if found else 200, archive[start:], send=send)

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        send: int | None = None,
        sized: bool = True,
        encoding: str = "",
        stall: bool = False,
    ) -> None:
        self.send_response(status)
        if sized:
            self.send_header("Content-Length", str(len(body)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        sent = body[:send]
        self.wfile.write(sent[: len(sent) // 2])
        self.wfile.flush()
        self.host.halfway()
        self.wfile.write(sent[len(sent) // 2 :])
        self.wfile.flush()
        if stall:
            self.host.released.wait(10)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests look at `seen`."""


class Server(ThreadingHTTPServer):
    """What it was asked for, and what to do in the middle of an answer."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served = CONTENT | WHOLE
        self.seen: list[tuple[str, str, str | None]] = []
        self.halfway: Callable[[], object] = lambda: None
        self.released = threading.Event()

    def mirrors(self, *names: str) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{self.server_port}/{name}/" for name in names)

    def ranges(self, wanted: str = "images.gz") -> list[tuple[str, str | None]]:
        """Mirror and Range of each request for a file."""
        return [(mirror, asked) for mirror, name, asked in self.seen if name == wanted]


def archive_limit(name: str) -> int:
    return RemoteFile(name, len(CONTENT[name.removesuffix(".gz")]), None).most_bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def known(monkeypatch: pytest.MonkeyPatch, mirrors: tuple[str, ...], *names: str) -> None:
    """Let the data sets be of the files `names`: `small` (sha256 of the files), `old` (md5 of the archives) and `plain`
    (not gzipped on the mirrors)."""
    names = names or tuple(CONTENT)
    small = tuple(RemoteFile(name, len(CONTENT[name]), f"sha256:{sha256(CONTENT[name])}") for name in names)
    old = tuple(RemoteFile(name, None, f"md5:{md5(ARCHIVE[name])}") for name in names)
    plain = tuple(replace(file, gzipped=False) for file in small)
    sets = {name: RemoteDataset(name, mirrors, files) for name, files in (("small", small), ("old", old))}
    monkeypatch.setattr(download, "DATASETS", {**sets, "plain": RemoteDataset("texts", mirrors, plain)})


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def refusal(root: Path, name: str = "small") -> str:
    with pytest.raises(DataError) as caught:
        fetch(name, root)
    return str(caught.value)


def failure(root: Path, *lines: str) -> str:
    """The message for the images, with a line a mirror."""
    return (
        "images could not be fetched:\n  " + "\n  ".join(lines) + "\nWithout a network, put images or images.gz into "
        f"{root}/small yourself; `fptt-dist data check` says whether it is right"
    )


@pytest.mark.parametrize("mirror", ["ranged", "unranged", "unsized", "encoded"])
@pytest.mark.parametrize("name", ["small", "old"])
def test_files_come_whole_and_leave_nothing_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, mirror: str, name: str
) -> None:
    known(monkeypatch, server.mirrors(mirror))
    root = tmp_path / "not" / "yet"
    assert fetch(name, root, progress=mirror == "ranged") == root / name
    assert listing(root / name) == WHOLE
    assert check(name, root) == []
    assert server.seen == [(mirror, "images.gz", None), (mirror, "labels.gz", None)]


def test_whole_files_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    known(monkeypatch, server.mirrors("ranged"))
    folder = fetch("small", tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    server.seen.clear()
    fetch("small", tmp_path)
    assert server.seen == []
    (folder / "labels.gz").unlink()
    (folder / "labels").write_bytes(CONTENT["labels"])
    fetch("small", tmp_path)
    assert server.seen == [], "a plain file is as good"
    (folder / "labels").write_bytes(CONTENT["labels"][:-1])
    fetch("small", tmp_path)
    assert server.seen == [("ranged", "labels.gz", None)], "only what is wrong"
    assert (folder / "images.gz").stat().st_mtime_ns == stamps[folder / "images.gz"]
    assert check("small", tmp_path) == [f"{folder}/labels: 999 bytes uncompressed, expected 1000"], "beside the archive"
    (folder / "labels").unlink()
    assert check("small", tmp_path) == []


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("404", "HTTP status 404"),
        ("500", "HTTP status 500"),
        ("416", "HTTP status 416"),
        ("other", "1000 bytes uncompressed, expected 700000"),
        ("page", "cannot be decompressed: Not a gzipped file (b'<h')"),
    ],
)
def test_the_second_mirror_steps_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, mirror: str, reason: str
) -> None:
    known(monkeypatch, server.mirrors(mirror), "images")
    assert refusal(tmp_path) == failure(tmp_path, f"{server.mirrors(mirror)[0]}images.gz: {reason}")
    assert listing(tmp_path / "small") == {}
    server.seen.clear()
    known(monkeypatch, server.mirrors(mirror, "ranged"), "images")
    fetch("small", tmp_path)
    assert server.ranges() == [(mirror, None), ("ranged", None)]
    assert listing(tmp_path / "small") == {"images.gz": ARCHIVE["images"]}


@pytest.mark.parametrize("name", ["small", "old"])
def test_no_more_is_received_than_a_file_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, name: str
) -> None:
    """Of the file's own size where it is known, and else of any."""
    monkeypatch.setattr(datasets, "LARGEST", archive_limit("images.gz"))
    most, mirrors = archive_limit("images.gz"), server.mirrors("flood", "long")
    known(monkeypatch, mirrors, "images")
    said = refusal(tmp_path, name)
    assert f"{mirrors[0]}images.gz: sends more than the {most} bytes that it has at most\n" in said
    assert f"{mirrors[1]}images.gz: announces {most + 1} bytes, and images.gz has at most {most}\n" in said
    assert listing(tmp_path / name) == {}
    known(monkeypatch, server.mirrors("flood", "ranged"), "images")
    fetch(name, tmp_path)
    assert listing(tmp_path / name) == {"images.gz": ARCHIVE["images"]}


def test_the_limits_hold_for_what_mirrors_have() -> None:
    """gzip adds at most 5 bytes for each 16 KiB, and 18."""
    sizes = {file.name: (file.bytes, file.most_bytes) for each in DATASETS.values() for file in each.files}
    assert all(most > size + 5 * (size // (1 << 14) + 1) + 18 for size, most in sizes.values() if size is not None)
    assert datasets.LARGEST > 170_052_171  # CIFAR-10's archive


def test_a_bomb_is_not_decompressed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, (), "labels")
    path = tmp_path / "small" / "labels.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(bytes(1 << 24), compresslevel=1))
    pieces: list[int] = []
    real = download._chunks

    def counted(*arguments: Any, **options: Any) -> Iterator[bytes]:
        for piece in real(*arguments, **options):
            pieces.append(len(piece))
            yield piece

    monkeypatch.setattr(download, "_chunks", counted)
    assert check("small", tmp_path) == [f"{path}: more than 1000 bytes uncompressed, expected 1000"]
    assert sum(pieces) <= download.CHUNK


def test_the_errors_of_all_mirrors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    mirrors = server.mirrors("other", "404", "page")
    known(monkeypatch, mirrors)
    assert refusal(tmp_path) == failure(
        tmp_path,
        f"{mirrors[0]}images.gz: 1000 bytes uncompressed, expected 700000",
        f"{mirrors[1]}images.gz: HTTP status 404",
        f"{mirrors[2]}images.gz: cannot be decompressed: Not a gzipped file (b'<h')",
    )
    assert listing(tmp_path / "small") == {}


def test_a_wrong_checksum_is_told_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    url = f"{server.mirrors('other')[0]}labels.gz"
    known(monkeypatch, server.mirrors("other"), "labels")  # as many bytes as expected, but others
    expected = f"{url}: its sha256 is {sha256(b'x' * 1000)}, expected {sha256(CONTENT['labels'])}\n"
    assert expected in refusal(tmp_path)
    assert f"{url}: its md5 is {md5(OTHER)}, expected {md5(ARCHIVE['labels'])}\n" in refusal(tmp_path, "old")
    assert f"Without a network, put labels.gz into {tmp_path}/old yourself" in refusal(tmp_path, "old")
    assert listing(tmp_path / "small") == listing(tmp_path / "old") == {}


def test_a_broken_off_download_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    total, url = len(ARCHIVE["images"]), f"{server.mirrors('cut')[0]}images.gz"
    reason = f"interrupted after {{}} of {total} bytes; the next attempt resumes from there"
    known(monkeypatch, server.mirrors("cut"))
    assert refusal(tmp_path) == failure(tmp_path, f"{url}: {reason.format(CUT)}")
    assert listing(tmp_path / "small") == {"images.gz.part": ARCHIVE["images"][:CUT]}
    assert refusal(tmp_path) == failure(tmp_path, f"{url}: {reason.format(2 * CUT)}")
    assert listing(tmp_path / "small") == {"images.gz.part": ARCHIVE["images"][: 2 * CUT]}
    fetch("small", tmp_path)
    assert server.ranges() == [("cut", None), ("cut", f"bytes={CUT}-"), ("cut", f"bytes={2 * CUT}-")]
    assert listing(tmp_path / "small") == WHOLE
    assert check("small", tmp_path) == []


def test_the_second_mirror_goes_on_where_the_first_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server.mirrors("cut", "404", "ranged"))
    fetch("small", tmp_path)
    assert server.ranges() == [("cut", None), ("404", f"bytes={CUT}-"), ("ranged", f"bytes={CUT}-")]
    assert listing(tmp_path / "small") == WHOLE


def test_a_server_that_cannot_resume_sends_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server.mirrors("cut", "unranged"))
    fetch("small", tmp_path)
    assert server.ranges() == [("cut", None), ("unranged", f"bytes={CUT}-")]
    assert listing(tmp_path / "small") == WHOLE


@pytest.mark.parametrize("more", [b"", b"and more"])
def test_a_part_as_long_as_the_file_or_longer_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, more: bytes
) -> None:
    known(monkeypatch, server.mirrors("ranged"))
    part = tmp_path / "small" / "images.gz.part"
    part.parent.mkdir()
    part.write_bytes(ARCHIVE["images"] + more)
    fetch("small", tmp_path)
    assert server.ranges() == [("ranged", f"bytes={len(ARCHIVE['images'] + more)}-"), ("ranged", None)]
    assert listing(tmp_path / "small") == WHOLE


def test_a_part_of_something_else_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    known(monkeypatch, server.mirrors("ranged", "ranged"))
    part = tmp_path / "small" / "images.gz.part"
    part.parent.mkdir()
    part.write_bytes(b"nonsense")
    fetch("small", tmp_path)
    assert server.ranges() == [("ranged", "bytes=8-"), ("ranged", None)]
    assert listing(tmp_path / "small") == WHOLE


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    kept = CUT // download.CHUNK * download.CHUNK  # whole chunks
    mirrors = server.mirrors("silent", "stalls")
    known(monkeypatch, mirrors)
    assert refusal(tmp_path) == failure(
        tmp_path,
        f"{mirrors[0]}images.gz: no answer within 0.3 s",
        f"{mirrors[1]}images.gz: interrupted after {kept} of {len(ARCHIVE['images'])} bytes; "
        "the next attempt resumes from there",
    )
    assert listing(tmp_path / "small") == {"images.gz.part": ARCHIVE["images"][:kept]}


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        mirror = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        known(monkeypatch, (mirror, f"{mirror}second/"))
        assert refusal(tmp_path) == failure(
            tmp_path,
            f"{mirror}images.gz: no connection (is there a network?)",
            f"{mirror}second/images.gz: no connection (is there a network?)",
        )
    assert listing(tmp_path / "small") == {}


@pytest.mark.parametrize("mirror", ["ranged", "cut", "other", "page"])
@pytest.mark.parametrize("before", [None, b"broken"])
def test_the_files_own_name_is_never_given_to_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, mirror: str, before: bytes | None
) -> None:
    known(monkeypatch, server.mirrors(mirror), "images")
    final = tmp_path / "small" / "images.gz"
    final.parent.mkdir()
    if before is not None:
        final.write_bytes(before)
    halfway = []
    server.halfway = lambda: halfway.append(final.read_bytes() if final.exists() else None)
    if mirror == "ranged":
        fetch("small", tmp_path)
    else:
        refusal(tmp_path)
    assert halfway == [before]
    assert (final.read_bytes() if final.exists() else None) == (ARCHIVE["images"] if mirror == "ranged" else before)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    root = tmp_path / "file"
    root.write_text("")
    known(monkeypatch, server.mirrors("ranged"))
    url = f"{server.mirrors('ranged')[0]}images.gz"
    assert refusal(root) == failure(root, f"{url}: [Errno 20] Not a directory: '{root}/small'")
    assert server.seen == []


@pytest.mark.parametrize("mirror", ["ranged", "unranged", "unsized", "encoded"])
def test_plain_files_come_whole_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, mirror: str
) -> None:
    known(monkeypatch, server.mirrors(mirror))
    assert fetch("plain", tmp_path) == tmp_path / "texts"
    assert listing(tmp_path / "texts") == CONTENT
    assert check("plain", tmp_path) == []
    fetch("plain", tmp_path)
    assert server.seen == [(mirror, "images", None), (mirror, "labels", None)], "once each"


def test_a_broken_off_plain_file_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server.mirrors("cut", "cut"))
    urls = [f"{mirror}images: interrupted after" for mirror in server.mirrors("cut", "cut")]
    assert refusal(tmp_path, "plain") == (
        f"images could not be fetched:\n  {urls[0]} {CUT} of 700000 bytes; the next attempt resumes from there\n"
        f"  {urls[1]} {2 * CUT} of 700000 bytes; the next attempt resumes from there\n"
        f"Without a network, put images into {tmp_path}/texts yourself; `fptt-dist data check` says whether it is right"
    )
    assert listing(tmp_path / "texts") == {"images.part": CONTENT["images"][: 2 * CUT]}
    fetch("plain", tmp_path)
    assert server.ranges("images") == [("cut", None), ("cut", f"bytes={CUT}-"), ("cut", f"bytes={2 * CUT}-")]
    assert listing(tmp_path / "texts") == CONTENT


def test_a_mirror_that_lacks_some_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    mirrors = server.mirrors("labels-only", "ranged")
    known(monkeypatch, mirrors)
    fetch("plain", tmp_path)
    assert listing(tmp_path / "texts") == CONTENT
    assert server.seen == [("labels-only", "images", None), ("ranged", "images", None), ("labels-only", "labels", None)]
    known(monkeypatch, mirrors[:1])
    (tmp_path / "texts" / "images").unlink()
    assert f"  {mirrors[0]}images: HTTP status 404\n" in refusal(tmp_path, "plain")


def test_what_check_says_of_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, (), "labels")
    path, content = tmp_path / "texts" / "labels", CONTENT["labels"]
    assert check("plain", tmp_path) == [f"{path}: missing"]
    path.parent.mkdir()
    (tmp_path / "texts" / "labels.gz").write_bytes(ARCHIVE["labels"])
    assert check("plain", tmp_path) == [f"{path}: missing"], "nobody reads it gzipped"
    flipped = bytes([content[0] ^ 1]) + content[1:]
    for written, problem in (
        (content, None),
        (content[:-1], "999 bytes, expected 1000"),
        (flipped, f"its sha256 is {sha256(flipped)}, expected {sha256(content)}"),
    ):
        path.write_bytes(written)
        assert check("plain", tmp_path) == ([] if problem is None else [f"{path}: {problem}"])


def test_what_check_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, (), "labels")
    plain, archive = tmp_path / "small" / "labels", tmp_path / "small" / "labels.gz"
    assert check("small", tmp_path) == [f"{plain}: missing (as .gz too)"]
    plain.parent.mkdir()
    content, packed = CONTENT["labels"], ARCHIVE["labels"]
    flipped = bytes([content[0] ^ 1]) + content[1:]
    wrong = f"its sha256 is {sha256(flipped)}, expected {sha256(content)}"
    cut = "cannot be decompressed: Compressed file ended before the end-of-stream marker was reached"
    for path, written, problem in (
        (plain, content, None),
        (plain, content[:-1], "999 bytes uncompressed, expected 1000"),
        (plain, content + b"x", "more than 1000 bytes uncompressed, expected 1000"),
        (plain, b"", "0 bytes uncompressed, expected 1000"),
        (plain, flipped, wrong),
        (archive, packed, None),
        (archive, gzip.compress(content, compresslevel=1), None),
        (archive, packed[:-20], cut),
        (archive, packed[:5], cut),
        (archive, content, f"cannot be decompressed: Not a gzipped file ({content[:2]!r})"),
        (archive, gzip.compress(content[:-1]), "999 bytes uncompressed, expected 1000"),
        (archive, gzip.compress(flipped), wrong),
    ):
        path.write_bytes(written)
        assert check("small", tmp_path) == ([] if problem is None else [f"{path}: {problem}"])
        path.unlink()
    plain.mkdir()
    assert check("small", tmp_path) == [f"{plain}: missing (as .gz too)"]


def test_check_names_every_file_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, ())
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "images").write_bytes(CONTENT["images"][:-1])
    assert check("small", tmp_path) == [
        f"{tmp_path}/small/images: 699999 bytes uncompressed, expected 700000",
        f"{tmp_path}/small/labels: missing (as .gz too)",
    ]


def test_of_two_both_are_checked_the_archive_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, (), "labels")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "labels").write_bytes(b"broken")
    (tmp_path / "small" / "labels.gz").write_bytes(ARCHIVE["labels"])
    assert check("small", tmp_path) == [f"{tmp_path}/small/labels: 6 bytes uncompressed, expected 1000"]
    (tmp_path / "small" / "labels").write_bytes(CONTENT["labels"])
    (tmp_path / "small" / "labels.gz").write_bytes(OTHER)
    (problem,) = check("small", tmp_path)
    assert problem.startswith(f"{tmp_path}/small/labels.gz: its sha256 is ")


def test_a_path_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, (), "labels")
    root = tmp_path / ("x" * 300)
    path = root / "small" / "labels.gz"
    assert check("small", root) == [f"{path} cannot be read: [Errno 36] File name too long: '{path}'"]


def test_where_only_the_archives_checksum_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    known(monkeypatch, server.mirrors("ranged"), "labels")
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "labels").write_bytes(CONTENT["labels"])
    assert check("old", tmp_path) == [f"{folder}/labels: only the archive's checksum is known, keep labels.gz"]
    repacked = gzip.compress(CONTENT["labels"], compresslevel=1, mtime=5)
    (folder / "labels.gz").write_bytes(repacked)
    assert check("old", tmp_path) == [
        f"{folder}/labels.gz: its md5 is {md5(repacked)}, expected {md5(ARCHIVE['labels'])}"
    ]
    fetch("old", tmp_path)
    assert check("old", tmp_path) == []
    assert listing(folder) == {"labels": CONTENT["labels"], "labels.gz": ARCHIVE["labels"]}


@pytest.mark.parametrize("call", [check, fetch])
def test_an_unknown_name(tmp_path: Path, call: Callable[[str, Path], object]) -> None:
    with pytest.raises(DataError) as caught:
        call("cifar", tmp_path)
    known_ones = "mnist, fashion-mnist, cifar10, ptb"
    assert str(caught.value) == f"cifar is no data set that can be fetched; there are: {known_ones}"
    assert listing(tmp_path) == {}


def test_the_table_of_data_sets() -> None:
    assert list(DATASETS) == ["mnist", "fashion-mnist", "cifar10", "ptb"]
    for name, dataset in DATASETS.items():
        assert len(set(dataset.mirrors)) == (1 if name == "cifar10" else 2)
        assert all(re.fullmatch(r"https?://.*/", mirror) for mirror in dataset.mirrors)
        fetched = [dataset.archive] if dataset.archive else dataset.files
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.checksum or "") for file in fetched)
        assert len({file.checksum for file in fetched}) == len(fetched)
    for name in ("mnist", "fashion-mnist"):
        assert [file.remote for file in DATASETS[name].files] == [
            f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
        ]
    sizes = [file.bytes for file in DATASETS["mnist"].files]
    assert sizes == [16 + 60000 * 784, 8 + 60000, 16 + 10000 * 784, 8 + 10000]
    assert [file.remote for file in DATASETS["ptb"].files] == [
        f"ptb.{kind}{split}.txt" for kind in ("", "char.") for split in ("train", "valid", "test")
    ]
    colors = DATASETS["cifar10"]
    assert {name: dataset.folder for name, dataset in DATASETS.items() if dataset.folder != name} == {
        "cifar10": "cifar-10-batches-bin"
    }
    assert colors.archive is not None
    assert colors.archive.remote == "cifar-10-binary.tar.gz"
    assert {file.bytes for file in colors.files} == {30_730_000}


@pytest.mark.skipif(
    not (Path(os.environ.get("FPTT_DATA", "")) / "ptb").is_dir(), reason="needs FPTT_DATA, the folder that holds ptb/"
)
def test_the_real_penn_treebank() -> None:
    assert check("ptb", Path(os.environ["FPTT_DATA"])) == []
