"""The lock of a directory: one holder at a time; the dead, the silent and those that SLURM started again give way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.training.lock import directory_lock as lock
from fptt_dist.training.lock import holder
from fptt_dist.training.lock.directory_lock import DirectoryLock, HeldError, LostLockError, hold, is_lock
from fptt_dist.training.lock.holder import STARTER, Holder

HOLDS = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with shorter waits."""
    for name, seconds in {"BEAT": 0.1, "SILENCE": 0.6, "LOOK": 0.05, "ENDING": 0.1}.items():
        monkeypatch.setattr(lock, name, seconds)


def taken(folder: Path) -> DirectoryLock:
    return DirectoryLock(folder, f"run.dir={folder}")


def left_by(folder: Path, **changed: Any) -> Holder:
    """A lock's file as a holder leaves it that is like this process, but for `changed`."""
    folder.mkdir(exist_ok=True)
    made = replace(Holder.here(kernel=True), **changed)
    (folder / ".lock").write_bytes(made.text())
    return made


def takes(folder: Path) -> float:
    """The seconds until the lock is taken."""
    began = time.monotonic()
    with taken(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        assert [path.name for path in folder.iterdir()] == [".lock"]
        return time.monotonic() - began


def refused(folder: Path) -> str:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(HeldError) as caught, taken(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == before
    return str(caught.value)


@contextmanager
def another(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def beating(file: Path) -> Iterator[None]:
    """Signs of life from another node."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.02):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_one_holder_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with taken(tmp_path):
        said = json.loads((tmp_path / ".lock").read_text())
        assert said == {
            **said,
            "host": socket.gethostname(),
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "pid": os.getpid(),
            "job": "12",
            "restart": 0,
            "kernel": True,
        }
        again = tmp_path / "link"
        again.symlink_to(tmp_path)
        message = refused(again)
        assert message == (
            f"run.dir={again} is in use by pid {os.getpid()} on {socket.gethostname()} (user {said['user']}, SLURM job "
            f"12, since {said['since']}): wait until it has ended, or type run.dir=… for another folder"
        )
        again.unlink()
        with taken(tmp_path / ".."):  # another directory
            pass
    assert list(tmp_path.iterdir()) == []
    takes(tmp_path)


def test_a_directory_is_created_for_its_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "deep" / "run", "run.dir=x") as held:
        held.check()
        assert held.held
        with pytest.raises(HeldError), hold(tmp_path / "deep" / "run", "run.dir=x"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^run.dir=x cannot be created: Not a directory$"):
        hold(tmp_path / "file" / "run", "run.dir=x").__enter__()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "no regular file"),  # which is not waited for
        (os.mkdir, "no regular file"),
        (lambda path: os.symlink("/nowhere", path), "Too many levels of symbolic links"),
    ],
)
def test_a_name_that_is_no_file(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / ".lock")
    taken(tmp_path).refuse()
    with pytest.raises(ConfigError) as caught, hold(tmp_path, "run.dir=x"):
        pass
    assert str(caught.value) == (
        f"run.dir=x: its lock {tmp_path / '.lock'} cannot be taken: {reason}: delete that file if no process writes "
        "into its folder, or type run.dir=… for another folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("wrong", [{"pid": 10**20}, {"pid": 0}, {"pid": -1}, {"token": "a" * 300}, {"token": "../x"}])
def test_a_holder_that_cannot_be(wrong: dict[str, Any]) -> None:
    said = {**vars(Holder.here(kernel=True)), **wrong}
    assert Holder.parse(json.dumps(said).encode()) is None


def test_a_process_that_lives_is_refused_at_once(tmp_path: Path) -> None:
    with another("input()") as process:
        left_by(tmp_path, pid=process.pid, began=holder._stat(process.pid)[1], kernel=False)
        began = time.monotonic()
        assert f"in use by pid {process.pid} on " in refused(tmp_path)
        with pytest.raises(HeldError):
            taken(tmp_path).refuse()
        assert time.monotonic() - began < 0.5
        process.kill()
        process.wait()
    taken(tmp_path).refuse()
    assert takes(tmp_path) < 0.3


@pytest.mark.parametrize("pid", ["ended", "zombie", "used again"])
def test_a_dead_holder_is_followed_at_once(pid: str, tmp_path: Path) -> None:
    with another("") as process:
        began = holder._stat(process.pid)[1] if pid == "zombie" else "1"
        if pid == "zombie":
            while holder._stat(process.pid)[0] != "Z":
                time.sleep(0.01)
        else:
            process.wait()
        left_by(tmp_path, pid=1 if pid == "used again" else process.pid, began=began)
        assert takes(tmp_path) < 0.3


def test_a_file_that_no_holder_wrote_is_followed(
    subtests: pytest.Subtests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    for content in (b"", b"\0" * 400, b"[" * 60000, b"[1]", b"{}", b"null", b'{"token": "..", "pid"', b"\xff\n"):
        with subtests.test(content=content[:40]):
            (tmp_path / ".lock").write_bytes(content)
            takes(tmp_path)


def test_what_killed_starts_have_left_is_tidied_up(tmp_path: Path) -> None:
    first = left_by(tmp_path, pid=2**22 + 1)
    second = replace(first, token="b" * 32)  # it was about to put its file into the first one's place
    (tmp_path / f".lock.after-{first.token}").write_bytes(second.text())
    (tmp_path / f".lock.{'c' * 32}").write_text("{")
    assert all(is_lock(path.name) for path in tmp_path.iterdir())
    takes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_holder_counts(tmp_path: Path) -> None:
    first = left_by(tmp_path, pid=2**22 + 1)
    (tmp_path / f".lock.after-{first.token}").write_bytes(replace(first, token="b" * 32, pid=os.getpid()).text())
    assert f"pid {os.getpid()}" in refused(tmp_path)


ELSEWHERE = {"host": "other", "boot": "another boot", "kernel": False}


@pytest.mark.parametrize("where", [{"host": "other"}, {"boot": "another boot"}, {"space": 1}])
def test_another_node_is_watched(
    where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "KERNEL_LOCKS", False)
    made = left_by(tmp_path, kernel=False, **where)  # with the number of a process that lives here
    with beating(tmp_path / ".lock"):
        assert f"in use by {made}: " in refused(tmp_path)
    assert caplog.messages == [
        f"run.dir={tmp_path}: held by {made}; a sign of life is waited for, up to 1 s",
    ]
    taken(tmp_path).refuse()  # nothing certain
    caplog.clear()
    assert takes(tmp_path) > 0.6
    assert caplog.messages[1] == f"run.dir={tmp_path}: taken over from {made}, which gives no sign of life"


def test_the_holder_gives_signs_of_life(tmp_path: Path) -> None:
    with taken(tmp_path):
        os.utime(tmp_path / ".lock", ns=(0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / ".lock").stat().st_mtime_ns == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not any(thread.name == "lock" for thread in threading.enumerate())


@pytest.mark.parametrize("local", [True, False])
def test_the_kernels_lock_of_another_node(local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster's file system, and in containers on one disk."""
    monkeypatch.setattr(os, "major", lambda device: int(local))
    left_by(tmp_path, **{**ELSEWHERE, "kernel": True})
    with another(HOLDS, str(tmp_path / ".lock")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        assert "in use by pid" in refused(tmp_path)
        assert (time.monotonic() - began > 0.6) is not local  # a dead NFS client's lock ends with its lease
        if not local:
            threading.Timer(0.3, process.kill).start()
            assert 0.2 < takes(tmp_path) < 0.6
            return
    assert takes(tmp_path) < 0.3


@pytest.mark.parametrize(
    ("before", "now", "gives_way"),
    [
        ({"job": "12", "restart": 0}, {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, True),
        ({"job": "12", "restart": 1}, {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, False),
        ({"job": "11", "restart": 0}, {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, False),
        ({"job": None}, {}, False),
        ({"starter": "a sweep"}, {STARTER: "a sweep"}, True),
        ({"starter": "a sweep"}, {STARTER: "another"}, False),
        ({"starter": "a sweep"}, {}, False),
    ],
)
def test_a_start_gives_way_to_the_next_one(
    before: dict[str, Any], now: dict[str, str], gives_way: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    left_by(tmp_path, **{**ELSEWHERE, **before})
    monkeypatch.setattr(lock, "KERNEL_LOCKS", False)
    with beating(tmp_path / ".lock"):
        if gives_way:
            assert takes(tmp_path) < 0.3
        else:
            refused(tmp_path)


def test_a_sweep_takes_a_paused_runs_lock_within_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTER, "a sweep")
    with taken(tmp_path) as paused:
        with taken(tmp_path) as again:
            assert again.problem() is None
            assert "was taken over by" in str(paused.problem())
            monkeypatch.delenv(STARTER)
            refused(tmp_path)
        with taken(tmp_path):
            refused(tmp_path)


def test_a_holder_that_stood_still_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "KERNEL_LOCKS", False)
    monkeypatch.setattr(lock, "BEAT", 60.0)
    with taken(tmp_path) as first:
        first.check()
        lock._held.clear()
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with taken(tmp_path) as second:
            message = (
                rf"^run.dir={tmp_path} was taken over by pid {os.getpid()} on other \(.*\) while this process stood "
                "still, so nothing more is written: leave the run to that process$"
            )
            with pytest.raises(LostLockError, match=message):
                first.check()
            assert not first.held
            first.__exit__(None, None, None)
            second.check()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_lock_that_was_deleted_is_lost(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hold(folder, "run.dir=x") as held:
        (folder / ".lock").unlink() if what == "file" else shutil.rmtree(folder)
        message = f"run.dir=x: {folder / '.lock'} is gone, so nothing more is written: it was deleted, or another"
        with pytest.raises(LostLockError, match=message):
            held.check()


def test_a_forked_child_has_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = taken(tmp_path)
    held.__enter__()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        held.__exit__(None, None, None)
    held.check()
    held.__exit__(None, None, None)


@pytest.mark.slow
def test_never_two_at_once(subtests: pytest.Subtests, tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "tests.training.lock_driver", str(tmp_path), "3"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    for mode, report in json.loads(program.stdout).items():
        with subtests.test(mode=mode):
            assert report["errors"] == ""
            assert report["wrong"] == 0
            assert report["killed"] >= 1 or "links" in mode
            assert report["taken"] >= (2 if "links" in mode else 10)
            assert all(is_lock(name) for name in report["left"])


@pytest.mark.slow
def test_a_killed_process_leaves_a_lock_that_the_next_one_takes(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fptt_dist.training.lock.directory_lock import hold\n"
        "with hold(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    with another(program, str(tmp_path)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert f"pid {process.pid} on" in refused(tmp_path)
        process.send_signal(signal.SIGSTOP)
        assert f"pid {process.pid} on" in refused(tmp_path)
        process.kill()
        process.wait()
    assert takes(tmp_path) < 0.3
