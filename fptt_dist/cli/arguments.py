"""Arguments that several subcommands take."""

from pathlib import Path
from typing import Annotated

import typer


def local_path(parameter: typer.CallbackParam, value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Return the value; the callback of every parameter that is a path.

    Raises:
        ConfigError: a remote path.
    """
    from fptt_dist.config.schema.paths import refuse_remote

    option = parameter.opts[0]
    name = option if option.startswith("--") else str(parameter.metavar).strip("[]…")
    for path in value if isinstance(value, list) else [value]:
        if path is not None:
            refuse_remote(name, path)
    return value


ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", callback=local_path, help="a YAML file, or the name of a packaged one")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="e.g. fptt.alpha=0.3")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="execute code that the run's folder keeps, of whoever trained it")
]
