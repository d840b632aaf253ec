"""The subcommands for runs that were started: jobs, evaluate, predict, report, export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fptt_dist.cli.arguments import TrustCode, local_path
from fptt_dist.cli.tables import print_rows, print_sweep, print_table
from fptt_dist.streams import printable

LINES = {
    "safetensors": "from fptt_dist.models import load_network\nmodel = load_network('{}')\n"
    "output, state = model(x)  # x: steps, sequences, features; of a text: steps, sequences (ids)",
    "torch": "import torch\nmodel = torch.export.load('{}/model.pt2').module()\n"
    "output, *state = model(x, *state)  # state: zeros at first, of the shapes in model.json",
    "onnx": "import onnxruntime\nmodel = onnxruntime.InferenceSession('{}/model.onnx')\n"
    "output, *state = model.run(None, {{'x': x, 'state_0': state[0], …}})  # zeros at first, see model.json",
}


def jobs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", callback=local_path, help="the folder above the runs' folders")
    ] = Path("runs"),
) -> None:
    """List the runs below FOLDER and their state, from what they wrote and SLURM's queue."""
    from fptt_dist.launchers.slurm.jobs import list_runs

    rows = list_runs(folder)
    cells = [(str(row.run), row.state, row.batch, row.metric, row.job, row.nodes) for row in rows]
    print_rows(("run", "state", "batch", "newest value", "job", "nodes"), cells)
    for row in rows:
        if row.last_words:
            typer.echo(printable(f"\n{row.run}: {row.last_words}\n  (the whole log: {row.log})"))
        if row.resume:
            typer.echo(printable(f"\n{row.run}: {row.resume}"))


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=local_path, help="a run's folder")],
    checkpoint: Annotated[Literal["best", "latest"], typer.Option(help="which checkpoint")] = "best",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="a language model that keeps learning from the text (Krause 2018)")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Print the validation and test metric of a run's checkpoint, as JSON."""
    from fptt_dist.records import dumps
    from fptt_dist.training.saved_run import evaluate_run
    from fptt_dist.training.tools.dynamic_evaluation import evaluate_dynamically

    typer.echo(dumps((evaluate_dynamically if dynamic else evaluate_run)(run, checkpoint, trust_code=trust_code)))


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=local_path, help="a run's folder")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", callback=local_path, help="a file with series, or a text; - for rows on standard input"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=local_path, help="a .csv, .parquet or .npz file (default: CSV on standard output)"
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="answer each step as it comes, and carry the state to the next")
    ] = False,
    checkpoint: Annotated[Literal["best", "latest"], typer.Option(help="which checkpoint")] = "best",
    trust_code: TrustCode = False,
) -> None:
    """Print what a run's network says of new data, prepared as the training data were; no training data are needed."""
    from fptt_dist.training.predict.predict import predict_run

    predict_run(run, str(source), which=checkpoint, out=out, stream=stream, trust_code=trust_code)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…", callback=local_path, help="folders of runs or sweeps, or folders with such below"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", callback=local_path, help="the page (default: report.html in the first folder)"
        ),
    ] = None,
) -> None:
    """Print runs side by side, and write one HTML page with their table, plots and configurations.

    A sweep also has its own table and plots, and a folder of reproduce its tables beside the paper's values. The page
    needs no other file; its plots are also beside it, in report_figures/, as PNG and SVG.
    """
    from fptt_dist.reporting import make_report, results_table

    page = make_report(runs, out)
    if page.alone:
        print_table(results_table(page.alone))
    for results in page.sweeps:
        print_sweep(results)
    typer.echo(printable(f"page: {page.path}"))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=local_path, help="a run's folder")],
    out: Annotated[
        Path | None, typer.Option(callback=local_path, help="folder that receives the network (default: RUN/export)")
    ] = None,
    checkpoint: Annotated[Literal["best", "latest"], typer.Option(help="which checkpoint")] = "best",
    format: Annotated[
        Literal["safetensors", "torch", "onnx"],
        typer.Option(help="weights for this package, a torch.export program, or an ONNX model"),
    ] = "safetensors",
    trust_code: TrustCode = False,
) -> None:
    """Write a run's network, for use without the run, and print the lines that load it."""
    from fptt_dist.training.tools.export import export_run

    folder = export_run(run, out or run / "export", checkpoint, format=format, trust_code=trust_code)
    typer.echo(LINES[format].format(folder))
