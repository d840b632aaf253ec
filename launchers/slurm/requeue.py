"""Requeue of a SLURM job that is told that its time is nearly over."""

import os
import signal
import subprocess
import sys
from types import FrameType

from fptt_dist.training.process.resume_hint import RESUME

SECONDS = 60.0  # that SLURM's controller may take to answer


def requeue_on_signal(rank: str) -> None:
    """Make SIGUSR2 put this SLURM job back into the queue and end the process; do nothing outside a job.

    Training saves first: see `fptt_dist.training.process.signals`.

    Args:
        rank: this process's; "0" speaks for the job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)  # torchrun's agent passes on what SLURM has sent to all
        problem = _requeue(job) if rank == "0" else None
        if rank == "0":
            print(problem or f"job {job} is back in the queue, and resumes by itself", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number if problem else 0)

    signal.signal(signal.SIGUSR2, handle)


def _requeue(job: str) -> str | None:
    """Ask SLURM; return what went wrong, if anything did."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    else:
        if done.returncode in (0, -signal.SIGTERM):  # SLURM's answer is to end the job, and scontrol with it
            return None
        said = done.stderr.strip()
    command = os.environ.get(RESUME)
    again = "submit it again, with resume=auto" if command is None else f"resume with: {command}"
    return f"fptt-dist: job {job} could not be put back into the queue ({said}): {again}"
