"""The subcommands that train: train, launch, submit, sweep, reproduce."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fptt_dist.cli.arguments import ConfigPath, Overrides, TrustCode, local_path
from fptt_dist.cli.tables import print_sweep
from fptt_dist.exit import rank_of_process
from fptt_dist.streams import protect


def train(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="build everything, train one window, write nothing")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Train as CONFIG says; torchrun starts the same command on several workers.

    Later settings win: defaults, then what CONFIG extends, then CONFIG, then key=value.
    """
    protect()
    from fptt_dist.launchers.slurm.requeue import requeue_on_signal

    requeue_on_signal(rank_of_process())
    from fptt_dist.history import load_to_train

    settings = load_to_train(config, overrides or [], trust_code=trust_code)
    from fptt_dist.training import run

    if dry_run:
        lines = run.try_out(settings).lines()
    else:
        result = run.train(settings)
        lines = [str(result), f"everything is in {run.RunDirectory(settings).path}"]
        lines += [result.diverged] if result.diverged else []
    if rank_of_process() == "0":
        typer.echo("\n".join(lines))


def launch(
    config: ConfigPath,
    nproc: Annotated[int, typer.Option(min=1, help="workers on this node")],
    overrides: Overrides = None,
    nnodes: Annotated[int, typer.Option(min=1, help="nodes; type the same command on each")] = 1,
    rdzv: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="rendezvous of several nodes: one of them, and a free port")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="how often to restart all workers when one failed, with resume=auto")
    ] = 0,
    trust_code: TrustCode = False,
) -> None:
    """Train as CONFIG says with several workers, on one node or more."""
    protect()
    from fptt_dist.launchers.torchrun import launch as start

    raise typer.Exit(
        start(
            str(config),
            overrides or [],
            nproc=nproc,
            nnodes=nnodes,
            rdzv=rdzv,
            max_restarts=max_restarts,
            trust_code=trust_code,
        )
    )


def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="nodes")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs per node, one worker each")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="workers per node, where there are no GPUs")] = None,
    time: Annotated[str | None, typer.Option(help="time limit of one start, e.g. 08:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM's partition")] = None,
    account: Annotated[str | None, typer.Option(help="account to charge")] = None,
    qos: Annotated[str | None, typer.Option(help="quality of service")] = None,
    constraint: Annotated[str | None, typer.Option(help="features the nodes must have")] = None,
    setup: Annotated[list[str] | None, typer.Option(help="shell command before the workers; may be repeated")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            callback=local_path, help="YAML file with a site's defaults of these options", envvar="FPTT_CLUSTER"
        ),
    ] = None,
    array: Annotated[
        bool, typer.Option("--array", help="CONFIG is a sweep: one job array, a task for each of its runs")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="start on this machine, without SLURM")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch file, submit nothing")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Train as CONFIG says, as a SLURM job that saves, is requeued and resumes when its time is over."""
    from fptt_dist.config.schema.cluster import load_cluster
    from fptt_dist.launchers.slurm import submit as slurm
    from fptt_dist.training.process.resume_hint import resuming

    given = {"nodes": nodes, "gpus_per_node": gpus_per_node, "tasks_per_node": tasks_per_node, "time": time}
    given |= {"partition": partition, "account": account, "qos": qos, "constraint": constraint, "setup": setup or None}
    place = load_cluster(cluster, given)
    words = overrides or []
    if dry_run:
        typer.echo(slurm.script(str(config), words, place, array=array, trust_code=trust_code), nl=False)
        return
    typed = ["fptt-dist", *sys.argv[1:]]
    if cluster is not None and not any(word.startswith("--cluster") for word in typed):
        typed.append(f"--cluster={cluster}")  # it came from FPTT_CLUSTER, which another shell may not have
    again = resuming(typed)
    where = "local" if local else "slurm"
    done = slurm.submit(str(config), words, place, array=array, where=where, resume=again, trust_code=trust_code)
    # With setup commands the local process is the shell that waits for them.
    stop = "scancel" if not local else "pkill -P" if place.setup else "kill"
    rows = {
        "process" if local else "job": done.job,
        "run": "\n".join(map(str, done.runs)),
        "log": "\n".join(map(str, done.logs)),
        "follow": shlex.join(["tail", "-n", "+1", "-F", *map(str, done.logs)]),
        "state": shlex.join(["fptt-dist", "jobs", str(done.runs[0].parent)]),
        "cancel": f"{stop} {done.job}",
        "resume": again,
    }
    for name, value in rows.items():
        typer.echo("\n".join(f"{name if i == 0 else '':<8}{line}" for i, line in enumerate(value.splitlines())))


def sweep(
    path: Annotated[
        Path, typer.Argument(metavar="SWEEP", callback=local_path, help="a YAML file, or the name of a packaged one")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="resume the sweep in run.dir, if there is one")] = False,
) -> None:
    """Train the runs that SWEEP asks for, with Ray Tune, and print them side by side, the best first.

    key=value sets a key of every run, sweep.key=value one of the sweep's own, such as sweep.search.trials=32.
    """
    protect()
    from fptt_dist.launchers.ray.tune import sweep as start
    from fptt_dist.launchers.sweeps.plan import make_plan

    results = start(make_plan(path, overrides or []), resume=resume)
    print_sweep(results)
    raise typer.Exit(0 if results.best else 1)


def reproduce(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="table2 to table6, figure1 to figure3, alpha or cells")
    ],
    overrides: Overrides = None,
    budget: Annotated[
        Literal["smoke", "short", "full"],
        typer.Option(help="smoke: seconds per row; short: minutes on a GPU; full: as in the paper"),
    ] = "short",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="runs per row, with the seeds 0, 1, … (default: 3; smoke: 1)")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="TEXT", help="train only the rows whose name contains it")] = None,
) -> None:
    """Train the rows of one of the paper's tables or figures, and print them beside the paper's values.

    Runs, table and plot are in run.dir/BUDGET (default: runs/paper); the same command again resumes them.
    """
    protect()
    from fptt_dist.launchers.paper.reproduce import make_plan
    from fptt_dist.launchers.paper.reproduce import reproduce as start

    plan = make_plan(target, overrides or [], budget=budget, seeds=seeds, only=only)
    typer.echo(start(plan))
    typer.echo(f"table: {plan.table_path}")
    if plan.picture_path.is_file():
        typer.echo(f"plot: {plan.picture_path}")
