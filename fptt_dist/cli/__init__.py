"""The program `fptt-dist`: a file for each group of subcommands; none imports torch before it is known what is wanted.

Exit codes: 0 done, 1 failure, 2 bad usage, 129 / 130 / 140 / 143 saved after a signal.
"""

import logging
import sys
from typing import Annotated, NoReturn

import typer

from fptt_dist.cli import config, data, doctor, results, training
from fptt_dist.exit import one_message
from fptt_dist.streams import printable, protect
from fptt_dist.version import __version__

app = typer.Typer(
    name="fptt-dist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for subcommand in (
    training.train,
    training.launch,
    training.submit,
    training.sweep,
    training.reproduce,
    results.jobs,
    results.evaluate,
    results.predict,
    results.report,
    results.export,
    doctor.doctor,
):
    app.command()(subcommand)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")


class _Printable(logging.Formatter):
    """Messages may name files, and quote what is in them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line that is printed."""
        return printable(super().formatMessage(record))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fptt-dist {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train recurrent networks on long sequences with forward propagation through time (FPTT)."""


def main() -> NoReturn:
    """Run the program; a user's mistake is one message and exit code 2, never a traceback."""
    protect(result=True)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(message)s"))
    with one_message():
        app(standalone_mode=True)
    raise AssertionError("the program did not exit")
