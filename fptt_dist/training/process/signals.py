"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR2: finish the batch, save, leave; a second signal leaves at once.

SIGHUP says that the terminal is gone. It may come twice, from the kernel and from the shell, so it never is the second
signal; and who has switched it off, as nohup does, wants the run to continue.

SIGUSR2 is what SLURM is asked to send some time before a job must end: after saving, whoever handled it before this
program's own handler (submitit, or `launchers.requeue`) requeues the job. A job that is preempted with
a grace time gets SIGTERM instead, and SLURM forgets it when it exits before that time is over: `job_end_reason` tells.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from fptt_dist.parallel import Communicator

LOG = logging.getLogger("fptt_dist")

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Always; SIGHUP where it is not ignored."""
ASK_SECONDS = 30.0  # that SLURM's controller may take to answer
NO_PROGRESS = (
    "fptt-dist: the time is over and nothing was saved since the job's start, so it does not go back into the queue: "
    "type a longer --time, or a smaller checkpoint.every_batches"
)
SENT_TWICE = {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"}
"""Set where one signal comes several times: from torchrun's agent; from SLURM to job and step, and from srun."""
TWICE_SECONDS = 5.0  # within which it does


class Interrupted(Exception):
    """The run was stopped by a signal after saving.

    Attributes:
        exit_code: 128 + the signal's number: 129 for SIGHUP, 130 for Ctrl-C, 143 for SIGTERM, 140 for SIGUSR2.
        requeue: whether any worker got SIGUSR2, or SLURM preempts the job: it is to resume by itself.
    """

    def __init__(self, message: str, exit_code: int, *, requeue: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.requeue = requeue


def agreed_interruption(stop: "StopFlag", everyone: Communicator, message: str) -> Interrupted:
    """Return the exception to raise after saving, with what all workers know of the signal; called by all together."""
    slurm = job_end_reason() if everyone.rank == 0 else "continues"
    said = everyone.all_gather_object([stop.requeue, slurm], name="requeue")
    wanted = any(requeue for requeue, _ in said)
    requeue = said[0][1] == "preempted" or (wanted and said[0][1] != "ended")
    return Interrupted(message, stop.exit_code, requeue=requeue)


class StopFlag:
    """Record of the signals received so far.

    Attributes:
        number: of the first one, or None.
        requeue: whether SIGUSR2 was among them.
        saved: whether this process has saved a checkpoint since its start.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.requeue = False
        self.saved = False

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; SIGTERM's where another worker got the signal."""
        return 128 + (self.number or signal.SIGTERM)


@contextmanager
def stop_on_signal(rank: int = 0) -> Iterator[StopFlag]:
    """Let the first signal, within the context, only set a flag; the second one ends the process as usual.

    SIGUSR2 after SIGTERM is not a second signal: it adds the request to be requeued. With that request, a time limit
    that is reached before the batch is done hands the job on at once, without saving; but not if it has saved nothing
    since its start, as it would be requeued forever. Under torchrun's agent and srun, and after SIGHUP, what comes
    within five seconds is the same signal once more.

    The handler does nothing in a forked child. The handlers from before are back on leaving. On another thread than the
    main one signals are left to the program that started it.

    Args:
        rank: this process's; 0 speaks with SLURM.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers on the main thread alone
        yield flag
        return
    owner = os.getpid()
    twice = TWICE_SECONDS if SENT_TWICE & os.environ.keys() else 0.0
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first, twice
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif flag.number is None:
            flag.number, flag.requeue, first = number, number == signal.SIGUSR2, time.monotonic()
            if number == signal.SIGHUP:
                twice = TWICE_SECONDS  # a session that ends sends SIGTERM too
            # A person's next signal acts by itself, also while a long operation keeps Python from this handler; in a
            # notebook it is an exception as usual, and leaves the kernel alive.
            signal.signal(signal.SIGINT, before[signal.SIGINT] if hasattr(sys, "ps1") else signal.SIG_DFL)
            if not twice and not flag.requeue:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif number == signal.SIGHUP:
            return
        elif number == signal.SIGUSR2 and not flag.requeue:
            flag.requeue = True
            signal.signal(signal.SIGTERM, handle)  # which hands on from now on
        elif time.monotonic() - first > twice:
            if flag.requeue and rank > 0 and callable(before[signal.SIGUSR2]):
                return  # until rank 0 has spoken with SLURM, which ends all of them
            if flag.requeue and rank == 0 and job_end_reason() == "out of time":
                if flag.saved:
                    _hand_on(before[signal.SIGUSR2], frame)
                LOG.warning("%s", NO_PROGRESS)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for number in (*HANDLED, *hangup())}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hangup() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, or nothing where whoever started this process, such as nohup, has switched it off."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


@contextmanager
def hangup_blocked() -> Iterator[None]:
    """Block SIGHUP within the context; a process that is started there never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def job_end_reason() -> Literal["continues", "preempted", "out of time", "ended"]:
    """Return what SLURM is about to do with this job.

    Returns:
        "continues": nothing, or there is no job; "preempted": it must make room for another one, and may end by itself
        first; "out of time": its time limit is reached; "ended": cancelled, or requeued by somebody.
    """
    shown = _shown_by_slurm()
    if "JobState=COMPLETING" in shown:
        return "out of time" if "Reason=TimeLimit" in shown else "ended"
    return "preempted" if re.search(r"PreemptTime=\d", shown) else "continues"


def _shown_by_slurm() -> str:
    """Return the output of `scontrol show job` for this job; nothing outside."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    try:
        return subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=ASK_SECONDS
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        LOG.warning("SLURM does not say why job %s must end: %s", job, error)
        return ""


def forward_to_requeue_handler(stopped: Interrupted, *, rank: int) -> None:
    """Let the handler of SIGUSR2 requeue the job, and exit; return where there is none, or no need."""
    handler = signal.getsignal(signal.SIGUSR2)
    if stopped.requeue and callable(handler):
        if rank == 0:
            LOG.warning("%s", str(stopped).partition("\n")[0])
        _hand_on(handler, None)


def _hand_on(handler: object, frame: FrameType | None) -> None:
    if callable(handler):
        try:
            handler(signal.SIGUSR2, frame)  # submitit's leaves on rank 0 alone
        except Exception as error:  # submitit's: SLURM refused, or the job has gone back as often as it may
            LOG.warning("the job does not go back into the queue: %s", error)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
