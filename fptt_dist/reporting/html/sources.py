"""Search of the folders given to a report: runs, sweeps, and tables of the paper."""

import os
from dataclasses import dataclass
from pathlib import Path

from fptt_dist.config import ConfigError
from fptt_dist.reporting.html.paper import is_paper_table
from fptt_dist.reporting.sweeps.directory import TRIAL, is_sweep

RUN = "config.yaml"
"""The file that marks a run directory."""


@dataclass(frozen=True)
class Sources:
    """The runs, sweeps and tables found, each once, in the order of the named folders.

    Attributes:
        runs: the run directories, including those of sweeps and of the paper's rows.
        sweeps: the sweep directories.
        papers: the Markdown tables that `fptt-dist reproduce` wrote.
    """

    runs: list[Path]
    sweeps: list[Path]
    papers: list[Path]

    @property
    def alone(self) -> list[Path]:
        """The runs that belong to no sweep among `sweeps`."""
        folders = {sweep.resolve() for sweep in self.sweeps}
        return [run for run in self.runs if run.resolve().parent not in folders]


def find_sources(folders: list[Path]) -> Sources:
    """Search the folders: each is a run directory, a sweep directory, or has such directories below it.

    Raises:
        ConfigError: a folder that does not exist or holds no run.
    """
    runs: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    papers: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "is not there"
            raise ConfigError(f"{folder} {problem}: type fptt-dist report RUN…, the folders of runs")
        found = _below(folder)
        if not (found.runs or found.sweeps):
            raise ConfigError(
                f"{folder} holds no run: neither it nor a folder below it has a {RUN}; "
                "fptt-dist jobs FOLDER lists the runs below a folder"
            )
        for known, new in ((runs, found.runs), (sweeps, found.sweeps), (papers, found.papers)):
            for path in new:
                known.setdefault(path.resolve(), path)
    return Sources(list(runs.values()), list(sweeps.values()), list(papers.values()))


def _below(folder: Path) -> Sources:
    """Return the sources at and below `folder`; run directories and hidden folders are not searched."""
    found = Sources([], [], [])
    for name, inside, files in os.walk(folder):
        path = Path(name)
        if RUN in files:
            found.runs.append(path)
            inside.clear()
            continue
        if is_sweep(path):
            found.sweeps.append(path)
            inside[:] = [each for each in inside if (path / each / TRIAL).is_file()]
        found.papers.extend(
            path / each for each in sorted(files) if each.endswith(".md") and is_paper_table(path / each)
        )
        inside[:] = sorted(each for each in inside if not each.startswith("."))
    return found
