"""Tables that subcommands print."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from fptt_dist.streams import printable

if TYPE_CHECKING:
    from rich.table import Table

    from fptt_dist.reporting import SweepResults


def print_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts below a header; without one where `header` is empty."""
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold", show_header=bool(header))
    for row in rows:
        table.add_row(*map(printable, row))
    print_table(table)


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal is."""
    from rich.console import Console

    # Where the output is not a terminal, rich takes 80 columns and cuts off what does not fit.
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False, markup=False)


def print_sweep(results: "SweepResults") -> None:
    """Print a sweep's table, its best trial, and how to train it again."""
    from fptt_dist.config.values import show
    from fptt_dist.reporting import sweep_table

    print_table(sweep_table(results))
    typer.echo(printable(f"sweep.json, figures/ and tensorboard/ are in {results.path}"))
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
