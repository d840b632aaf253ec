"""The subcommands `fptt-dist config …`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fptt_dist.cli.arguments import ConfigPath, Overrides, local_path
from fptt_dist.cli.tables import print_rows
from fptt_dist.streams import printable

app = typer.Typer(help="Write, show and explain configurations.", no_args_is_help=True)


@app.command()
def init(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            callback=local_path,
            help="a .csv, .parquet, .npz or .safetensors file, or a folder with inputs.npy",
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="a table's target (default: target, label, class or y); may be repeated"),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="a table's ids of the series (default: series, id, … by its name)"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.yaml", callback=local_path, help="a new file (default: print to the terminal)"
        ),
    ] = None,
) -> None:
    """Look at DATA and write a commented configuration to start from, with task.name=arrays."""
    from fptt_dist.config import ConfigError
    from fptt_dist.files import write_atomic
    from fptt_dist.training.tools.starting_config import starting_config

    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} is there already: type another name, or remove it")
    text = starting_config(str(data), series=series, targets=target or ())
    if out is None:
        typer.echo(printable(text), nl=False)
        return
    write_atomic(out, text)
    for line in text.splitlines():
        if "config init --" in line:  # a guess that may make it another task
            typer.echo(printable(line.lstrip("# ")))
    typer.echo(printable(f"{out} is written; next: fptt-dist train {shlex.quote(str(out))} --dry-run"))


@app.command()
def keys(prefix: Annotated[str, typer.Argument(help="e.g. fptt")] = "") -> None:
    """List every key that can be set, with its type, default and meaning."""
    from fptt_dist.config import describe

    rows = (
        (f"{key.name} ({key.variant})" if key.variant else key.name, key.type, key.default, key.help)
        for key in describe(prefix)
    )
    print_rows(("key", "type", "default", "meaning"), rows)


@app.command()
def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print CONFIG with its overrides and all defaults, as YAML."""
    from fptt_dist.config import dump, load, parse_overrides

    typer.echo(dump(load(config, parse_overrides(overrides or []))), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from fptt_dist.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
