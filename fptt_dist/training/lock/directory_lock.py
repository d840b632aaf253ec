"""One writer in a directory: an exclusive lock for a process's life, also between the nodes of a shared file system.

    .lock                the holder: `holder.Holder` as JSON; there while it runs, or after it was killed
    .lock.after-TOKEN    the holder that follows TOKEN's, before it has put its file in the place of `.lock`
    .lock.TOKEN          a file that is being prepared

Who may take the lock is decided by `link`, which is atomic on NFS too: of all that want to follow one holder, one alone
can create the name that says so. It holds the lock if the way from `.lock` leads to its file.

Whether a holder still lives is told, in this order, by: SLURM, which has started the job again, or a sweep, which has
started the run again; its process number, on the same node; a POSIX record lock on its file, which the kernel, or NFS's
lock manager, releases when the process ends; and, where the file system has no such locks, or only within a node, the
file's modification time: the holder renews it, and the other process compares it with what it was, so that no clocks
are compared.

A process drops its POSIX lock when it closes any descriptor of the file, so nothing here opens the own file twice.
"""

import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from fptt_dist.config import ConfigError
from fptt_dist.training.lock.holder import Holder

LOG = logging.getLogger("fptt_dist")
NAME = ".lock"
BEAT = 10.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which a holder on another node is gone; NFS caches attributes no longer
LOOK = 2.0  # seconds between two checks of it
ENDING = 2.0  # seconds that a holder may take to end, before the lock is refused
SETTLE = 1.0  # seconds within which whoever saw a name free has taken it, where the file system has no hard links
PATIENCE = 60.0  # seconds to try while other processes are quicker
KERNEL_LOCKS = True
"""False only in tests: as on a file system without POSIX locks."""
BLOCKED = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

Kernel = Literal["held", "free", "unknown"]

_held: dict[Path, Holder] = {}  # within this process, which its own POSIX locks do not stop
_guard = threading.Lock()


class HeldError(ConfigError):
    """Another process has the lock; the message names it."""


class LostLockError(OSError):
    """Another process has taken the lock over, or it was deleted: this process must not write any more."""


@dataclass(frozen=True)
class _Found:
    """A lock's file as it was found.

    Attributes:
        token: of its holder; the file's number where that cannot be read.
        holder: None where it cannot be read.
        kernel: whether the holder has a kernel's lock.
        beat: the newest sign of life, ns.
        local: whether the file is on a disk of this node.
    """

    token: str
    holder: Holder | None
    kernel: Kernel
    beat: int
    local: bool


class DirectoryLock:
    """The lock of a directory, as a context.

    Args:
        folder: the directory, which must be there.
        what: how messages name it, such as run.dir=runs/x.
        name: of the lock's file.

    Raises (on entering):
        HeldError: a process that lives holds it.
        OSError: the directory cannot be written.
    """

    def __init__(self, folder: Path, what: str, name: str = NAME) -> None:
        self.folder = folder
        self.what = what
        self.name = name
        self._holder: Holder | None = None
        self._file = -1
        self._checked = (0.0, True)

    def __enter__(self) -> Self:
        self._until = time.monotonic() + ENDING
        while True:
            try:
                self._enter()
                return self
            except HeldError:
                if time.monotonic() > self._until:
                    raise
            time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        holder = self._holder
        if holder is None or holder.pid != os.getpid():  # a forked child has not the lock
            return
        self._ended.set()
        self._beating.join(BEAT)  # a file system that does not answer must not keep it from ending
        try:
            if self.problem() is None:
                self._path(self.name).unlink()
        except OSError as trouble:
            LOG.warning("%s: the lock could not be released, it ends with the process: %s", self.what, trouble)
        os.close(self._file)
        self._holder, self._file = None, -1
        self._forget(self._claim)

    def refuse(self) -> None:
        """Return unless a process certainly holds the lock; nothing is written, and no sign of life is waited for.

        Raises:
            HeldError: one does.
        """
        until = time.monotonic() + ENDING
        while True:
            self._refuse_own()
            try:
                found = self._newest()[1]
            except OSError:  # whoever takes the lock is told
                return
            if found is None or self._state(found) != "lives":
                return
            if time.monotonic() > until:
                raise self._refusal(found.holder)
            time.sleep(0.1)

    def holder(self) -> Holder | None:
        """Return the process that holds the lock, as far as can be told without waiting; nothing is written."""
        try:
            found = self._newest()[1]
        except OSError:
            return None
        if found is None or (state := self._state(found)) == "over":
            return None
        silent = time.time() - found.beat / 1e9 > SILENCE
        return None if state == "unknown" and silent else found.holder

    def problem(self) -> str | None:
        """Say what has become of the lock; None while this process has it."""
        assert self._holder is not None
        path = self._path(self.name)
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # NFS asks its server then
            try:
                there = os.path.samestat(os.stat(self.name, dir_fd=folder), os.fstat(self._file))
            finally:
                os.close(folder)
            if there and not self._path(self._after(self._holder.token)).exists():
                return None
            found = self._newest()[1]
        except OSError as error:
            if error.errno not in GONE:
                return f"{self.what}: {path} cannot be read, so nothing more is written: {error.strerror}"
            found = None
        if found is None:
            return (
                f"{self.what}: {path} is gone, so nothing more is written: it was deleted, or another process took the "
                "lock over and has ended"
            )
        return (
            f"{self.what} was taken over by {found.holder or 'another process'} while this process stood still, so "
            "nothing more is written: leave the run to that process"
        )

    def check(self) -> None:
        """Return while this process has the lock.

        Raises:
            LostLockError: it has not.
        """
        problem = self.problem()
        self._checked = (time.monotonic(), problem is None)
        if problem is not None:
            raise LostLockError(problem)

    @property
    def held(self) -> bool:
        """True if this process had the lock when it was last looked at, at most `BEAT` seconds ago."""
        if time.monotonic() - self._checked[0] > BEAT:
            self._checked = (time.monotonic(), self.problem() is None)
        return self._checked[1]

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _after(self, token: str) -> str:
        return f"{self.name}.after-{token}"

    def _refusal(self, holder: Holder | None) -> HeldError:
        return HeldError(
            f"{self.what} is in use by {holder or 'another process'}: wait until it has ended, or type run.dir=… for "
            "another folder"
        )

    def _refuse_own(self) -> None:
        own = _held.get(self.folder.resolve() / self.name)
        if own is not None and own.pid == os.getpid() and not own.gave_way:
            raise self._refusal(own)

    def _enter(self) -> None:
        self._key = self.folder.resolve() / self.name
        claim = Holder.here(kernel=False)
        with _guard:
            self._refuse_own()
            _held[self._key] = claim
        try:
            until = time.monotonic() + PATIENCE
            while not self._take():
                if time.monotonic() > until:  # others are always quicker, or names and files are inconsistent
                    raise OSError(errno.ETIMEDOUT, f"not to be had within {PATIENCE:.0f} s")
                time.sleep(0.01)
        except BaseException:
            self._forget(claim)
            raise
        self._claim = claim
        self._checked = (time.monotonic(), True)
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    def _forget(self, claim: Holder) -> None:
        with _guard:
            if _held.get(self._key) is claim:
                del _held[self._key]

    def _beat(self) -> None:
        """Give signs of life, on a thread of its own."""
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # whether the lock is lost is asked before anything is written
                os.utime(self._file)

    def _take(self) -> bool:
        """Try to follow the newest holder; False if others were quicker."""
        name, found = self._newest()
        if found is not None and not self._is_over(found):
            return False
        file, holder = self._prepare()
        prepared, wanted = self._path(f"{self.name}.{holder.token}"), self._path(name)
        taken = False
        try:
            # The name alone is not enough: a later holder has tidied up the names of those before it.
            won = self._place(prepared, wanted, file) and self._leads_to(file)
            if won and name != self.name:
                os.replace(wanted, self._path(self.name))
            taken = won
        finally:
            if not taken:
                if _is(wanted, file):
                    wanted.unlink(missing_ok=True)  # a holder may have tidied it up
                os.close(file)
            prepared.unlink(missing_ok=True)
        if taken:
            self._file, self._holder = file, holder
            for path in self.folder.glob(f"{self.name}.*"):  # of starts that were killed, or come too late
                with suppress(OSError):
                    path.unlink()
        return taken

    def _prepare(self) -> tuple[int, Holder]:
        """Create a file of this process, locked and written, which nobody reads yet."""
        holder = Holder.here(kernel=True)
        path = self._path(f"{self.name}.{holder.token}")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if _lock(file, fcntl.LOCK_EX) == "unknown":
                holder = Holder(**{**vars(holder), "kernel": False})
            os.write(file, holder.text())
            os.fsync(file)
        except BaseException:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        return file, holder

    def _place(self, prepared: Path, wanted: Path, file: int) -> bool:
        """Give the prepared file the wanted name; return whether nobody else has it."""
        try:
            os.link(prepared, wanted)
        except FileExistsError:
            return os.fstat(file).st_nlink == 2  # NFS may repeat what has succeeded
        except FileNotFoundError:  # tidied up by another holder
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if wanted.exists():
                return False
            try:
                prepared.rename(wanted)  # the last of those that come at once has it
            except FileNotFoundError:
                return False
            time.sleep(SETTLE)
        return True

    def _newest(self) -> tuple[str, _Found | None]:
        """Return the name of the next file on the way from the lock's file, and the newest holder, if any."""
        name, newest = self.name, None
        while (found := _look(self._path(name))) is not None:
            name, newest = self._after(found.token), found
        return name, newest

    def _leads_to(self, file: int) -> bool:
        """Return whether the way from the lock's file comes to this process's."""
        name = self.name
        while not _is(self._path(name), file):
            found = _look(self._path(name))
            if found is None:
                return False
            name = self._after(found.token)
        return True

    def _state(self, found: _Found) -> Literal["lives", "over", "unknown"]:
        """Tell what is known of a holder without waiting."""
        holder = found.holder
        if holder is not None and holder.gave_way:
            return "over"
        if holder is not None and holder.near:
            return "lives" if found.kernel == "held" or holder.lives else "over"
        if found.local and found.kernel != "unknown" and (holder is None or holder.kernel):
            return "lives" if found.kernel == "held" else "over"
        return "unknown"

    def _is_over(self, found: _Found) -> bool:
        """Wait for a sign of life, where only that tells; False if the holder is another one by now.

        Raises:
            HeldError: the holder lives.
        """
        state = self._state(found)
        if state == "lives":
            raise self._refusal(found.holder)
        if state == "over":
            return True
        holder = found.holder or "another process"
        LOG.warning("%s: held by %s; a sign of life is waited for, up to %.0f s", self.what, holder, SILENCE)
        until, now = time.monotonic() + SILENCE, found
        self._until = 0.0  # no further wait for the holder to end
        while time.monotonic() < until:
            time.sleep(LOOK)
            newest = self._newest()[1]
            if newest is None or newest.token != found.token:
                return False
            now = newest
            if now.beat != found.beat:
                raise self._refusal(found.holder)
            if found.kernel == "held" and now.kernel == "free":
                break
        if now.kernel == "held":  # the kernel knows better
            raise self._refusal(found.holder)
        LOG.warning("%s: taken over from %s, which gives no sign of life", self.what, holder)
        return True


@contextmanager
def hold(folder: Path, what: str, name: str = NAME) -> Iterator[DirectoryLock]:
    """Create a directory and hold its lock within the context.

    Args:
        folder: the directory.
        what: see `DirectoryLock`.
        name: likewise.

    Raises:
        ConfigError: another process holds the lock, or the directory cannot be created.
    """
    lock = DirectoryLock(folder, what, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{what} cannot be created: {error.strerror}") from error
    try:
        lock.__enter__()
    except OSError as error:
        raise ConfigError(
            f"{what}: its lock {folder / name} cannot be taken: {error.strerror}: delete that file if no process "
            "writes into its folder, or type run.dir=… for another folder"
        ) from error
    try:
        yield lock
    finally:
        lock.__exit__(None, None, None)


def is_lock(name: str) -> bool:
    """Return whether a file of this name is one of a lock."""
    return name == NAME or name.startswith((f"{NAME}.", f"{NAME}-"))


def _lock(file: int, kind: int) -> Kernel:
    """Ask the kernel for a lock of the file: "held" by another process, "free" until now, or it has no locks here."""
    if not KERNEL_LOCKS:
        return "unknown"
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BLOCKED:
            return "held"
        if error.errno in NO_LOCKS:
            return "unknown"
        raise
    return "free"


def _look(path: Path) -> _Found | None:
    """Read a lock's file; None if there is none."""
    try:
        # Reopened each time: NFS asks its server then. O_NONBLOCK: never wait for a pipe that somebody put there.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        # A shared lock, so that two who look at once do not take each other for the holder.
        kernel = _lock(file, fcntl.LOCK_SH)
        status = os.fstat(file)
        holder = Holder.parse(os.read(file, 2**16))
    finally:
        os.close(file)
    token = f"file{status.st_ino}" if holder is None else holder.token
    return _Found(token, holder, kernel, status.st_mtime_ns, local=os.major(status.st_dev) != 0)


def _is(path: Path, file: int) -> bool:
    """Return whether a name is that of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
