"""The page of a report: one self-contained HTML file, made from run directories alone."""

import io
import logging
import shlex
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from fptt_dist.config import ConfigError, short_name
from fptt_dist.config.values import show
from fptt_dist.files import write_atomic
from fptt_dist.history import History, read_runs, readable_runs
from fptt_dist.reporting.html import table as report_table
from fptt_dist.reporting.html.images import Shown, data_url, show_figure
from fptt_dist.reporting.html.paper import WrittenTable, read_paper_table
from fptt_dist.reporting.html.sources import Sources, find_sources
from fptt_dist.reporting.plots.figures import pictures
from fptt_dist.reporting.runs.groups import Group, differences, group_runs
from fptt_dist.reporting.sweeps.figures import curves_figure
from fptt_dist.reporting.sweeps.files import write_sweep
from fptt_dist.reporting.sweeps.heatmap import heatmap_figure
from fptt_dist.reporting.sweeps.results import SweepResults
from fptt_dist.reporting.sweeps.table import sweep_table

LOG = logging.getLogger("fptt_dist")
PAGE = "report.html"
TEMPLATE = "page.html.jinja"
SECTIONS = ("Convergence", "Windows", "FPTT", "Consensus", "Speed")
"""The figures' sections in the order of the page."""
SWEEP_PICTURES = (
    ("heatmap", heatmap_figure, "The validation metric over two keys; a cell is the best point with its values."),
    ("curves", curves_figure, "The validation metric against training sequences, one line per run."),
)


@dataclass(frozen=True)
class Table:
    """A table as the page shows it; columns from `numbers` on are aligned right."""

    columns: list[str]
    rows: list[list[str]]
    numbers: int = 1


@dataclass(frozen=True)
class SweepPart:
    """A sweep on the page: its table, its best point in words, the command that trains it, its figures."""

    name: str
    table: Table
    best: str
    command: str
    pictures: list[Shown]


@dataclass(frozen=True)
class PaperPart:
    """A table of the paper on the page, and its figure."""

    table: WrittenTable
    picture: Shown | None


@dataclass(frozen=True)
class Report:
    """The sources of a report and where it is written.

    Attributes:
        folders: the folders as they were named.
        out: the page's file, if one was named.
        sources: the runs, sweeps and tables found in the folders.
        runs: all runs, read.
        sweeps: all sweeps, read.
    """

    folders: list[Path]
    out: Path | None
    sources: Sources
    runs: list[History]
    sweeps: list[SweepResults]

    @property
    def path(self) -> Path:
        """The page's file."""
        return self.out or self.folders[0] / PAGE

    @property
    def pictures(self) -> Path:
        """The folder of the figures, beside the page and named after it."""
        return self.path.with_name(f"{self.path.stem}_figures")

    @cached_property
    def alone(self) -> list[History]:
        """The runs that belong to none of the sweeps."""
        paths = set(self.sources.alone)
        return [run for run in self.runs if run.path in paths]

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of runs that differ only in their seeds."""
        return group_runs(self.runs)

    @property
    def command(self) -> str:
        """The command that writes this page."""
        out = [] if self.out is None else ["--out", str(self.out)]
        return shlex.join(["fptt-dist", "report", *map(str, self.folders), *out])


def make_report(folders: list[Path], out: Path | None = None) -> Report:
    """Read the folders and write the page with its figures beside it; what cannot be read is left out, see the log.

    Args:
        folders: of runs or sweeps, or with any of these below them, as `fptt-dist reproduce` writes.
        out: the page's file; None: report.html in the first folder.

    Raises:
        ConfigError: a folder that holds no run, nothing can be read, or `out` is no HTML file.
        OSError: the page could not be written.
    """
    if out is not None and out.suffix != ".html":
        raise ConfigError(f"--out {out}: the report is one file: type --out {out / PAGE}")
    sources = find_sources(folders)
    single = len(sources.runs) == 1 and not sources.sweeps
    runs = (read_runs if single else readable_runs)(sources.runs)
    report = Report(folders, out, sources, runs, _written_sweeps(sources.sweeps))
    if not (report.runs or report.sweeps):
        raise ConfigError(f"{', '.join(map(str, folders))}: no run there can be read, see above")
    _write(report)
    return report


def _written_sweeps(paths: list[Path]) -> list[SweepResults]:
    """Write the results of the sweeps; one that cannot be read is left out, which the log says."""
    found = []
    for path in paths:
        try:
            found.append(write_sweep(path))
        except ConfigError as error:
            LOG.warning("%s is left out: %s", path, error)
    return found


def _write(report: Report) -> None:
    drawn = [(each, _picture(each, report.pictures)) for each in pictures(report.groups)]
    sweeps = [_sweep_part(results, report.pictures) for results in report.sweeps]
    papers = [_paper_part(path) for path in report.sources.papers]
    _remove_old(report.pictures, [shown for _, shown in drawn] + [shown for part in sweeps for shown in part.pictures])
    alone = {id(run) for run in report.alone}
    labels = {id(run): group.label for group in report.groups for run in group.runs}
    maker = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = report.groups
    tested = [group for group in groups if all(id(run) in alone for run in group.runs)]
    page = maker.get_template(TEMPLATE).render(
        title=_title(report),
        date=datetime.now().astimezone(),
        folders=report.folders,
        where=Path.cwd(),
        command=report.command,
        results=Table(
            list(report_table.COLUMNS),
            [report_table.group_row(group, tested=group in tested) for group in groups],
            numbers=3,
        ),
        of_sweeps=bool(report.sweeps),
        runs=Table(
            list(report_table.RUN_COLUMNS),
            [report_table.run_row(run, labels[id(run)], tested=id(run) in alone) for run in report.runs],
            numbers=4,
        ),
        metrics=Table(list(report_table.METRIC_COLUMNS), report_table.metric_rows(groups, tested=tested), numbers=2),
        unknown=Table(list(report_table.UNKNOWN_COLUMNS), report_table.unknown_rows(groups)),
        comparisons=report_table.comparisons(tested),
        no_tbptt=_no_tbptt(tested),
        sweeps=sweeps,
        papers=papers,
        sections={name: [shown for each, shown in drawn if each.section == name] for name in SECTIONS},
        differences=_differences(groups),
        configurations=[(group.label, _yaml(group.runs[0].config), len(group.runs)) for group in groups],
        hardware=_hardware(report.runs),
    )
    write_atomic(report.path, page.encode(), parents=True)


def _title(report: Report) -> str:
    tasks = sorted({short_name(str(run.config["task"].get("name", ""))) for run in report.runs} - {""})
    return f"FPTT report: {', '.join(tasks)}" if tasks else "FPTT report"


def _picture(picture: Any, folder: Path) -> Shown:
    return show_figure(picture.figure, picture.name, picture.title, picture.caption, folder)


def _sweep_part(results: SweepResults, folder: Path) -> SweepPart:
    printed = sweep_table(results)
    cells = [list(map(str, column.cells)) for column in printed.columns]
    name = results.path.resolve().name
    drawn = []
    for kind, draw, caption in SWEEP_PICTURES:
        figure = draw(results)
        if figure is not None:
            drawn.append(show_figure(figure, f"sweep-{name}-{kind}", f"{name}: {kind}", caption, folder))
    best = "No run is finished with a finite value."
    command = ""
    if results.best is not None:
        trial = results.best.trials[0]
        best = f"Best: {trial.name}, validation {results.metric} {show(trial.value)}, test {show(trial.test)}."
        workers = results.asked.get("workers", 1)
        start = ["launch", "--nproc", str(workers)] if workers > 1 else ["train"]
        command = shlex.join(["fptt-dist", *start, str(results.path / "best.yaml")])
    table = Table(
        [str(column.header) for column in printed.columns], [list(row) for row in zip(*cells, strict=True)], 3
    )
    return SweepPart(name, table, best, command, drawn)


def _paper_part(path: Path) -> PaperPart:
    table = read_paper_table(path)
    if table.picture is None:
        return PaperPart(table, None)
    source = data_url("image/png", table.picture.read_bytes())
    return PaperPart(table, Shown(table.name, table.title, "Ours, as the table below.", source, None, []))


def _remove_old(folder: Path, shown: list[Shown]) -> None:
    """Delete the figures of an older page that this one no longer has."""
    kept = {f"{each.name}.{kind}" for each in shown for kind in ("png", "svg")}
    for file in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if file.name not in kept:
            file.unlink()


def _no_tbptt(groups: list[Group]) -> bool:
    """Return whether there are runs of FPTT but none that isolate the effect of its regularizer."""
    algorithms = {str(group.runs[0].config["algorithm"]) for group in groups}
    return "fptt" in algorithms and "tbptt" not in algorithms


def _differences(groups: list[Group]) -> Table:
    """Return the table of the keys that differ, one column per group."""
    rows = [[key, *map(show, values)] for key, values in differences(groups)]
    return Table(["key", *(group.label for group in groups)], rows)


def _yaml(config: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = True
    writer.dump(config, text)
    return text.getvalue()


def _hardware(runs: list[History]) -> list[tuple[list[tuple[str, str]], int]]:
    """Return the distinct sets of versions and hardware, each with its number of runs."""
    counted: dict[tuple[tuple[str, str], ...], int] = {}
    for run in runs:
        names = tuple((key, str(value)) for key, value in run.versions.items() if key not in ("run_id", "command"))
        if names:
            counted[names] = counted.get(names, 0) + 1
    return [(list(names), count) for names, count in counted.items()]
