"""The paper's rows beside ours, as a Markdown table."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fptt_dist.history import read_result, readable_runs
from fptt_dist.records import read_record

DYNAMIC = "dynamic.json"
"""The results of dynamic evaluation, in a run directory."""
NOT_FINITE = "not_finite.json"
"""The record of a non-finite value, in a run directory: "batch" and "message"."""
NOT_RUN = "not run"
NONE = "–"
FORMATS: dict[str, Callable[[float], str]] = {
    "accuracy": lambda value: f"{100.0 * value:.2f}",
    "perplexity": lambda value: _fixed(value, 2),
    "bits_per_character": lambda value: _fixed(value, 3),
    "mse": lambda value: f"{value:.2g}" if abs(value) < 0.01 else _fixed(value, 4),
}
BUDGETS = {
    "smoke": "smoke: tiny slices; these values show only that the rows run.",
    "short": "short: long rows are cut short and are then not comparable with the paper's values.",
    "full": "full: the configurations unchanged.",
}


@dataclass(frozen=True)
class PaperRow:
    """One row: the paper's values and our runs.

    Attributes:
        label: the text of the first column.
        heading: the heading above this row and those after it, or "".
        column: in a grid, the header of its column; "" in a table.
        paper: the paper's value as printed; None: it has none.
        parameters: the paper's number of parameters as printed; None: it has none.
        dynamic: whether dynamic evaluation is requested.
        runs: the run directories, one per seed; they need not exist.
    """

    label: str
    runs: list[Path]
    heading: str = ""
    column: str = ""
    paper: str | None = None
    parameters: str | None = None
    dynamic: bool = False

    @cached_property
    def finished(self) -> dict[Path, dict[str, Any]]:
        """result.json of the runs that are finished."""
        return {run: found for run in self.runs if (found := read_result(run)) is not None}

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of the finished runs."""
        return list(self.finished.values())

    @property
    def ours(self) -> str:
        """Mean and standard deviation of the test metric, and the states of the unfinished runs."""
        unfinished = [_state(run) for run in self.runs if run not in self.finished]
        parts = [self._spread(self.results, "value")] if self.results else []
        return "; ".join([*parts, *(state for state in dict.fromkeys(unfinished) if state != NOT_RUN)]) or NOT_RUN

    @property
    def validation(self) -> str:
        """Mean and standard deviation of the validation metric."""
        return self._spread(self.results, "validation") if self.results else NONE

    @property
    def dynamic_evaluation(self) -> str:
        """Mean and standard deviation of the test metric with dynamic evaluation."""
        if not self.dynamic:
            return NONE
        found = [read_record(run / DYNAMIC) for run in self.finished]
        known = [each for each in found if each is not None]
        return self._spread(known, "test") if known else NOT_RUN

    @property
    def counts(self) -> str:
        """Numbers of recurrent and of all parameters, and the paper's."""
        ours = {f"{result['recurrent_parameters']:,} / {result['parameters']:,}" for result in self.results}
        paper = [f"paper: {self.parameters}"] if self.parameters else []
        return "; ".join([*sorted(ours), *paper]) or NONE

    @property
    def updates(self) -> str:
        """Number of parameter updates of a run."""
        return ", ".join(f"{each:,}" for each in sorted({result["updates"] for result in self.results})) or NONE

    @property
    def time(self) -> str:
        """Mean training time of a run."""
        return _duration(statistics.fmean(r["seconds"] for r in self.results)) if self.results else NONE

    def _spread(self, results: list[dict[str, Any]], key: str) -> str:
        """Return "mean ± standard deviation (number)"."""
        show = FORMATS.get(self.results[0]["metric"], "{:.5g}".format)
        values = [float(result[key]) for result in results]
        mean = sum(values) / len(values)
        spread = f" ± {show(statistics.stdev(values))}" if len(values) > 1 and math.isfinite(mean) else ""
        return f"{show(mean)}{spread} ({len(values)})"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper's.

    Attributes:
        title: its title.
        unit: the unit of its values.
        rows: its rows.
        notes: the notes below it.
        command: the command that reproduces it.
        budget: "smoke", "short" or "full".
    """

    title: str
    unit: str
    rows: list[PaperRow]
    notes: Sequence[str]
    command: str
    budget: str


def paper_table(table: PaperTable) -> str:
    """Return the table as Markdown, with the provenance of its values below it."""
    columns: list[tuple[str, Callable[[PaperRow], str]]] = [
        ("row", lambda row: row.label),
        ("paper", lambda row: row.paper or NONE),
        ("ours", lambda row: row.ours),
        ("validation", lambda row: row.validation),
        ("parameters, recurrent / all", lambda row: row.counts),
        ("updates", lambda row: row.updates),
        ("training time", lambda row: row.time),
    ]
    if any(row.dynamic for row in table.rows):
        columns.insert(3, ("ours, dynamic evaluation", lambda row: row.dynamic_evaluation))
    lines = [line(name for name, _ in columns), line("---" for _ in columns)]
    for row in table.rows:
        if row.heading:
            lines.append(line([f"**{row.heading}**", *[""] * (len(columns) - 1)]))
        lines.append(line(cell(row) for _, cell in columns))
    return "\n".join([header(table), *lines, "", *(f"- {each}" for each in below(table))]) + "\n"


def header(table: PaperTable) -> str:
    """Return the title and the unit line above a table."""
    unit = table.unit[0].upper() + table.unit[1:]
    return f"# {table.title}\n\n{unit}; ours: mean ± standard deviation over seeds (number of seeds).\n"


def below(table: PaperTable) -> list[str]:
    """Return the lines below it: the command, the provenance of its values, and the notes."""
    return [
        f"`{table.command}`",
        f"Budget {BUDGETS[table.budget]}",
        *_ran({run: result for row in table.rows for run, result in row.finished.items()}),
        "The test set is evaluated once, at the best validation checkpoint; nothing was chosen on it.",
        "Training time is a run's, without evaluation.",
        *(f"{note[0].upper()}{note[1:]}." for note in table.notes),
    ]


def _ran(finished: Mapping[Path, dict[str, Any]]) -> list[str]:
    """Return the software and hardware of the finished runs, and their dates."""
    machines = sorted({_machine(result["versions"]) for result in finished.values()})
    stamps = [(run / "result.json").stat().st_mtime for run in finished]
    days = [datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d") for stamp in sorted(stamps)]
    when = [] if not days else [f"Finished {days[0]}{f' to {days[-1]}' if days[-1] != days[0] else ''}."]
    return [*(f"{machine}." for machine in machines), *when]


def _machine(versions: dict[str, str]) -> str:
    names = {"fptt_dist": "fptt_dist", "python": "Python", "torch": "torch", "numpy": "numpy", "gpu": "GPU:"}
    known = [f"{name} {versions[key]}" for key, name in names.items() if key in versions]
    return ", ".join([*known, *(versions[key] for key in ("processor", "platform") if key in versions)])


def _state(run: Path) -> str:
    """Return the state of an unfinished run."""
    broken = read_record(run / NOT_FINITE)
    if broken is not None:
        return f"not finite (batch {broken.get('batch')})"
    if not (run / "config.yaml").is_file():
        return NOT_RUN
    records = [record for history in readable_runs([run]) for record in (*history.training, *history.evaluations)]
    return f"not finished (batch {max((record['batch'] for record in records), default=0)})"


def _fixed(value: float, decimals: int) -> str:
    """Return a value with the paper's decimals; its first digits where it is large."""
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.5g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def line(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
