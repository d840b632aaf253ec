"""Identity of a process for other processes: its node, start time and SLURM job, and whether it is alive."""

import getpass
import json
import os
import shlex
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

STARTER = "FPTT_DIST_STARTER"
"""Variable with a token of the sweep that starts a run's processes, each when the previous one has ended."""
LONGEST_TOKEN = 64
ENDED = ("Z", "X")  # states of a process that only its parent still knows


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        token: of this acquisition alone.
        host: the node's name.
        boot: the id of the node's current boot, as names are not unique.
        space: of the process numbers, which differ between containers.
        pid: the process number.
        began: when the process started, in clock ticks since the boot: numbers are used again.
        user: its owner.
        job: SLURM's number; None outside.
        restart: number of times that SLURM has restarted that job.
        starter: token of the sweep that has started it; None outside.
        since: when the lock was taken, ISO 8601 with the time zone.
        command: what was typed.
        kernel: whether the kernel gave it a lock of its own, which ends with the process.
    """

    token: str
    host: str
    boot: str
    space: int
    pid: int
    began: str
    user: str
    job: str | None
    restart: int
    starter: str | None
    since: str
    command: str
    kernel: bool

    @classmethod
    def here(cls, *, kernel: bool) -> Self:
        """Describe this process, now."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_boot(),
            space=_space(),
            pid=os.getpid(),
            began=_stat(os.getpid())[1],
            user=_user(),
            job=slurm_job(),
            restart=_restart(),
            starter=os.environ.get(STARTER),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=shlex.join(sys.argv),
            kernel=kernel,
        )

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """Read what `text` gave; None where it is no holder."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {name: type(value) for name, value in vars(found).items()}
        plain = dict.fromkeys(("token", "host", "boot", "began", "user", "since", "command"), str)
        right = {**plain, "space": int, "pid": int, "restart": int, "kernel": bool}
        alike = all(kinds[name] is kind for name, kind in right.items())
        alike = alike and {kinds["job"], kinds["starter"]} <= {str, type(None)}
        # It becomes part of a file's name.
        named = alike and found.token.isalnum() and len(found.token) <= LONGEST_TOKEN
        return found if named and 0 < found.pid < 2**31 else None

    def text(self) -> bytes:
        """One JSON object, which `parse` reads."""
        return (json.dumps(asdict(self)) + "\n").encode()

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"pid {self.pid} on {self.host} (user {self.user}{job}, since {self.since})"

    @property
    def near(self) -> bool:
        """True if it is, or was, on this boot of this node, where its process number can be looked up."""
        return (self.host, self.boot, self.space) == (socket.gethostname(), _boot(), _space())

    @property
    def lives(self) -> bool:
        """True while the process runs; of one that is `near`."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # another user's
        state, began = _stat(self.pid)
        return not state or (state not in ENDED and began == self.began)  # a kernel may hide another user's

    @property
    def gave_way(self) -> bool:
        """True if its starter, SLURM or a sweep, has ended it and started this process instead.

        Ray Tune keeps the process of a paused run, in the middle of its report, for another run.
        """
        if self.starter is not None and self.starter == os.environ.get(STARTER):
            return True
        return self.job is not None and self.job == slurm_job() and self.restart < _restart()


def slurm_job(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the id of the SLURM job that this process belongs to, 12 or 12_3 in an array; None outside."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID')}"
    return environ.get("SLURM_JOB_ID")


def _restart() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _stat(pid: int) -> tuple[str, str]:
    """Return state and start of a process; ("", "") where the kernel does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]  # the third and the 22nd; the second, in parentheses, may hold spaces
    except (OSError, IndexError):
        return "", ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())
