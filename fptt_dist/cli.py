"""The verbs of `fptt-dist`. Exit codes: 0 done, 1 failure, 2 bad usage, 129 / 130 / 140 / 143 saved after a signal."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fptt_dist import __version__
from fptt_dist.config import describe, dump, json_schema, load, parse_overrides
from fptt_dist.config.paths import refuse_remote
from fptt_dist.config.values import show
from fptt_dist.ending import one_message, rank_of_process
from fptt_dist.streams import protect

if TYPE_CHECKING:
    from fptt_dist.reporting import SweepResults

app = typer.Typer(
    name="fptt-dist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="What can be set, and what a configuration says.", no_args_is_help=True)
app.add_typer(config_app, name="config")
data_app = typer.Typer(help="Public data sets: get them, check them.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fptt-dist {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train recurrent networks on long sequences with forward propagation through time (FPTT)."""


def _local(parameter: typer.CallbackParam, value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Refuse a remote path; the callback of every parameter that is a path."""
    option = parameter.opts[0]
    name = option if option.startswith("--") else str(parameter.metavar).strip("[]…")
    for path in value if isinstance(value, list) else [value]:
        if path is not None:
            refuse_remote(name, path)
    return value


ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", callback=_local, help="a YAML file, or the name of a packaged one")
]
DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion-mnist, cifar10 or ptb")]
DataRoot = Annotated[Path, typer.Option(callback=_local, help="folder of the data sets, as data.root")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="e.g. fptt.alpha=0.3")]


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="build everything, train one window, write nothing")
    ] = False,
) -> None:
    """Train as CONFIG says; torchrun starts the same command on several processes.

    What is set later wins: defaults, then what CONFIG extends, then CONFIG, then key=value.
    """
    protect()
    from fptt_dist.launchers.requeue import requeue_on_signal

    requeue_on_signal(rank_of_process())
    from fptt_dist.training import run

    settings = load(config, parse_overrides(overrides or []))
    if dry_run:
        lines = run.try_out(settings).lines()
    else:
        result = run.train(settings)
        lines = [str(result), f"everything is in {run.RunFolder(settings).path}"]
    if rank_of_process() == "0":
        typer.echo("\n".join(lines))


@app.command()
def launch(
    config: ConfigPath,
    nproc: Annotated[int, typer.Option(min=1, help="processes on this machine")],
    overrides: Overrides = None,
    nnodes: Annotated[int, typer.Option(min=1, help="machines; type the same command on each")] = 1,
    rdzv: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="where several machines meet: one of them, and a free port")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="how often to start all processes again when one failed, with resume=auto")
    ] = 0,
) -> None:
    """Train as CONFIG says on several processes, of one machine or more."""
    protect()
    from fptt_dist.launchers.local import launch as start

    raise typer.Exit(
        start(str(config), overrides or [], nproc=nproc, nnodes=nnodes, rdzv=rdzv, max_restarts=max_restarts)
    )


@app.command()
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="nodes")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a node, one process each")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="processes of a node, where there are no GPUs")] = None,
    time: Annotated[str | None, typer.Option(help="longest time of one start, e.g. 08:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM's partition")] = None,
    account: Annotated[str | None, typer.Option(help="account to charge")] = None,
    qos: Annotated[str | None, typer.Option(help="quality of service")] = None,
    constraint: Annotated[str | None, typer.Option(help="features the nodes must have")] = None,
    setup: Annotated[list[str] | None, typer.Option(help="shell command before the processes; may be repeated")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(callback=_local, help="YAML file with a site's defaults of these options", envvar="FPTT_CLUSTER"),
    ] = None,
    array: Annotated[
        bool, typer.Option("--array", help="CONFIG is a sweep: one job array, a task for each of its runs")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="start on this machine, without SLURM")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch file, submit nothing")] = False,
) -> None:
    """Train as CONFIG says, as a SLURM job that saves, goes back into the queue and resumes when its time is over."""
    from fptt_dist.config.cluster import load_cluster
    from fptt_dist.launchers import slurm
    from fptt_dist.training.resume_hint import resuming

    given = {"nodes": nodes, "gpus_per_node": gpus_per_node, "tasks_per_node": tasks_per_node, "time": time}
    given |= {"partition": partition, "account": account, "qos": qos, "constraint": constraint, "setup": setup or None}
    place = load_cluster(cluster, given)
    words = overrides or []
    if dry_run:
        typer.echo(slurm.script(str(config), words, place, array=array), nl=False)
        return
    typed = ["fptt-dist", *sys.argv[1:]]
    if cluster is not None and not any(word.startswith("--cluster") for word in typed):
        typed.append(f"--cluster={cluster}")  # it came from FPTT_CLUSTER, which another shell may not have
    again = resuming(typed)
    done = slurm.submit(str(config), words, place, array=array, where="local" if local else "slurm", resume=again)
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


@app.command()
def sweep(
    path: Annotated[
        Path, typer.Argument(metavar="SWEEP", callback=_local, help="a YAML file, or the name of a packaged one")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the sweep in run.dir, if there is one")] = False,
) -> None:
    """Train the runs that SWEEP asks for, with Ray Tune, and print them side by side, the best first.

    key=value sets a key of every run, sweep.key=value one of the sweep's own, such as sweep.search.trials=32.
    """
    protect()
    from fptt_dist.launchers.sweep import make_plan
    from fptt_dist.launchers.tune import sweep as start

    results = start(make_plan(path, overrides or []), resume=resume)
    _tell_sweep(results)
    raise typer.Exit(0 if results.best else 1)


@app.command()
def reproduce(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="table2 to table6, figure1 to figure3, or alpha")],
    overrides: Overrides = None,
    budget: Annotated[
        Literal["smoke", "short", "full"],
        typer.Option(help="smoke: seconds a row; short: minutes on a GPU; full: as in the paper"),
    ] = "short",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="runs a row, with the seeds 0, 1, … (default: 3; smoke: 1)")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="TEXT", help="train the rows alone whose name contains it")
    ] = None,
) -> None:
    """Train the rows of one of the paper's tables or figures, and print them beside the paper's figures.

    Runs, table and picture are in run.dir/BUDGET (default: runs/paper); the same command again goes on with them.
    """
    protect()
    from fptt_dist.launchers.reproduce import make_plan
    from fptt_dist.launchers.reproduce import reproduce as start

    plan = make_plan(target, overrides or [], budget=budget, seeds=seeds, only=only)
    typer.echo(start(plan))
    typer.echo(f"table: {plan.table_path}")
    if plan.picture_path.is_file():
        typer.echo(f"picture: {plan.picture_path}")


@app.command()
def jobs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", callback=_local, help="the folder above the runs' folders")
    ] = Path("runs"),
) -> None:
    """The runs below FOLDER and their state, from what they wrote and SLURM's queue."""
    from fptt_dist.launchers.jobs import list_runs

    rows = list_runs(folder)
    table = Table(
        "run", "state", "batch", "newest value", "job", "nodes", box=None, pad_edge=False, header_style="bold"
    )
    for row in rows:
        table.add_row(str(row.run), row.state, row.batch, row.metric, row.job, row.nodes)
    _print_table(table)
    for row in rows:
        if row.last_words:
            typer.echo(f"\n{row.run}: {row.last_words}\n  (the whole log: {row.log})")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=_local, help="a run's folder")],
    checkpoint: Annotated[Literal["best", "latest"], typer.Option(help="which checkpoint")] = "best",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="a language model that goes on learning from the text (Krause 2018)")
    ] = False,
) -> None:
    """Print the validation and test metric of a run's checkpoint, as JSON."""
    from fptt_dist.training.dynamic import evaluate_dynamically
    from fptt_dist.training.run import evaluate_run

    typer.echo(json.dumps((evaluate_dynamically if dynamic else evaluate_run)(run, checkpoint)))


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", callback=_local, help="folders of runs or sweeps, or folders with such below"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", callback=_local, help="the page (default: report.html in the first folder)"),
    ] = None,
) -> None:
    """Print runs side by side, and write one HTML page with their table, pictures and configurations.

    Of a sweep also its own table and pictures; of a folder of reproduce the tables beside the paper's figures. The page
    needs no other file; its pictures are beside it too, in report_figures/, as PNG and SVG.
    """
    from fptt_dist.reporting import make_report, results_table

    page = make_report(runs, out)
    if page.alone:
        _print_table(results_table(page.alone))
    for results in page.sweeps:
        _tell_sweep(results)
    typer.echo(f"page: {page.path}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=_local, help="a run's folder")],
    out: Annotated[
        Path | None, typer.Option(callback=_local, help="folder that receives the network (default: RUN/export)")
    ] = None,
    checkpoint: Annotated[Literal["best", "latest"], typer.Option(help="which checkpoint")] = "best",
) -> None:
    """Write a run's network as safetensors and JSON, for use without the run."""
    from fptt_dist.training.export import export_run

    folder = export_run(run, out or run / "export", checkpoint)
    typer.echo(
        f"from fptt_dist.models import load_network\nmodel = load_network({str(folder)!r})\n"
        "output, state = model(x)  # x: steps, sequences, numbers a step; of a text: steps, sequences (ids)"
    )


@app.command()
def doctor() -> None:
    """What this installation can do: versions, devices, backends, extras that are missing."""
    from fptt_dist.doctor import diagnosis

    table = Table(box=None, pad_edge=False, show_header=False)
    for thing, found in diagnosis():
        table.add_row(thing, found)
    _print_table(table)


@data_app.command("fetch")
def data_fetch(name: DatasetName, root: DataRoot = Path("data")) -> None:
    """Download a data set; what is there and whole is left as it is, what broke off goes on."""
    from fptt_dist.tasks import download

    folder = download.fetch(name, root, progress=sys.stderr.isatty())
    typer.echo(f"{name} is whole in {folder}")


@data_app.command("check")
def data_check(name: DatasetName, root: DataRoot = Path("data")) -> None:
    """Compare a data set on disk with what is known of its files; exit code 1 if it is not whole."""
    from fptt_dist.tasks import download

    problems = download.check(name, root)
    typer.echo("\n".join(problems) or f"{name} is whole in {download.folder_of(name, root)}")
    raise typer.Exit(1 if problems else 0)


@config_app.command("keys")
def config_keys(prefix: Annotated[str, typer.Argument(help="e.g. fptt")] = "") -> None:
    """Every key that can be set, with its type, default and meaning."""
    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False, header_style="bold")
    for key in describe(prefix):
        name = f"{key.name} ({key.variant})" if key.variant else key.name
        table.add_row(name, key.type, key.default, key.help)
    _print_table(table)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """CONFIG with its overrides and all defaults, as YAML."""
    typer.echo(dump(load(config, parse_overrides(overrides or []))), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of a configuration, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


def _tell_sweep(results: "SweepResults") -> None:
    from fptt_dist.reporting import sweep_table

    _print_table(sweep_table(results))
    typer.echo(f"sweep.json, figures/ and tensorboard/ are in {results.path}")
    if results.best is None:
        typer.echo("no run is finished with a finite value", err=True)
        return
    best = results.best.trials[0]
    values = f"validation {results.metric} {best.value:.5g}, test {best.test:.5g}"
    if len(results.best.trials) > 1:
        point = " ".join(f"{key}={show(value)}" for key, value in results.best.values.items())
        seeds = f"mean {results.best.mean:.5g} of {len(results.best.trials)} seeds"
        typer.echo(f"best: {point}, validation {results.metric} {seeds}")
        typer.echo(f"best.yaml is its run {best.path.name}: {values}")
    else:
        typer.echo(f"best: {best.path.name}, {values}")
    workers = results.asked["workers"]
    start = f"launch --nproc {workers}" if workers > 1 else "train"
    typer.echo(f"again: fptt-dist {start} {shlex.quote(str(results.path / 'best.yaml'))}")


def _print_table(table: Table) -> None:
    # Where the output is no terminal, rich takes 80 columns and cuts what does not fit.
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False, markup=False)


def main() -> NoReturn:
    """Run the program; a user's mistake is one message and exit code 2, never a traceback."""
    protect(result=True)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    with one_message():
        app(standalone_mode=True)
    raise AssertionError("the program's own exit was passed by")
