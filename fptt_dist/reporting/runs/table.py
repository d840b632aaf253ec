"""The table of several runs."""

from rich.table import Table

from fptt_dist.history import History
from fptt_dist.streams import printable
from fptt_dist.tasks.data.unknown import many_unknown


def results_table(runs: list[History]) -> Table:
    """Return one row per run: its test metrics and its cost, or "not finished"."""
    table = Table("run", "algorithm", "metric", "test", "validation", "sequences", "updates", "seconds", "sequences/s")
    for column in table.columns[3:]:
        column.justify = "right"
    several = any(len(_tested(run)) > 1 for run in runs)
    if several:
        table.add_column("other metrics, test")
    for run in runs:
        result = run.result
        if result is None:
            batch = run.training[-1]["batch"] if run.training else 0
            unfinished = [str(run.path), str(run.config["algorithm"]), "", "", f"not finished, batch {batch}"]
            table.add_row(*map(printable, unfinished), *[""] * (4 + several))
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
            *([printable(_others(run))] if several else []),
        )
    return table


def _tested(run: History) -> dict[str, float]:
    """Return all metrics of a run on the test set, by name; {} while it is not finished."""
    return (run.result or {}).get("metrics", {}).get("test", {})


def _others(run: History) -> str:
    """Return the metrics besides the monitored one, such as "macro_f1 0.81, auroc 0.93"."""
    assert run.result is not None
    return ", ".join(f"{name} {value:.5g}" for name, value in _tested(run).items() if name != run.result["metric"])
