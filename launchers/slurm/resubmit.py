"""The sbatch command that resumes a job of one of the files in slurm/, found out within the job.

    python -m fptt_dist.launchers.slurm.resubmit slurm/train.sbatch CONFIG [key=value …]

prints it, once CONFIG has been found to be without a mistake; the file exports it as FPTT_DIST_RESUME.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fptt_dist.config import load, parse_overrides
from fptt_dist.exit import one_message
from fptt_dist.training.process.resume_hint import resuming, slurm_resources

SECONDS = 30.0  # that SLURM's controller may take to answer
SWEEP = "sweep.sbatch"
KEPT = ("FPTT_PYTHON", "NPROC", "SWEEP_WAIT")
"""Variables that the files read, and that sbatch was given."""
SIZE = {"nodes": "SLURM_JOB_NUM_NODES", "ntasks-per-node": "SLURM_NTASKS_PER_NODE"}
PLACE = {
    "mem": "SLURM_MEM_PER_NODE",
    "mem-per-cpu": "SLURM_MEM_PER_CPU",
    "partition": "SLURM_JOB_PARTITION",
    "account": "SLURM_JOB_ACCOUNT",
    "qos": "SLURM_JOB_QOS",
}
"""Options of sbatch, and the variables that have their values in a job."""


def sbatch_command(file: str, words: list[str], environ: Mapping[str, str], shown: str) -> str:
    """Build the command to type where the job was submitted.

    Args:
        file: where it is in the repository, if SLURM does not know where it was.
        words: what was typed after it.
        environ: the environment variables of the batch script.
        shown: what `scontrol show job` says of the job.
    """
    there = environ.get("SLURM_SUBMIT_DIR", "")
    size, place = (
        [f"--{option}={environ[name]}" for option, name in of.items() if environ.get(name)] for of in (SIZE, PLACE)
    )
    options = [*size, *slurm_resources(environ), *place]
    limit = re.search(r"\bTimeLimit=([\d:-]+|UNLIMITED)", shown)
    options += [f"--time={limit[1]}"] if limit else []
    here = re.search(r"^\s*WorkDir=(.+)$", shown, re.MULTILINE)
    options += [f"--chdir={here[1]}"] if here and there and here[1] != there else []
    typed = ["sbatch", *options, _typed(file, words, shown, there), *words]
    variables = [f"{name}={shlex.quote(environ[name])}" for name in KEPT if environ.get(name)]
    return " ".join([*variables, resuming(typed, "--resume" if Path(file).name == SWEEP else "resume=auto")])


def _typed(file: str, words: list[str], shown: str, there: str) -> str:
    """The file as it can be typed in the folder `there`: what the job runs is a copy of SLURM's."""
    command = re.search(r"^\s*Command=(.+)$", shown, re.MULTILINE)
    path = "" if command is None else command[1].removesuffix(f" {' '.join(words)}")
    if not os.path.isabs(path) or not os.path.isfile(path):
        return file
    return path.removeprefix(f"{there}/") if there else path


def _shown() -> str:
    """Return what SLURM says of this job; nothing where it cannot be asked, as in a container."""
    show = ["scontrol", "show", "job", os.environ.get("SLURM_JOB_ID", "")]
    try:
        return subprocess.run(show, capture_output=True, text=True, errors="replace", timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def main() -> None:
    """Print the command for the file and words of sys.argv; a mistake in them is one message and exit code 2."""
    file, *words = sys.argv[1:]
    with one_message():
        if Path(file).name != SWEEP:
            load(words[0], parse_overrides(words[1:]))
    print(sbatch_command(file, words, os.environ, _shown()), flush=True)


if __name__ == "__main__":
    main()
