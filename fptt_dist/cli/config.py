"""The subcommands `fptt-dist config …`."""

import json
from typing import Annotated

import typer

from fptt_dist.cli.arguments import ConfigPath, Overrides
from fptt_dist.cli.tables import print_rows

app = typer.Typer(help="Show the keys that can be set, and configurations.", no_args_is_help=True)


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
