"""The subcommands `fptt-dist data …`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fptt_dist.cli.arguments import local_path

app = typer.Typer(help="Download and check public data sets.", no_args_is_help=True)

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion-mnist, cifar10 or ptb")]
DataRoot = Annotated[Path, typer.Option(callback=local_path, help="folder of the data sets, as data.root")]


@app.command()
def fetch(name: DatasetName, root: DataRoot = Path("data")) -> None:
    """Download a data set; complete files are left as they are, interrupted downloads are resumed."""
    from fptt_dist.tasks.data import download

    folder = download.fetch(name, root, progress=sys.stderr.isatty())
    typer.echo(f"{name} is complete in {folder}")


@app.command()
def check(name: DatasetName, root: DataRoot = Path("data")) -> None:
    """Compare a data set on disk with what is known of its files; exit code 1 if it is not complete."""
    from fptt_dist.tasks.data import download

    problems = download.check(name, root)
    typer.echo("\n".join(problems) or f"{name} is complete in {download.folder_of(name, root)}")
    raise typer.Exit(1 if problems else 0)
