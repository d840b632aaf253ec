"""Training as a job of a SLURM cluster, through submitit: one command on a login node."""

import atexit
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fptt_dist.config import Config, ConfigError, apply_overrides, parse_overrides
from fptt_dist.config.schema.cluster import Cluster
from fptt_dist.config.schema.section import explicit
from fptt_dist.config.schema.sweep import OptunaSearch, RunAll
from fptt_dist.config.values import show
from fptt_dist.history import load_to_train
from fptt_dist.launchers.slurm.jobs import active_jobs
from fptt_dist.launchers.sweeps.directory import check_folder, create_folder, note_trial, write_if_over
from fptt_dist.launchers.sweeps.plan import SweepPlan, make_plan, said_once
from fptt_dist.training.lock.directory_lock import DirectoryLock
from fptt_dist.training.process.orphan import STARTED_BY
from fptt_dist.training.process.own_files import create_closed, doubt_inside
from fptt_dist.training.process.resume_hint import RESUME
from fptt_dist.training.process.signals import hangup_blocked
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.engine import check_world

LOG = logging.getLogger("fptt_dist")

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

MISSING = "submit needs submitit: pip install -e '.[slurm]'"
# As many as the worker has cores; torch would take all cores of the node.
THREADS = 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"'


@dataclass(frozen=True)
class Submission:
    """A job that was submitted.

    Attributes:
        job: SLURM's number of the job, or of the whole array; with where="local" the process id of its controller.
        runs: the run's folder, or those of an array.
        logs: of rank 0 of each, written from the job's start on.
    """

    job: str
    runs: list[Path]
    logs: list[Path]


class TrainingJob:
    """The function that submitit calls in every worker of a job.

    Args:
        resume: the command that submits it again, to resume; None: not known.
    """

    def __init__(self, resume: str | None = None) -> None:
        self.resume = resume

    def __call__(self, values: dict[str, Any]) -> None:
        """Train as the configuration's explicit `values` say; an error ends the process with one message."""
        import submitit

        from fptt_dist.exit import end_at_once, one_message, rank_of_process
        from fptt_dist.streams import protect
        from fptt_dist.training import run

        os.environ.pop(RESUME, None)  # of whatever started the command that submitted the job
        os.environ.update({} if self.resume is None else {RESUME: self.resume})
        protect()
        if submitit.JobEnvironment().cluster == "local":
            os.environ[STARTED_BY] = str(os.getppid())
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which submitit ignores, also before training handles it
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
            os.environ["MASTER_ADDR"] = "localhost"
        logging.getLogger("fptt_dist").addHandler(logging.StreamHandler())
        with one_message():
            result = run.train(Config.model_validate(values))
        if rank_of_process() == "0":
            print(result)
            if result.diverged:
                print(result.diverged)
            write_if_over(Path(values["run"]["dir"]).parent)
        atexit.register(end_at_once, 0)  # after submitit has written down that it went well

    def checkpoint(self, values: dict[str, Any]) -> "DelayedSubmission":
        """Return the same call again, to resume the run; called on rank 0 alone, so nothing is asked of the others."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, {**values, "resume": "auto"})


def submit(
    config: str,
    overrides: list[str],
    cluster: Cluster,
    *,
    array: bool = False,
    where: Literal["slurm", "local"] = "slurm",
    resume: str | None = None,
    trust_code: bool = False,
) -> Submission:
    """Put a training run, or an array of them, into the queue.

    Args:
        config: a YAML file, or the name of a packaged one.
        overrides: words like fptt.alpha=0.3.
        cluster: the job's size and place.
        array: `config` is a sweep: each of its runs is a task of one job array, in a folder of its own below run.dir.
        where: "local": on this node, without SLURM.
        resume: the command that submits it again, to resume, as the job's messages print it.
        trust_code: see `load_to_train`.

    Raises:
        ConfigError: a mistake, or what SLURM refuses; nothing was submitted and no folder is left.
    """
    runs, plan = _planned(config, overrides, cluster, array=array, trust_code=trust_code)
    if where == "slurm":
        _refuse_busy(runs)
    _check(runs, cluster, where)
    _require_scheduler(where)
    folder = _shared_logs(runs, plan)
    _refuse_foreign(folder)
    jobs = _enqueue(TrainingJob(resume), [run.config for run in runs], cluster, where, folder)
    if plan is not None:
        create_folder(plan)
        for run, trial in zip(runs, plan.trials, strict=True):
            note_trial(run.path, vars(trial))
    for run, job in zip(runs, jobs, strict=True):
        number = job.job_id if where == "slurm" else f"process {job.job_id}"
        create_closed(run.logs)
        run.note_job(number, log=str(job.paths.stdout))
    return Submission(
        job=jobs[0].job_id.partition("_")[0],
        runs=[run.path for run in runs],
        logs=[job.paths.stdout for job in jobs],
    )


def script(
    config: str, overrides: list[str], cluster: Cluster, *, array: bool = False, trust_code: bool = False
) -> str:
    """Return the text of the sbatch file that `submit` would give to SLURM.

    Raises:
        ConfigError: a mistake.
    """
    runs, plan = _planned(config, overrides, cluster, array=array, trust_code=trust_code)
    _check(runs, cluster, "slurm")
    logs = _shared_logs(runs, plan)
    return sbatch_text(cluster, logs.parent.name, logs, runs=len(runs))


def sbatch_text(cluster: Cluster, name: str, logs: Path, *, runs: int = 1) -> str:
    """Return the text of an sbatch file, from its arguments alone.

    Args:
        cluster: the job's size and place.
        name: the job's.
        logs: the folder of its logs.
        runs: of an array.

    Raises:
        ConfigError: submitit is not installed.
    """
    try:
        from submitit.slurm.slurm import _make_sbatch_string
    except ImportError as error:
        raise ConfigError(MISSING) from error
    command = f"{cluster.python or shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    parameters = _sbatch(cluster, name)
    if runs > 1:
        parameters["map_count"] = runs
    return _make_sbatch_string(command, logs, **parameters)


def _sbatch(cluster: Cluster, name: str) -> dict[str, Any]:
    """Return the parameters of submitit's sbatch file."""
    return {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.minutes,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        "setup": ["set -e", *cluster.setup, THREADS],
        "signal_delay_s": cluster.signal_lead_seconds,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        # A node that fails puts the job back into the queue, also where a site's default is another.
        "additional_parameters": {"requeue": True, **dict(map(_option, cluster.sbatch))},
        # One failed process ends the others, which wait for it; one that has ended well does not, whatever the site's
        # WaitTime: rank 0 may still speak with SLURM. srun does not take --cpus-per-task over from sbatch.
        "srun_args": [
            "--kill-on-bad-exit=1",
            "--wait=0",
            *([f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []),
            *cluster.srun,
        ],
    }


def _option(word: str) -> tuple[str, str | bool]:
    name, equals, value = word.removeprefix("--").partition("=")
    return name, value if equals else True


def _parameters(cluster: Cluster, name: str) -> dict[str, Any]:
    """Return the parameters of submitit's AutoExecutor on SLURM."""
    return {f"slurm_{key}": value for key, value in _sbatch(cluster, name).items()}


def _parameters_here(cluster: Cluster) -> dict[str, Any]:
    """Return the parameters of submitit's AutoExecutor on this node."""
    return {
        "timeout_min": cluster.minutes,
        "tasks_per_node": cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node,
        "stderr_to_stdout": True,
        "local_setup": list(cluster.setup) or None,
    }


def _enqueue(job: TrainingJob, configs: list[Config], cluster: Cluster, where: str, folder: Path) -> "list[Job[None]]":
    """Hand one call of `job` per configuration to submitit, which keeps its files and the logs in `folder`.

    Raises:
        ConfigError: SLURM refuses, or the folder cannot be created; what was written is removed.
    """
    from submitit import AutoExecutor

    new = [each for each in (folder, *folder.parents) if not each.exists()]
    old = set(folder.iterdir()) if folder.is_dir() else set()
    limit = {f"{name}_max_num_timeout": cluster.requeues for name in ("slurm", "local")}
    python = {f"{name}_python": cluster.python for name in ("slurm", "local")} if cluster.python else {}
    try:
        create_closed(folder)
        executor = AutoExecutor(folder, cluster=where, **limit, **python)
        chosen = _parameters(cluster, folder.parent.name) if where == "slurm" else _parameters_here(cluster)
        executor.update_parameters(**chosen)
        # Submitit prints what it also raises. A job on this node does not end with the terminal.
        with redirect_stderr(io.StringIO()), hangup_blocked():
            return executor.map_array(job, [explicit(config) for config in configs])
    except OSError as error:
        _take_back(folder, old, new)
        raise ConfigError(f"run.dir={folder.parent} cannot be created: {error.strerror}") from error
    except RuntimeError as error:  # what submitit says of sbatch, and of a node without srun
        _take_back(folder, old, new)
        raise ConfigError(f"sbatch refused the job: {str(error).strip()}") from error


def _take_back(folder: Path, old: set[Path], new: list[Path]) -> None:
    """Remove the files that a refused submission left in `folder`, and of the `new` folders those that are empty."""
    if folder.is_dir():
        for path in set(folder.iterdir()) - old:
            path.unlink()
    for each in new:  # from the inside out; another submission may have taken one for its own meanwhile
        try:
            each.rmdir()
        except OSError:
            return


@said_once()
def _planned(
    config: str, overrides: list[str], cluster: Cluster, *, array: bool, trust_code: bool
) -> tuple[list[RunDirectory], SweepPlan | None]:
    """Return the runs asked for, each folder an absolute path: a job may start elsewhere; and the sweep they are of."""
    if array:
        plan = make_plan(Path(config), overrides, processes=cluster.nodes * cluster.tasks)
        _refuse_choosing(plan)
        base, again = plan.folder, {"resume": parse_overrides(overrides).get("resume", "never")}
        runs = [RunDirectory(apply_overrides(plan.run(trial), again)) for trial in plan.trials]
    else:
        plan = None
        common = RunDirectory(load_to_train(config, overrides, trust_code=trust_code)).config
        base = Path(str(common.run.dir)).absolute()
        runs = [RunDirectory(apply_overrides(common, {"run.dir": str(base)}))]
    wrong = re.search(r"[%\\\x00-\x1f\x7f]", str(base))
    if wrong:
        raise ConfigError(
            f"run.dir={show(str(base))}: SLURM reads {show(wrong[0])} in the name of a log as something else: type "
            "run.dir=… without it"
        )
    if plan is not None:
        check_folder(plan, resume=runs[0].config.resume == "auto", option="resume=auto")
        DirectoryLock(plan.folder, f"run.dir={plan.folder}").refuse()
    return runs, plan


def _refuse_choosing(plan: SweepPlan) -> None:
    """Refuse a sweep that needs somebody to watch its runs."""
    if isinstance(plan.sweep.search, OptunaSearch):
        raise ConfigError(
            "--array with search.name=optuna: the runs of an array know nothing of each other: type fptt-dist sweep, "
            "or sweep.search.name=random"
        )
    if not isinstance(plan.sweep.scheduler, RunAll):
        LOG.warning("scheduler.name=%s: the runs of an array all go to their end", plan.sweep.scheduler.name)


def _shared_logs(runs: list[RunDirectory], plan: SweepPlan | None) -> Path:
    """Return the folder of the logs: the run's own, or one for the whole array."""
    return runs[0].logs if plan is None else plan.folder / runs[0].logs.name


def _check(runs: list[RunDirectory], cluster: Cluster, where: str) -> None:
    """Refuse what the job would refuse at its start."""
    if where == "local" and cluster.nodes > 1:
        raise ConfigError(f"--nodes {cluster.nodes} with --local, which is this node alone: type --nodes 1")
    if where == "local" and len(runs) > 1:
        raise ConfigError("--array with --local: all runs would start at once; leave out one of the two")
    for run in runs:
        _check_launcher(run.config, cluster.nodes * cluster.tasks, where)
        check_world(run.config, cluster.nodes * cluster.tasks)
        run.refuse_held()
        run.check()


def _require_scheduler(where: str) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING) from error
    if where == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here: type the command on a login node of the cluster, or add --local")


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose files somebody else could replace: submitit puts what the job unpickles beside its logs."""
    doubt = doubt_inside(folder.resolve()) if folder.is_dir() else None
    if doubt:
        raise ConfigError(
            f"run.dir={folder.parent}: the job unpickles a file of {folder.name}/, which runs what it holds, and "
            f"{doubt} run.dir=… for another folder"
        )


def _check_launcher(config: Config, world: int, where: str) -> None:
    launcher, own = config.parallel.launcher, "slurm" if where == "slurm" else "torchrun"
    if launcher not in ("auto", "single", own) or (launcher == "single" and world > 1):
        raise ConfigError(
            f"parallel.launcher={launcher} is not what starts the {world} workers of this job: type "
            "parallel.launcher=auto"
        )


def _refuse_busy(runs: list[RunDirectory]) -> None:
    """Refuse a folder that another job writes into, or will."""
    active = active_jobs()
    for run in runs:
        state = active.get(run.job.get("job", ""))
        if state is not None:
            number = run.job["job"]
            raise ConfigError(
                f"run.dir={run.path} belongs to job {number}, which is {state.lower()}: type run.dir=… for another "
                f"folder, or scancel {number} first"
            )
