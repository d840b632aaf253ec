"""The table of several runs."""

from rich.table import Table

from fptt_dist.history import History
from fptt_dist.streams import printable
from fptt_dist.tasks.data.unknown import many_unknown


def results_table(runs: list[History]) -> Table:
    """Return one row per run: its test metric and its cost, or "not finished"."""
    table = Table("run", "algorithm", "metric", "test", "validation", "sequences", "updates", "seconds", "sequences/s")
    for column in table.columns[3:]:
        column.justify = "right"
    for run in runs:
        result = run.result
        if result is None:
            batch = run.training[-1]["batch"] if run.training else 0
            unfinished = [str(run.path), str(run.config["algorithm"]), "", "", f"not finished, batch {batch}"]
            table.add_row(*map(printable, unfinished), *[""] * 4)
            continue
        table.add_row(
            *map(printable, [str(run.path), str(result["algorithm"])]),
            printable(str(result["metric"])) + many_unknown(result.get("unknown_tokens", {})),
            f"{result['value']:.5g}",
            f"{result['validation']:.5g}",
            f"{result['sequences']:,}",
            f"{result['updates']:,}",
            f"{result['seconds']:.1f}",
            f"{result['sequences_per_second']:.0f}",
        )
    return table
