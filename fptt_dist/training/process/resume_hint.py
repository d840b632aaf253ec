"""The command that resumes a run exactly as it was started, for every message that tells how to resume.

Whoever starts other processes (launch, submit, sweep, reproduce, the files in slurm/) tells them the command in the
environment variable FPTT_DIST_RESUME. The outermost starter's wins: it is the one that somebody typed.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this module is imported before anything slow, to handle a signal that comes meanwhile
    from fptt_dist.parallel import LaunchEnvironment

RESUME = "FPTT_DIST_RESUME"
LAUNCH = "fptt-dist launch"
RESOURCES = {
    "cpus-per-task": "SLURM_CPUS_PER_TASK",
    "gpus-per-node": "SLURM_GPUS_PER_NODE",
    "gpus-per-task": "SLURM_GPUS_PER_TASK",
    "gpus": "SLURM_GPUS",
}
"""Options of srun and sbatch, and the variables that have their values in a job."""


def resuming(words: Sequence[str], option: str = "resume=auto") -> str:
    """Return a command line that resumes, to be pasted into a shell.

    Args:
        words: the typed command; its words about resuming are replaced.
        option: the word that makes the command resume.
    """
    kept = [word for word in words if not word.startswith("resume=") and word != "--resume"]
    return shlex.join([*kept, option])


def resume_hint(
    run: Path, environment: "LaunchEnvironment", environ: Mapping[str, str] = os.environ, *, objects: bool = False
) -> str:
    """Say what to type to resume a run with as many workers, on as many nodes: "resume with: COMMAND".

    Args:
        run: its folder, as the user named it: a relative one holds where the original command was typed.
        environment: a worker's place.
        environ: the environment variables.
        objects: whether a program gave `fit` objects of its own, which no command has.
    """
    if objects:
        return "resume with the same program, and resume: auto in the configuration that it gives fptt_dist.fit"
    command = environ.get(RESUME) or _command(str(run / "config.yaml"), environment, environ)
    # launch and torchrun are typed on each node; sbatch, submit and srun start all nodes from one.
    each = " on each node" if environment.nodes > 1 and (command is None or command.startswith(LAUNCH)) else ""
    return _same_command(each) if command is None else f"resume{each} with: {command}"


def restart_hint(run: Path, environment: "LaunchEnvironment", *, objects: bool = False) -> str:
    """Return the same for a run that may have ended before there was anything to resume."""
    if (run / "config.yaml").is_file():
        return resume_hint(run, environment, objects=objects)
    return "type the same command again, nothing was saved yet"


def hint_of_workers(run: Path, workers: int | None) -> str:
    """Return the same for a run of which only the number of its workers is known; None: not even that."""
    if workers is None:
        return _same_command()
    config = str(run / "config.yaml")
    if workers == 1:
        return f"resume with: {resuming(['fptt-dist', 'train', config])}"
    again = resuming(["fptt-dist", "launch", config, "--nproc", str(workers)])
    return f"resume its {workers} workers, on one node, with: {again}"


def _same_command(each: str = "") -> str:
    return f"resume{each} with the same command and resume=auto"


def _command(config: str, environment: "LaunchEnvironment", environ: Mapping[str, str]) -> str | None:
    """Return the command that starts as many workers as there are; None where it is not known."""
    from fptt_dist.parallel.comm.environment import FROM_SLURM, FROM_TORCHRUN

    train = ["fptt-dist", "train", config]
    if environment.source == FROM_SLURM:
        size = [f"--nodes={environment.nodes}", f"--ntasks-per-node={environment.local_world}"]
        return resuming(["srun", *size, *slurm_resources(environ), *train])
    if environment.world == 1:
        return resuming(train)
    # Where the variables were set without torchrun's agent, nobody says on how many nodes.
    if environment.source == FROM_TORCHRUN and environment.nodes == 1 and "TORCHELASTIC_RUN_ID" in environ:
        restarts = environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        again = ["--max-restarts", restarts] if restarts != "0" else []
        agent = ["torchrun", "--standalone", "--nproc-per-node", str(environment.world), *again]
        return resuming([*agent, "-m", "fptt_dist", "train", config])
    return None


def slurm_resources(environ: Mapping[str, str]) -> list[str]:
    """Return the options of srun and sbatch that ask for what each task, or node, of this job has."""
    options = [f"--{name}={environ[variable]}" for name, variable in RESOURCES.items() if environ.get(variable)]
    given = any(option.startswith("--gpus") for option in options)
    on_node = environ.get("SLURM_GPUS_ON_NODE", "0")  # which is set, whichever option asked for them
    return options if given or on_node == "0" else [*options, f"--gpus-per-node={on_node}"]
